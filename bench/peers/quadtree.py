"""The published way to adaptive patches, written from the paper's description: a greedy quadtree and a resize a leaf.

E. Zhang et al., Adaptive Patching for High-resolution Image Segmentation with Transformers, SC 2024. The edge map is
grey, Gaussian blur, Canny. The quadtree starts from the whole (square) image; the leaf with the most edge pixels is
split into four until there are as many leaves as the sequence is long. Each leaf's pixels are resized to p x p.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

# y, x and side in pixels.
Square = tuple[int, int, int]


def find_edges(image: NDArray[np.uint8], low: float, high: float) -> NDArray[np.uint8]:
    """Grey, Gaussian blur, Canny: ``(H, W, 3)`` or ``(H, W)`` -> ``(H, W)``, 255 on edges."""
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return cv2.Canny(cv2.GaussianBlur(grey, (3, 3), 0), low, high)


def split_by_list(edges: NDArray[np.uint8], patch_size: int, budget: int) -> list[Square]:
    """Look through the list of all leaves for the next one to split: quadratic in the number of leaves."""
    leaves = [(_detail(edges, (0, 0, len(edges))), (0, 0, len(edges)))]
    while len(leaves) + 3 <= budget:
        most = max(range(len(leaves)), key=lambda at: leaves[at][0])
        value, square = leaves[most]
        if not value:
            break
        del leaves[most]
        leaves += [_weighed(edges, child, patch_size) for child in _children(square)]
    return [square for _, square in leaves]


def split_by_heap(edges: NDArray[np.uint8], patch_size: int, budget: int) -> list[Square]:
    """Keep the leaves in a heap."""
    heap = [(-_detail(edges, (0, 0, len(edges))), (0, 0, len(edges)))]
    while len(heap) + 3 <= budget and heap[0][0]:
        _, square = heapq.heappop(heap)
        for child in _children(square):
            value, square = _weighed(edges, child, patch_size)
            heapq.heappush(heap, (-value, square))
    return [square for _, square in heap]


def cut(image: NDArray[np.uint8], squares: list[Square], patch_size: int) -> NDArray[np.uint8]:
    """Resize each leaf's pixels, ``(N, p, p, C)``."""
    patches = []
    for y, x, side in squares:
        part = image[y : y + side, x : x + side]
        patches.append(cv2.resize(part, (patch_size, patch_size), interpolation=cv2.INTER_CUBIC))
    return np.stack(patches)


def tokenize(
    image: NDArray[np.uint8],
    patch_size: int,
    budget: int,
    low: float,
    high: float,
    split: Callable[[NDArray[np.uint8], int, int], list[Square]],
) -> NDArray[np.uint8]:
    """Image in memory -> patches."""
    return cut(image, split(find_edges(image, low, high), patch_size, budget), patch_size)


def _children(square: Square) -> list[Square]:
    y, x, side = square
    half = side // 2
    return [(y + dy, x + dx, half) for dy in (0, half) for dx in (0, half)]


def _weighed(edges: NDArray[np.uint8], square: Square, patch_size: int) -> tuple[int, Square]:
    """Weigh a leaf; one of the smallest size has nothing left to split for."""
    return (_detail(edges, square) if square[2] > patch_size else 0), square


def _detail(edges: NDArray[np.uint8], square: Square) -> int:
    y, x, side = square
    return cv2.countNonZero(edges[y : y + side, x : x + side])
