"""What every adapted model must do, written once: a case names a model, and `check_*` hold it to its original."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import patchtree as pt
from patchtree.models.adapt import adapt
from patchtree.models.adapt.base import Adapted
from patchtree.patcher import Patches
from patchtree.tokens import Tokens

# Parts of the names of weights: those that many models start at zero, where a mistake would not show, ...
_RANDOM = ("pos_embed", "position", "_token", "relative", "bias", "prefix", "gamma")
# ... and those of patches and positions.
_EMBEDDINGS = ("patch_embed", "conv_proj", "pos_embed", "position_embed", "relative_position", "embeds.", "freqs")


@dataclass(frozen=True)
class Case:
    """One named model or configuration, small and with random weights.

    Attributes:
        name: as the test is called.
        build: makes the original; it is put in evaluation mode and its positions are made random.
        features: original and image ``(B, C, *shape)`` -> ``(B, cells, D)``, in array order.
        native: image shape that the original was made for.
        other: another shape, for which the original's own library has a path; None if it has none.
        resized: as `features`, for `other`; None: `features`.
        pooled: original and image -> its pooled output; None if it has none.
        tolerance: largest difference.
    """

    name: str
    build: Callable[[], nn.Module]
    features: Callable[[Any, Tensor], Tensor]
    native: tuple[int, ...]
    other: tuple[int, ...] | None = None
    resized: Callable[[Any, Tensor], Tensor] | None = None
    pooled: Callable[[Any, Tensor], Tensor] | None = None
    channels: int = 3
    tolerance: float = 1e-5

    def make(self) -> tuple[nn.Module, Adapted]:
        torch.manual_seed(0)
        model = self.build().eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if any(word in name for word in _RANDOM):
                    weight.normal_(std=0.5)
                elif weight.ndim == 2 and ("att" in name or "in_proj" in name):
                    weight.normal_(std=0.2)  # as initialised, all tokens are attended to alike, wherever they are
        return model, adapt(model)


def uniform(image: Tensor, patch_size: int) -> Tokens:
    """Cut images ``(B, C, *shape)`` along a uniform tree."""
    tree = pt.Tree.uniform(tuple(image.shape[2:]), patch_size)
    arrays = [np.ascontiguousarray(np.moveaxis(item.numpy(), 0, -1)) for item in image]
    return pt.collate([Patches(pt.cut(array, tree), tree) for array in arrays])


def in_tree_order(features: Tensor, tokens: Tokens) -> Tensor:
    """Reorder the features of a grid in array order, ``(B, cells, D)``, as the tree's leaves are."""
    tree = tokens.trees[0]
    grid = tuple(-(-length // tree.patch_size) for length in tree.shape)
    order = np.ravel_multi_index(tuple(tree.index.T), grid)
    return features[:, torch.from_numpy(order)]


def adaptive(count: int, patch_size: int, channels: int, ndim: int = 2, seed: int = 0) -> Patches:
    """Give noise along about `count` leaves of different sizes, finer towards one corner."""
    rng = np.random.default_rng(seed)
    cells = 2 ** int(np.ceil(np.log2(max(2, count) * 2) / ndim))
    ramp = np.linspace(0.0, 1.0, 2 * cells, dtype=np.float32) ** 3
    noise = rng.normal(size=(2 * cells,) * ndim).astype(np.float32)
    for axis in range(ndim):
        noise *= ramp.reshape((-1,) + (1,) * (ndim - 1 - axis))
    # Planned on patches of 2 pixels, which is quick in 3-D too, then scaled.
    plan = pt.Patcher(2, count, detail="variance", ndim=ndim).plan(noise)
    tree = dataclasses.replace(plan, patch_size=patch_size, shape=(cells * patch_size,) * ndim)
    pixels = rng.normal(size=(len(tree), *(patch_size,) * ndim, channels)).astype(np.float32)
    return Patches(pixels, tree)


def batch(case: Case, model: Adapted, *counts: int, length: int | None = None) -> Tokens:
    items = [adaptive(n, model.patch_size, case.channels, model.ndim, seed) for seed, n in enumerate(counts)]
    return pt.collate(items, length=length)


def close(left: Tensor, right: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(left, right, atol=tolerance, rtol=tolerance)


@torch.no_grad()
def check_equal(case: Case) -> None:
    """(a) On a uniform tree, the output is the original's: at its own grid, and at another where its library can."""
    model, adapted = case.make()
    for shape, features in ((case.native, case.features), (case.other, case.resized or case.features)):
        if shape is None:
            continue
        image = torch.randn(2, case.channels, *shape)
        tokens = uniform(image, adapted.patch_size)
        encoded = adapted.encode(tokens, depths=range(adapted.depth))
        expected = in_tree_order(features(model, image), tokens)
        close(encoded.tokens, expected, case.tolerance)
        assert len(encoded.depths) == adapted.depth
        assert all(own.shape == (*tokens.valid.shape, adapted.depths_width) for own in encoded.depths)
        if case.pooled is not None and shape == case.native:
            assert encoded.pooled is not None
            close(encoded.pooled, case.pooled(model, image), case.tolerance)


@torch.no_grad()
def check_padding(case: Case) -> None:
    """(b) Valid tokens are unchanged by padding, packed or masked."""
    _, adapted = case.make()
    alone = [adapted.encode(batch(case, adapted, n)) for n in (23, 40)]  # noise of one seed: the first of each batch
    del alone[1]
    pair = pt.collate(
        [adaptive(n, adapted.patch_size, case.channels, adapted.ndim, seed) for seed, n in enumerate((23, 61))],
        length=70,
    )
    count = len(pair.trees[0])
    packs = adapted.packs
    for packed in {packs, False}:
        adapted.packs = packed
        encoded = adapted.encode(pair)
        close(encoded.tokens[0, :count], alone[0].tokens[0, :count], case.tolerance)
        if alone[0].pooled is not None:
            assert encoded.pooled is not None
            close(encoded.pooled[0], alone[0].pooled[0], case.tolerance)


@torch.no_grad()
def check_permutation(case: Case) -> None:
    """(c) Permuting the tokens permutes the output."""
    _, adapted = case.make()
    tokens = batch(case, adapted, 37)
    order = torch.randperm(tokens.valid.shape[1])
    moved = dataclasses.replace(
        tokens, **{name: getattr(tokens, name)[:, order] for name in ("pixels", "centre", "level", "valid")}
    )
    close(adapted(moved), adapted(tokens)[:, order], case.tolerance)


def check_gradients(case: Case) -> None:
    """(d) Gradients reach the patch embedding, and the positions where they are learned."""
    model, adapted = case.make()
    (adapted(batch(case, adapted, 29)) ** 2).sum().backward()
    wanted = [
        (name, weight)
        for name, weight in model.named_parameters()
        if any(word in name for word in _EMBEDDINGS)
        and weight.requires_grad
        and not any(word in name for word in ("mask_token", "decoder", "text_model"))
    ]
    assert wanted
    for name, weight in wanted:
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


@torch.no_grad()
def check_saved(case: Case, folder: Any) -> None:
    """(e) Weights survive torch.save and safetensors, are shared with the original, and keep its names."""
    from safetensors.torch import load_file, save_file

    model, adapted = case.make()
    tokens = batch(case, adapted, 29)
    expected = adapted(tokens)
    state = adapted.state_dict()
    assert set(state) == {f"model.{name}" for name in model.state_dict()}
    torch.save(state, folder / "weights.pt")
    save_file({name: weight.contiguous().clone() for name, weight in state.items()}, folder / "weights.safetensors")
    for read in (torch.load(folder / "weights.pt", weights_only=True), load_file(folder / "weights.safetensors")):
        torch.manual_seed(1)
        other = adapt(self_built := case.build().eval())
        other.load_state_dict(read)
        assert other.model is self_built
        close(other(tokens), expected, case.tolerance)


@torch.no_grad()
def check_counts(case: Case) -> None:
    """(f) Works for 7 and for 4096 tokens."""
    _, adapted = case.make()
    for count in (7, 4096):
        tokens = batch(case, adapted, count)
        out = adapted(tokens)
        assert out.shape == (*tokens.valid.shape, adapted.width)
        assert bool(out.isfinite().all())


CHECKS = (check_equal, check_padding, check_permutation, check_gradients, check_saved, check_counts)
