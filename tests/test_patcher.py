from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchtree import Edges, InputError, Patcher, Patches, Tree, cut
from strategies import SHAPES, owner


@pytest.mark.filterwarnings("ignore:.*too little detail")
@given(SHAPES, st.integers(1, 9), st.integers(1, 10**6), st.sampled_from(["edges", "residual", "variance"]))
def test_any_image_and_budget(shape: tuple[int, ...], patch_size: int, budget: int, detail: str) -> None:
    image = np.random.default_rng(budget).integers(0, 256, shape, np.uint8)
    patch_size = max(patch_size, max(shape) // 100)
    patches = Patcher(patch_size, budget, detail=detail, ndim=len(shape))(image)
    assert 1 <= len(patches) <= budget
    assert patches.tree.shape == shape
    owner(patches.tree)
    assert np.array_equal(patches.pixels, cut(image, patches.tree))


@pytest.mark.filterwarnings("ignore:.*too little detail")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.bool_])
@pytest.mark.parametrize("shape", [(100, 70), (100, 70, 1), (100, 70, 2), (100, 70, 3), (100, 70, 4), (100, 70, 6)])
def test_any_type_and_channel_count(shape: tuple[int, ...], dtype: Any) -> None:
    image = (np.random.default_rng(0).random(shape) * 200).astype(dtype)
    for detail in ("edges", "residual", "variance"):
        patches = Patcher(8, 20, detail=detail)(image)
        assert patches.pixels.dtype == dtype
        assert patches.pixels.shape == (len(patches), 8, 8, *shape[2:])


def test_a_blank_image_is_one_leaf_and_says_so() -> None:
    with pytest.warns(UserWarning, match="too little detail to use a budget of 1024"):
        assert len(Patcher()(np.zeros((512, 512, 3), np.uint8))) == 1


def test_detail_is_where_the_leaves_are() -> None:
    image = np.zeros((512, 512), np.uint8)
    image[300:310, 300:310] = 255
    tree = Patcher(budget=16).plan(image)
    assert tree.sizes()[tree.leaf_at([[305, 305], [10, 10]])].tolist() == [16, 256]


def test_a_function_is_a_detail() -> None:
    def corner(image: Any) -> Any:
        assert image.shape == (128, 128)
        return np.eye(128) * (np.arange(128) < 20)

    tree = Patcher(budget=7, detail=corner).plan(np.zeros((128, 128), np.uint8))
    assert tree.sizes()[tree.leaf_at([[0, 0], [127, 127]])].tolist() == [32, 64]


def test_a_grid_of_roots() -> None:
    with pytest.warns(UserWarning, match="too little detail"):
        assert Patcher(max_level=2).plan(np.zeros((512, 512), np.uint8)).sizes().tolist() == [64] * 64
    with pytest.raises(InputError, match="budget 63 is below the number of roots, 64"):
        Patcher(budget=63, max_level=2).plan(np.zeros((512, 512), np.uint8))


def test_windows_know_their_place(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    patches = Patcher(budget=16)(image, origin=(100, 200), extent=(1000, 2000))
    patches.save(tmp_path / "a.npz")
    again = Patches.load(tmp_path / "a.npz")
    assert (again.origin, again.extent, again.tree) == ((100, 200), (1000, 2000), patches.tree)
    assert np.array_equal(again.pixels, patches.pixels)


def test_a_patcher_can_be_written_down() -> None:
    patcher = Patcher(8, 77, detail=Edges(low=3), balanced=True)
    assert Patcher.from_dict(patcher.to_dict()) == patcher
    with pytest.raises(InputError, match="function"):
        Patcher(detail=np.abs).to_dict()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"patch_size": 0}, "patch size 0"),
        ({"budget": 0}, "budget 0"),
        ({"budget": None}, "give a budget"),
        ({"ndim": 4}, "ndim 4"),
        ({"budget": 20.5}, "budget 20.5"),
        ({"patch_size": 16.0}, "patch_size 16.0"),
        ({"threshold": float("nan")}, "threshold nan"),
        ({"threshold": -1}, "threshold -1"),
        ({"max_level": -1}, "max_level -1"),
        ({"max_level": 31}, "max_level 31 is not possible; give 0 to 30"),
        ({"max_level": 21, "ndim": 3}, "max_level 21 is not possible; give 0 to 20"),
        ({"patch_size": 10**20}, "patch size 1"),
        ({"detail": "sobel"}, "'sobel' is not known"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        Patcher(**options)


def test_bad_images_are_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(5,\)"):
        Patcher()(np.zeros(5))
    with pytest.raises(InputError, match=r"shape \(0, 5\)"):
        Patcher()(np.zeros((0, 5)))
    with pytest.raises(InputError, match="complex"):
        Patcher()(np.zeros((5, 5), complex))
    with pytest.raises(InputError, match="2 NaN or infinite"):
        Patcher()(np.array([[1, np.nan], [np.inf, 2]]))


def test_bad_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    Patcher(budget=16)(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(path)
    whole = path.read_bytes()
    spoilt = bytearray(whole)
    spoilt[200:400] = bytes(200)
    np.savez(tmp_path / "other.npz", pixels=np.zeros(3))
    other = (tmp_path / "other.npz").read_bytes()
    np.save(tmp_path / "array.npy", np.zeros(3))
    array = (tmp_path / "array.npy").read_bytes()
    for content in (b"", b"no zip at all", whole[:-40], whole[: len(whole) // 2], bytes(spoilt), other, array):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.npz: not a patches file"):
            Patches.load(path)


def test_numpys_numbers_are_as_good() -> None:
    image = np.random.default_rng(0).integers(0, 256, (100, 130), np.uint8)
    given = Patcher(np.int64(16), np.int32(50), max_level=np.uint8(3))  # type: ignore[arg-type]
    assert given(image).tree == Patcher(16, 50, max_level=3)(image).tree
    assert json.loads(json.dumps(given.to_dict())) == Patcher(16, 50, max_level=3).to_dict()
    assert Tree.uniform(tuple(np.array((100, 130))), np.int64(16)) == Tree.uniform((100, 130), 16)  # type: ignore[arg-type]


def test_channels_that_come_first_are_told() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 40, 50), np.uint8)
    with pytest.warns(UserWarning, match="taken as 3 x 40 pixels of 50 channels"):
        Patcher(budget=8)(image)
    Patcher(budget=8)(np.moveaxis(image, 0, -1))


def test_patches_have_the_size_of_their_tree() -> None:
    with pytest.raises(InputError, match=r"\(8, 8\) pixels do not fit a tree of patches of 16"):
        Patches(np.zeros((4, 8, 8, 3), np.uint8), Tree.uniform((32, 32), 16))
