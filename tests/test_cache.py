"""The cache holds what the files hold, is found again, and is made anew when they change."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import patchtree.cache
from patchtree.cache import cache_data, locate, statistics
from patchtree.datasets import DataSet, Pair
from patchtree.errors import InputError
from patchtree.io.images import write_image, write_mask

LABELS = {"background": 0, "tumour": 1}


def make(root: Path, name: str, image: np.ndarray, mask: np.ndarray, white: bool = False) -> Pair:
    write_image(root / f"{name}.tif", image)
    write_mask(root / f"{name}.png", mask)
    return Pair(name, root / f"{name}.tif", root / f"{name}.png", white=white)


def test_what_is_cached_is_what_was_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 65536, (30, 40, 4), dtype=np.uint16)
    mask = rng.choice([0, 255], (30, 40)).astype(np.uint8)
    pair = make(tmp_path, "a", image, mask, white=True)
    (cached,) = cache_data(DataSet(tmp_path, (pair,), LABELS), tmp_path / "cache")
    assert isinstance(cached.image(), np.memmap)
    assert np.array_equal(cached.image(), image)
    assert np.array_equal(cached.mask(), mask > 0)
    assert (cached.shape, cached.channels) == ((30, 40), 4)
    assert cached.pixels == (np.count_nonzero(mask == 0), np.count_nonzero(mask))
    assert np.array_equal(cached.places(1), np.argwhere(mask))
    mean, std = statistics([cached])
    scaled = image.reshape(-1, 4) / 65535
    assert np.allclose(mean, scaled.mean(axis=0))
    assert np.allclose(std, scaled.std(axis=0))


def test_ignored_pixels_are_kept_and_counted_nowhere(tmp_path: Path) -> None:
    mask = np.array([[0, 300, 1, 300]], np.uint16)
    pair = make(tmp_path, "a", np.zeros((1, 4), np.uint8), mask)
    (cached,) = cache_data(DataSet(tmp_path, (pair,), LABELS, ignore=300), tmp_path / "cache")
    assert np.array_equal(cached.mask(), mask)
    assert cached.pixels == (1, 1)


def test_found_again_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = make(tmp_path, "a", np.zeros((5, 5), np.uint8), np.eye(5, dtype=np.uint8))
    dataset = DataSet(tmp_path, (pair,), LABELS)
    decoded: list[Pair] = []
    fill = patchtree.cache._fill
    monkeypatch.setattr(patchtree.cache, "_fill", lambda pair, *rest: (decoded.append(pair), fill(pair, *rest))[1])
    first = cache_data(dataset, tmp_path / "cache")
    assert cache_data(dataset, tmp_path / "cache", progress=list) == first
    assert len(decoded) == 1
    write_image(pair.image, np.ones((5, 5), np.uint8))
    os.utime(pair.image, ns=(0, 0))
    (again,) = cache_data(dataset, tmp_path / "cache")
    assert len(decoded) == 2
    assert again.image().all()


def test_half_written_entries_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = make(tmp_path, "a", np.zeros((5, 5), np.uint8), np.eye(5, dtype=np.uint8))
    dataset = DataSet(tmp_path, (pair,), LABELS)

    def full(path: Path, array: np.ndarray) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(InputError, match="no space left"):
        patch.setattr(np, "save", full)
        cache_data(dataset, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    (cached,) = cache_data(dataset, tmp_path / "cache")
    assert np.array_equal(cached.mask(), np.eye(5))


def test_what_cannot_be_cached(tmp_path: Path) -> None:
    grey = make(tmp_path, "a", np.zeros((5, 5), np.uint8), np.eye(5, dtype=np.uint8))
    colour = make(tmp_path, "b", np.zeros((5, 5, 3), np.uint8), np.eye(5, dtype=np.uint8))
    with pytest.raises(InputError, match=r"b.tif: its number of channels is 3, that of a.tif is 1;"):
        cache_data(DataSet(tmp_path, (grey, colour), LABELS), tmp_path / "cache")
    unknown = make(tmp_path, "c", np.zeros((5, 5), np.uint8), 2 * np.eye(5, dtype=np.uint8))
    with pytest.raises(InputError, match=r"c.png: holds ids that no label has"):
        cache_data(DataSet(tmp_path, (unknown,), LABELS), tmp_path / "cache")
    other = make(tmp_path, "d", np.zeros((5, 6), np.uint8), np.eye(5, dtype=np.uint8))
    with pytest.raises(InputError, match=r"d.png: has shape \(5, 5\), but d.tif has \(5, 6\)"):
        cache_data(DataSet(tmp_path, (other,), LABELS), tmp_path / "cache")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        cache_data(DataSet(tmp_path, (grey,), LABELS), tmp_path / "file")


@given(shape=st.tuples(st.integers(1, 30), st.integers(1, 30)), most=st.integers(1, 50), strip=st.integers(1, 100))
def test_places_are_pixels_of_their_class(shape: tuple[int, int], most: int, strip: int) -> None:
    mask = np.random.default_rng(shape).integers(0, 4, shape, dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patchtree.cache, "_PLACES", most)
        patch.setattr(patchtree.cache, "_STRIP", strip)
        pixels, places = locate(mask, classes=3, seed=1)
    for label in range(3):
        rows, columns = places[label].T
        assert pixels[label] == np.count_nonzero(mask == label)
        assert (mask[rows, columns] == label).all()
        assert len(np.unique(places[label], axis=0)) == len(places[label])
        assert len(places[label]) <= most
        if pixels[label] <= most:
            assert len(places[label]) == pixels[label]


def test_a_constant_channel_is_divided_by_one(tmp_path: Path) -> None:
    pair = make(tmp_path, "a", np.full((5, 5), 51, np.uint8), np.eye(5, dtype=np.uint8))
    mean, std = statistics(cache_data(DataSet(tmp_path, (pair,), LABELS), tmp_path / "cache"))
    assert (mean, std) == (pytest.approx((0.2,)), (1.0,))


def test_small_numbers_are_normalised_like_others(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((40, 50)).astype(np.float32)
    found = []
    for gain in (1, 2e-7):
        pair = make(tmp_path, f"{gain}", image * np.float32(gain), np.eye(40, 50, dtype=np.uint8))
        (mean,), (std,) = statistics(cache_data(DataSet(tmp_path, (pair,), LABELS), tmp_path / f"cache {gain}"))
        found.append((mean / gain, std / gain))
    assert found[0] == pytest.approx(found[1], rel=1e-4)
