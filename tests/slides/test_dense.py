from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchtree import Edges, InputError, Patcher, Residual, Variance
from patchtree.detail import measure
from patchtree.slides import dense, refine_dense
from slides.fake import make_slide
from strategies import owner


def draw_image(shape: tuple[int, ...], dtype: Any = np.uint8) -> Any:
    rng = np.random.default_rng(0)
    image = rng.normal(200, 2, (*shape, 3))
    image[shape[0] // 3 :, : shape[1] // 2] -= 100 * rng.random((shape[0] - shape[0] // 3, shape[1] // 2, 1))
    return image.round().astype(dtype)


@pytest.mark.parametrize("detail", ["residual", "edges", "variance", lambda image: image.std(-1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_slide_of_one_block_gets_the_tree_of_its_image(detail: Any, dtype: Any) -> None:
    image = draw_image((300, 420), dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = Patcher(8, 200, detail=detail, max_level=4).plan(image)
    assert refine_dense(make_slide(image, [0]), 8, 200, detail=detail, max_level=4) == expected


@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.sampled_from([2, 3, 8]),
    st.sampled_from([Residual(2.0), Residual(0), Variance(), lambda image: image.std(-1), Edges(blur=1)]),
    st.sampled_from([None, 0, 1, 3]),
)
def test_blocks_add_up_to_the_whole(shape: tuple[int, int], p: int, detail: Any, max_level: int | None) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    whole = measure(image, detail, p, max_level)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "_BLOCK", 64)
        parts = dense._measure(make_slide(image, [0, 1], (32, 32)), Patcher(p, detail=detail, max_level=max_level), 2)
    assert len(parts) == len(whole)
    for level, (part, expected) in enumerate(zip(parts, whole, strict=True), start=1):
        # Above the block details come from its means, which are rounded.
        loose = 1e-3 if p << level > 64 and isinstance(detail, Residual | Variance) else 1e-9
        np.testing.assert_allclose(part, expected, rtol=loose, atol=1e-6, err_msg=f"level {level}")


@pytest.mark.parametrize("shape", [(1, 400), (130, 3)])
def test_slivers_at_the_border_are_no_more_than_they_are(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "_BLOCK", 64)
    image = np.add(*np.ogrid[: shape[0], : shape[1]])[..., None] % 100 * np.ones(3, np.uint8)
    parts = dense._measure(make_slide(image.astype(np.uint8), [0]), Patcher(2, detail=Residual(0)), 1)
    whole = measure(image.astype(np.uint8), Residual(0), 2)
    assert 0.5 < parts[-1].max() / whole[-1].max() < 2


@pytest.mark.parametrize("detail", ["residual", "edges", "variance"])
@pytest.mark.parametrize("patch_size", [4, 7])
def test_does_not_depend_on_workers(detail: str, patch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "_BLOCK", 64)
    image = draw_image((500, 400))
    slide = make_slide(image, [0, 1, 2])
    trees = [refine_dense(slide, patch_size, 700, detail=detail, workers=workers) for workers in (1, 4)]
    assert trees[0] == trees[1]
    owner(trees[0])
    assert 650 < len(trees[0]) <= 700


def test_all_of_level_0_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "_BLOCK", 64)
    slide = make_slide(draw_image((500, 400)), [0, 1, 2], (64, 64))
    refine_dense(slide, 8, 100, detail=Residual(1.0))
    assert slide.pixels == 500 * 400
    assert {level for level, _ in slide.boxes} == {0}


def test_blocks_fit_memory_whatever_the_patch_size() -> None:
    slide = make_slide(np.zeros((64, 64, 1), np.uint8), [0])
    for patch_size in (1, 5, 30, 64, 5000):
        assert len(refine_dense(slide, patch_size, 10**6)) == 1
    with pytest.raises(InputError, match="budget 3 is below the number of roots, 16"):
        refine_dense(slide, 8, 3, max_level=1)
