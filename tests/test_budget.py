"""Densities follow what labels need; windows hold about as many tokens whatever the density."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from patchtree.budget import choose_density, choose_fraction, choose_window, with_budget
from patchtree.patcher import Patcher

PATCHER = Patcher(patch_size=16, detail="residual")


def stripes(width: int, side: int = 1200) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image of stripes of a width, on a ground of coarse ones, and their mask."""
    mask = np.broadcast_to((np.arange(side) // width % 2).astype(np.uint8), (side, side)).copy()
    rng = np.random.default_rng(0)
    return (mask * 100 + rng.integers(0, 9, mask.shape)).astype(np.uint8), mask


def test_coarse_labels_need_few_tokens() -> None:
    image, mask = stripes(400, 4200)
    assert choose_density([(image, mask)], PATCHER, classes=2) == 1 / 4096
    assert choose_density([(image, mask), (image[:, :2100], mask[:, :2100])], PATCHER, classes=2) == 1 / 3229.98046875


@pytest.mark.parametrize(("side", "tokens"), [(3000, 4096), (2048, 4096), (1024, 4096), (256, 256), (100, 39)])
def test_small_images_get_as_many_as_they_have(side: int, tokens: int) -> None:
    image, mask = stripes(400, side)
    assert round(side**2 * choose_density([(image, mask)], PATCHER, classes=2)) == tokens


def test_patches_of_any_size_keep_as_many_pixels() -> None:
    image, mask = stripes(400, 2560)
    coarse, fine = (choose_density([(image, mask)], Patcher(side, detail="residual"), 2) for side in (16, 8))
    assert fine == 4 * coarse
    assert choose_window(fine, 300, patch_size=8) == choose_window(coarse, 300, patch_size=16) / 2


def test_fine_labels_need_more() -> None:
    needed = [1 / choose_density([stripes(width, 4200)], PATCHER, classes=2) for width in (100, 6)]
    assert needed == [4096, 1024]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_images_that_few_patches_show_get_few(dtype: type) -> None:
    rng = np.random.default_rng(0)
    mask = np.kron(np.eye(2, dtype=np.uint8), np.ones((1024, 1024), np.uint8))
    sharp = (100 * mask + cv2.resize(rng.integers(0, 100, (256, 256), np.uint8), (2048, 2048))).astype(dtype)
    smooth = cv2.GaussianBlur(sharp.astype(np.float32), (0, 0), 40).astype(dtype)
    tokens = [round(2048**2 * choose_density([(image, mask)], PATCHER, classes=2)) for image in (smooth, sharp)]
    assert tokens[0] < tokens[1] == 4096
    # One that needs all is enough, and one of a single value needs nothing.
    both = [(smooth, mask), (np.zeros_like(sharp), mask), (sharp, mask)]
    assert round(2048**2 * choose_density(both, PATCHER, classes=2)) == 4096


@pytest.mark.parametrize(("side", "tokens"), [(48, 9), (256, 256), (1024, 512), (2048, 1024)])
def test_small_images_get_512_or_all_whatever_they_show(side: int, tokens: int) -> None:
    mask = np.kron(np.eye(2, dtype=np.uint8), np.ones((side // 2, side // 2), np.uint8))
    flat = np.full_like(mask, 7)
    assert round(side**2 * choose_density([(flat, mask)], Patcher(16, detail=aligned), classes=2)) == tokens


def aligned(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Show every quarter of an image alike, so that labels are no reason for more."""
    return np.ones(image.shape[:2])


def test_no_foreground_asks_for_nothing() -> None:
    image, mask = stripes(6, 4200)
    assert choose_density([(image, np.zeros_like(mask))], PATCHER, classes=2) == 1 / 4096


def test_ignored_pixels_do_not_count() -> None:
    (image, mask), (other, coarse) = stripes(6, 4200), stripes(400, 4200)
    mask[:, 2100:], coarse[:, :2100] = coarse[:, 2100:], 255
    image[:, 2100:] = other[:, 2100:]
    assert choose_density([(image, mask)], PATCHER, classes=2) > choose_density(
        [(image, coarse)], PATCHER, classes=2, ignore=255
    )


@pytest.mark.parametrize("density", [1 / 4096, 1 / 2400, 1 / 512])
def test_windows_hold_the_tokens_asked_for(density: float) -> None:
    side = choose_window(density, tokens=300, patch_size=16)
    assert side % 64 == 0
    assert side == 1024 or 0.7 < density * side**2 / 300 < 1.4


def test_budget_is_in_proportion_within_bounds() -> None:
    assert with_budget(PATCHER, (1024, 1024), density=1 / 4096).budget == 256
    assert with_budget(PATCHER, (10, 10), density=1 / 4096, least=64).budget == 64
    assert with_budget(Patcher(max_level=0), (100, 100), density=1e-9).budget == 49
    assert with_budget(Patcher(), (10**5, 10**5), density=1, most=100).budget == 100


@pytest.mark.parametrize(
    ("scores", "fraction"), [({0.25: 0.5, 0.5: 0.5, 1.0: 0.497}, 1.0), ({0.25: 0.946, 0.5: 0.95, 1.0: 0.93}, 0.5)]
)
def test_fewer_patches_only_where_they_are_better(scores: dict[float, float], fraction: float) -> None:
    assert choose_fraction(scores) == fraction
