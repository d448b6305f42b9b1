from __future__ import annotations

import heapq
import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patchtree import Edges, InputError, Patcher, Residual, Tree, Variance, cut
from patchtree.io.slides import SlideReadError, open_slide
from patchtree.slides import cells, lazy, opened, patch_slide, refine_slide
from patchtree.slides.halved import Halved, threads
from patchtree.tree import cover_level, morton
from slides.fake import FakeSlide, make_slide
from strategies import owner, trees

pytestmark = pytest.mark.filterwarnings("ignore:.*found too little detail")


def draw_image(shape: tuple[int, ...], noise: float = 1, seed: int = 0) -> NDArray[np.uint8]:
    """Glass, and tissue in two pieces."""
    rng = np.random.default_rng(seed)
    image = np.full((*shape, 3), 240.0)
    height, width = shape
    for y, x in ((height // 8, width // 8), (height // 2, width // 2)):
        part = image[y : y + height // 4, x : x + width // 3]
        part -= 60 + 40 * rng.random(part.shape)
    return (image + rng.normal(0, noise, image.shape)).clip(0, 255).round().astype(np.uint8)


def as_set(tree: Tree) -> set[tuple[int, ...]]:
    return {(int(level), *map(int, index)) for level, index in zip(tree.level, tree.index, strict=True)}


def heap_leaves(
    slide: FakeSlide, patch_size: int, budget: int, threshold: float, detail: Any, whole: int, finest: int
) -> set[tuple[int, ...]]:
    """Open a cell at a time, each measured by itself on the level just finer; those of coarse levels on all of one."""
    top = cover_level(slide.shape, patch_size)
    if whole < top:
        coarse = detail(whole).measure(slide.arrays[whole], patch_size, top - whole)

    def value(level: int, index: tuple[int, ...]) -> float:
        if level <= finest:
            return 0.0
        if level > whole:
            return float(coarse[level - whole - 1][index]) * 4**whole
        side = 2 * patch_size
        part = slide.arrays[level - 1][tuple(slice(i * side, (i + 1) * side) for i in index)]
        return float(detail(level - 1).measure(part, patch_size, 1)[0][0, 0]) * 4 ** (level - 1)

    def entry(level: int, index: tuple[int, ...], limit: float) -> tuple[float, int, int, tuple[int, ...]]:
        return -min(value(level, index), limit), -level, int(morton(np.array([index]))[0]), index

    heap, leaves = [entry(top, (0, 0), np.inf)], {(top, 0, 0)}
    while heap:
        found, level, _, index = heapq.heappop(heap)
        if -found <= threshold or not level:
            break
        children = [
            child
            for step in itertools.product((0, 1), repeat=2)
            if all(
                (child := tuple(2 * i + s for i, s in zip(index, step, strict=True)))[axis]
                * (patch_size << (-level - 1))
                < slide.shape[axis]
                for axis in (0, 1)
            )
        ]
        if len(leaves) - 1 + len(children) > budget:
            break
        leaves.remove((-level, *index))
        leaves |= {(-level - 1, *child) for child in children}
        for child in children:
            heapq.heappush(heap, entry(-level - 1, child, -found))
    return leaves


@given(
    st.tuples(st.integers(1, 150), st.integers(1, 150)),
    st.sampled_from([1, 2, 3, 5, 8]),
    st.integers(1, 300),
    st.sampled_from([0.0, 500.0]),
    st.sampled_from(["residual", "noisy", "variance"]),
    st.sampled_from([16, 256, 1 << 20]),
    st.sampled_from([0, 2]),
)
def test_equals_opening_one_cell_at_a_time(
    shape: tuple[int, int], patch_size: int, budget: int, threshold: float, name: str, whole_pixels: int, finest: int
) -> None:
    image = draw_image(shape, noise=3)
    slide = make_slide(image, range(10), (32, 32), mpp=(0.5, 0.5))
    noise = 3.0 if name == "noisy" else 0.0
    detail = Variance() if name == "variance" else Residual(noise)
    whole = finest = min(finest, cover_level(shape, patch_size))
    top = cover_level(shape, patch_size)
    while whole < top and np.prod(slide.levels[whole].shape) > whole_pixels:
        whole += 1
    expected = heap_leaves(
        slide,
        patch_size,
        budget,
        threshold,
        lambda level: detail if name == "variance" else Residual(noise / 2**level),
        whole,
        finest,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lazy, "_WHOLE_PIXELS", whole_pixels)
        tree = refine_slide(
            slide, patch_size, budget, threshold, detail, min_mpp=0.5 * 2**finest if finest else None, workers=2
        )
    owner(tree)
    assert as_set(tree) == expected


@pytest.mark.parametrize("detail", ["residual", "edges", "variance", lambda image: np.abs(image.astype(float)).sum(-1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_does_not_depend_on_workers_memory_or_batches(detail: Any, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "_WHOLE_PIXELS", 1 << 10)
    image = draw_image((500, 700), seed=1).astype(dtype) * (1 if dtype == np.uint8 else 3)
    slide = make_slide(image, [0, 1, 3], (64, 64))
    expected = refine_slide(slide, 4, 900, detail=detail, workers=1)
    assert len(expected) > 800
    for workers, stack, cache in ((2, 1, 0), (5, 7, 30_000)):
        monkeypatch.setattr(cells, "_STACK", stack)
        monkeypatch.setattr(lazy, "Halved", lambda slide, cache=cache: Halved(slide, cache))
        assert refine_slide(slide, 4, 900, detail=detail, workers=workers) == expected


@pytest.mark.parametrize("detail", ["residual", "edges", "variance", lambda image: image.std(-1)])
@pytest.mark.parametrize("shape", [(300, 420), (64, 64), (1, 90), (5, 5)])
def test_a_small_slide_gets_the_tree_of_its_image(detail: Any, shape: tuple[int, int]) -> None:
    image = draw_image(shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = Patcher(8, 200, detail=detail).plan(image)
    assert refine_slide(make_slide(image, [0, 1, 2]), 8, 200, detail=detail) == expected


def test_glass_is_never_opened_and_little_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "_WHOLE_PIXELS", 1 << 12)
    image = np.full((2048, 2048, 3), 240.0)
    image[600:900, 1000:1400] -= 100 * np.random.default_rng(0).random((300, 400, 1))
    image += np.random.default_rng(1).normal(0, 2, image.shape)
    slide = make_slide(image.round().astype(np.uint8), range(6), (64, 64))
    tree = refine_slide(slide, 8, 100_000)
    fine = tree.level == 0
    boxes = tree.boxes()[fine]
    inside = (boxes[:, 2] > 600) & (boxes[:, 0] < 900) & (boxes[:, 3] > 1000) & (boxes[:, 1] < 1400)
    # A cell at the border of the tissue has glass beside it.
    near = (boxes[:, 2] > 592) & (boxes[:, 0] < 908) & (boxes[:, 3] > 992) & (boxes[:, 1] < 1408)
    assert near.mean() > 0.98
    assert inside.sum() >= (300 // 8) * (400 // 8)
    mask = opened(tree, 3)
    assert mask[600 // 64 + 1 : 900 // 64, 1000 // 64 + 1 : 1400 // 64].all()
    assert mask.mean() < 0.06
    assert slide.pixels < 0.2 * image[..., 0].size


def test_a_budget_that_is_not_used_up_is_told() -> None:
    slide = make_slide(draw_image((300, 400)), [0, 1, 2])
    with pytest.warns(UserWarning, match=r"Edges found too little detail to use a budget of 5000: .*; 'residual' may"):
        tree = refine_slide(slide, 16, 5000, detail="edges")
    with pytest.warns(UserWarning, match=r"too little detail to use a budget of 5000"):
        patch_slide(Patcher(16, 5000), slide)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refine_slide(slide, 16, len(tree) - 50, detail="edges")
        refine_slide(slide, 16, 5000, threshold=1, detail="edges")
        refine_slide(slide, 16, 5000, detail="edges", region=(0, 0, 64, 64))


@pytest.mark.parametrize("finest", [0.0, 0.3])
def test_rounding_a_level_anew_adds_no_detail(finest: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "_WHOLE_PIXELS", 1 << 10)
    rng = np.random.default_rng(0)
    spreads = [finest, *[0.24] * 5]
    arrays = [np.rint(rng.normal(200.1, s, (1024 >> i, 1024 >> i, 3))).astype(np.uint8) for i, s in enumerate(spreads)]
    slide = FakeSlide(arrays, [(2.0**i, 2.0**i) for i in range(6)])
    assert len(refine_slide(slide, 8, 10_000)) < 100


def test_what_is_fine_at_a_coarse_level_is_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "_WHOLE_PIXELS", 1 << 10)
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(100, 200, (64, 64, 1)), np.ones((16, 16, 3)))
    image = np.roll(image, 5, (0, 1))
    image += rng.normal(0, 2, image.shape)
    slide = make_slide(image.round().astype(np.uint8), range(6))
    assert (refine_slide(slide, 8, 200).level >= 3).all()
    assert len(refine_slide(slide, 8, 200)) > 150


def test_a_line_counts_the_same_at_every_level() -> None:
    image = np.full((512, 512, 3), 240, np.uint8)
    image[:, 100:] = 20
    with threads(1) as pool:
        measures = cells.Cells(Halved(make_slide(image, range(6))), 8, Edges(), pool)
        for level in range(1, 6):
            side = 8 << level
            got = measures.measure(level, np.array([[0, 100 // side], [1, 100 // side], [1, 300 // side]]))
            np.testing.assert_allclose(got[:2], side, rtol=0.3)
            assert got[2] == 0 or 300 // side == 100 // side


def test_the_finest_resolution_can_be_set() -> None:
    image = draw_image((300, 300))
    for mpp, wanted, level in ((0.25, 0.5, 1), (0.2506, 0.5, 1), (0.2495, 0.5, 1), (0.25, 0.6, 2), (0.5, 0.25, 0)):
        slide = make_slide(image, [0, 1, 2], mpp=(mpp, mpp))
        tree = refine_slide(slide, 4, 100_000, min_mpp=wanted)
        assert tree.level.min() == level
    assert slide.pixels
    with pytest.raises(InputError, match=r"fake.tif: has no pixel size, which min_mpp needs"):
        refine_slide(make_slide(image, [0]), 4, min_mpp=0.5)
    with pytest.raises(InputError, match="min_mpp 0 is not possible"):
        refine_slide(slide, 4, min_mpp=0)


def test_nothing_finer_than_wanted_is_read() -> None:
    slide = make_slide(draw_image((300, 300)), [0, 1, 2], mpp=(0.25, 0.25))
    refine_slide(slide, 4, 100_000, detail="variance", min_mpp=0.5)
    assert {level for level, _ in slide.boxes} == {1}


def test_a_region_is_refined_inside_and_coarse_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "_WHOLE_PIXELS", 1 << 10)
    rng = np.random.default_rng(0)
    slide = make_slide(rng.integers(0, 256, (512, 512, 3), np.uint8), range(5))
    tree = refine_slide(slide, 8, 100_000, detail=Residual(0), region=(128, 256, 200, 320))
    owner(tree)
    boxes = tree.boxes()
    touching = (boxes[:, 2] > 128) & (boxes[:, 0] < 200) & (boxes[:, 3] > 256) & (boxes[:, 1] < 320)
    assert (tree.level[touching] == 0).all()
    assert touching.sum() == 9 * 8
    # What lies outside is there only beside what was opened.
    parents = (tree.index >> 1) * (2 * tree.sizes()[:, None])
    ends = parents + 2 * tree.sizes()[:, None]
    assert ((ends > (128, 256)) & (parents < (200, 320))).all()


def test_budget_and_threshold() -> None:
    slide = make_slide(draw_image((500, 400), noise=0), range(4))
    for budget in (1, 2, 4, 50, 333):
        assert budget - 3 < len(refine_slide(slide, 8, budget, detail=Residual(0))) <= budget
    everything = refine_slide(slide, 8, None, threshold=0)
    assert len(refine_slide(slide, 8, None, threshold=1e5)) < len(everything)
    assert len(refine_slide(slide, 8, 10**6, threshold=1e12)) == 1


@pytest.mark.parametrize("max_level", [0, 1, 3])
def test_roots_can_be_small(max_level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "_WHOLE_PIXELS", 100)
    slide = make_slide(draw_image((300, 200)), range(3))
    roots = int(np.prod([-(-length // (8 << max_level)) for length in slide.shape]))
    tree = refine_slide(slide, 8, roots + 50, max_level=max_level)
    owner(tree)
    assert tree.level.max() == max_level
    assert roots < len(tree) <= roots + 50 or not max_level
    with pytest.raises(InputError, match=f"budget {roots - 1} is below the number of roots, {roots}"):
        refine_slide(slide, 8, roots - 1, max_level=max_level)


def test_balanced_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "_WHOLE_PIXELS", 1 << 10)
    tree = refine_slide(make_slide(draw_image((600, 600)), range(5)), 4, 1500, balanced=True)
    assert 1400 < len(tree) <= 1500
    assert np.abs(np.diff(tree.level.astype(int)[tree.neighbours()], axis=1)).max() <= 1


@given(trees(st.tuples(st.integers(1, 80), st.integers(1, 80))), st.integers(0, 8))
def test_opened_cells(tree: Tree, level: int) -> None:
    side = tree.patch_size << level
    mask = opened(tree, level)
    assert mask.shape == tuple(-(-length // side) for length in tree.shape)
    finer = tree.level[owner(tree)] < level
    for (row, column), value in np.ndenumerate(mask):
        assert value == finer[row * side : (row + 1) * side, column * side : (column + 1) * side].any()


def test_patches_of_a_slide_are_its_tree_cut_and_read_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "_WHOLE_PIXELS", 1 << 12)
    image = draw_image((500, 400))
    slide = make_slide(image, [0, 1, 2, 3])
    patcher = Patcher(8, 300, detail="residual")
    patches = patch_slide(patcher, slide)
    for_both = slide.pixels
    assert patches.tree == refine_slide(slide, 8, 300)
    # The largest leaves alone are cut from levels that refining had no need of.
    assert for_both < 1.05 * (slide.pixels - for_both)
    assert np.abs(patches.pixels.astype(int) - cut(image, patches.tree)).max() <= 1


def test_the_level_that_the_pixels_add_is_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree grown from little shows an image about as well as one grown from all of it."""
    monkeypatch.setattr(lazy, "_WHOLE_PIXELS", 1 << 12)
    import skimage.data

    image = np.full((1024, 1024, 3), 240, np.uint8)
    image[200:712, 300:812] = skimage.data.immunohistochemistry()
    slide = make_slide(image, range(5), (64, 64))

    def error(tree: Tree) -> float:
        return float(np.mean((tree.paint(cut(image, tree)).astype(float) - image) ** 2))

    for budget in (300, 2000):
        grown, dense = refine_slide(slide, 8, budget), Patcher(8, budget, detail="residual").plan(image)
        assert 10 * np.log10(error(grown) / error(dense)) < 0.1


def test_a_real_slide(shared_data: Path) -> None:
    with open_slide(shared_data / "wsi" / "CMU-1-Small-Region.svs") as slide:
        image = slide.read(0, 0, 0, *slide.shape)
        patches = patch_slide(Patcher(16, 1024, detail="residual"), slide)
    dense = Patcher(16, 1024, detail="residual").plan(image)
    errors = [
        float(np.mean((tree.paint(pixels).astype(np.float32) - image) ** 2))
        for tree, pixels in ((patches.tree, patches.pixels), (dense, cut(image, dense)))
    ]
    assert abs(10 * np.log10(errors[0] / errors[1])) < 0.1


def test_a_part_that_cannot_be_read_is_told() -> None:
    slide = make_slide(draw_image((300, 300)), [0, 1])
    read = slide._read

    def fail(level: int, box: tuple[int, int, int, int]) -> NDArray[Any]:
        if level == 0 and box[0] >= 128:
            raise SlideReadError(slide.path, level, box, "torn")
        return read(level, box)

    slide._read = fail  # type: ignore[method-assign]
    with pytest.raises(SlideReadError, match=r"fake.tif: level 0, rows .* cannot be read \(torn\)"):
        patch_slide(Patcher(4, 500), slide)
