from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from patchtree.models.ghosts import ghost_batch
from patchtree.models.layers import GhostConv, Place, merge, split
from patchtree.patches import cut
from patchtree.tree import Tree


def cells(images: Tensor, tree: Tree) -> Tensor:
    """Cut (B, C, *shape) into (B * N, p**d, C)."""
    last = images.detach().movedim(1, -1).numpy()
    return torch.from_numpy(np.stack([cut(image, tree) for image in last])).flatten(0, 1).flatten(1, -2)


@pytest.mark.parametrize("grid", [4, 2, 1])
@pytest.mark.parametrize("level", [0, 2])
@pytest.mark.parametrize("counts", [(3, 5), (1, 4), (3, 1, 2)])
def test_on_a_uniform_tree_it_is_the_convolution_of_the_image(counts: tuple[int, ...], level: int, grid: int) -> None:
    torch.manual_seed(0)
    tree = Tree.uniform(tuple(4 * n << level for n in counts), patch_size=4, level=level)
    layer = GhostConv(5, 7, tree.ndim)
    index = ghost_batch([tree, tree], len(tree), [grid])[grid]
    # An image of one pixel a cell.
    picture = Tree.uniform(tuple(grid * n for n in counts), patch_size=grid)
    images = torch.randn(2, 5, *picture.shape)
    whole = layer.conv(F.pad(images, (1, 1) * tree.ndim))
    torch.testing.assert_close(layer(cells(images, picture), index), cells(whole, picture), atol=1e-5, rtol=1e-5)


def test_the_border_comes_from_leaves_of_other_sizes() -> None:
    #  0 | 1 2      leaves 1 to 4 are half as large as 0, 5, 6
    #    | 3 4
    #  5 | 6
    tree = Tree(
        np.array([1, 0, 0, 0, 0, 1, 1], np.uint8),
        np.array([[0, 0], [0, 2], [0, 3], [1, 2], [1, 3], [1, 0], [1, 1]], np.int32),
        patch_size=4,
        shape=(16, 16),
        max_level=2,
    )
    right = GhostConv(1, 1)
    with torch.no_grad():
        right.conv.weight.zero_()[..., 1, 2] = 1
        right.conv.bias.zero_()
    seen = right(torch.arange(7.0).view(7, 1, 1) + 10, ghost_batch([tree], 7, [1])[1])
    # Beside leaf 0 lies a ghost of its own size, whose centre is the corner where leaf 4 begins.
    assert seen.flatten().tolist() == [14, 12, 0, 14, 0, 16, 0]


@pytest.mark.parametrize(("step", "ndim"), [(2, 2), (4, 2), (2, 3), (4, 3)])
def test_merge_takes_blocks_and_split_puts_them_back(step: int, ndim: int) -> None:
    x = torch.randn(3, 8**ndim, 5)
    merged = merge(x, step, ndim)
    block = x.view(3, *(8,) * ndim, 5)[(slice(None), *(slice(step, 2 * step),) * ndim)]
    diagonal = sum((8 // step) ** axis for axis in range(ndim))
    torch.testing.assert_close(merged[:, diagonal], block.reshape(3, -1))
    torch.testing.assert_close(split(merged, step, ndim), x)


def test_place_tells_leaves_apart_in_units_of_the_longer_side() -> None:
    torch.manual_seed(0)
    place = Place(32)
    centre = torch.tensor([[[8.0, 8.0], [8.0, 24.0], [120.0, 248.0]]])
    extent = torch.tensor([[128.0, 256.0]])
    here = place(centre, torch.full((1, 3), 16.0), extent)
    assert torch.cdist(here, here)[0].fill_diagonal_(1).min() > 0.01
    assert (here - place(centre, torch.full((1, 3), 32.0), extent)).norm(dim=-1).min() > 0.01
    torch.testing.assert_close(here, place(centre * 3, torch.full((1, 3), 16.0), extent * 3))
    torch.testing.assert_close(here, place(centre, torch.full((1, 3), 16.0), torch.tensor([[200.0, 256.0]])))
