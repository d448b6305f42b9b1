"""Segmenter with every head around a transformer: shapes, padding, depths, learning two images by heart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

import patchtree as pt
from patchtree.errors import InputError
from patchtree.losses import cross_entropy
from patchtree.models.ghosts import ghost_batch
from patchtree.models.heads import HEADS, build_head
from patchtree.models.mesh import MeshEncoder
from patchtree.models.segmenter import Segmenter, label_names
from patchtree.patcher import Patches
from patchtree.tokens import Tokens

TINY: dict[str, Any] = {"embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 0, "img_size": 64}


def vit(head: str | None, patch_size: int = 8, labels: int = 2, **options: Any) -> Segmenter:
    torch.manual_seed(0)
    encoder = pt.adapt(timm.create_model("vit_tiny_patch16_224", **{**TINY, "patch_size": patch_size, **options}))
    return Segmenter(encoder, build_head(head, encoder, labels, patch_size), labels)


def discs(count: int = 2) -> tuple[Tokens, torch.Tensor]:
    """Noisy images of a disc each, cut by variance, and the pixels of each class."""
    rng = np.random.default_rng(0)
    patches, counts = [], []
    rows, columns = np.indices((48, 64))
    for at in range(count):
        mask = (np.hypot(rows - 20 - 8 * at, columns - 40 + 12 * at) < 12).astype(np.uint8)
        image = (mask[..., None] * 90 + rng.integers(0, 100, (48, 64, 3))).astype(np.uint8)
        patches.append(pt.Patcher(8, 24 + 4 * at, detail="variance")(image))
        counts.append(torch.from_numpy(pt.count_labels(mask, patches[-1].tree, 2)))
    tokens = pt.collate(patches, (0.3,) * 3, (0.2,) * 3)
    padded = torch.zeros(count, tokens.valid.shape[1], 8, 8, 2)
    for own, part in zip(padded, counts, strict=True):
        own[: len(part)] = part
    return tokens, padded


@pytest.mark.parametrize("head", HEADS)
def test_every_head_learns_two_images_by_heart(head: str) -> None:
    tokens, counts = discs()
    model = vit(head)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(40):
        loss = cross_entropy(model(tokens), counts)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert abs(losses[0] - np.log(2)) < 0.1
    assert losses[-1] < losses[0] / 5, losses


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_padding_changes_nothing(head: str) -> None:
    tokens, _ = discs()
    first = len(tokens.trees[0])
    assert first < tokens.valid.shape[1]
    model = vit(head).eval()
    alone, _ = discs(count=1)
    torch.testing.assert_close(model(tokens)[0, :first], model(alone)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_gradients_reach_every_weight(head: str) -> None:
    tokens, _ = discs()
    model = vit(head)
    model(tokens)[tokens.valid].square().mean().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.any(), name


@pytest.mark.parametrize(
    ("head", "patch_size", "grids"),
    [("reference", 4, (1,)), ("depths", 4, (1,)), ("depths", 16, (4, 2, 1)), ("linear", 6, ())],
)
def test_patches_of_any_size_that_suits(head: str, patch_size: int, grids: tuple[int, ...]) -> None:
    model = vit(head, patch_size, labels=3)
    tree = pt.Tree.uniform((40, 50), patch_size)
    pixels = np.random.default_rng(0).random((len(tree), patch_size, patch_size, 3), np.float32)
    tokens = pt.collate([Patches(pixels, tree)])
    assert model.grids == grids
    assert model(tokens).shape == (1, len(tree), patch_size, patch_size, 3)
    beforehand = ghost_batch(tokens.trees, tokens.valid.shape[1], model.grids)
    assert model(tokens, beforehand).equal(model(tokens))


@pytest.mark.parametrize("head", HEADS)
def test_volumes(head: str) -> None:
    monai = pytest.importorskip("monai.networks.nets")
    net = monai.ViT(1, (16,) * 3, (8,) * 3, hidden_size=48, mlp_dim=96, num_layers=2, num_heads=3)
    net.img_size = (16,) * 3
    encoder = pt.adapt(net)
    model = Segmenter(encoder, build_head(head, encoder, 3, 8), 3)
    tree = pt.Tree.uniform((16, 16, 8), 8)
    tokens = pt.collate([Patches(np.zeros((4, 8, 8, 8, 1), np.float32), tree)])
    assert model(tokens).shape == (1, 4, 8, 8, 8, 3)


def test_depths_are_spread_over_the_encoder() -> None:
    assert vit("depths", patch_size=16, depth=12).head.depths == (3, 7)  # type: ignore[union-attr]
    assert vit("depths", patch_size=8, depth=1).head.depths == (0,)  # type: ignore[union-attr]


def test_the_reference_head_sees_its_neighbours_and_the_linear_one_does_not() -> None:
    tokens, _ = discs(count=1)
    for head, sees in (("linear", False), ("reference", True)):
        model = vit(head, depth=0).eval()  # without attention
        changed = tokens.pixels.clone().requires_grad_()
        model(pt.Tokens(**{**vars(tokens), "pixels": changed}))[0, 0].sum().backward()
        assert changed.grad is not None
        assert bool(changed.grad[0, 1:].any()) == sees


def test_an_encoder_of_logits_needs_no_head() -> None:
    tokens, _ = discs()
    net = nn.Conv2d(3, 4, 1)
    model = Segmenter(pt.through_mosaic(net), None, 4)
    assert model.grids == ()
    torch.testing.assert_close(model(tokens)[1, 2], net(tokens.pixels[1, 2]).movedim(0, -1))


def test_labels_are_names_or_a_number() -> None:
    assert vit("linear").labels == {"background": 0, "class 1": 1}
    assert label_names({"b": 1, "a": 0}) == {"a": 0, "b": 1}
    assert list(label_names({"b": 1, "a": 0})) == ["a", "b"]
    for wrong in ({"a": 1}, {"a": 0, "b": 0}, {}, 0):
        with pytest.raises(InputError, match=r"labels .* are not possible"):
            label_names(wrong)


def test_tokens_of_another_kind_are_refused() -> None:
    tokens, _ = discs()
    with pytest.raises(
        InputError, match="tokens have 3 channels and patches of 8 x 8 pixels, the model was made for 3 "
    ):
        vit("linear", patch_size=16)(tokens)
    with pytest.raises(InputError, match="made for 1 and 8 x 8"):
        vit("linear", in_chans=1)(tokens)


def test_heads_are_chosen_by_name() -> None:
    with pytest.raises(InputError, match="head 'conv' is unknown; choose one of linear, reference, depths"):
        vit("conv")
    with pytest.raises(InputError, match=r"patch size 12 .* power of two, 4 or more; the linear head takes any"):
        vit("reference", patch_size=12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("head", [*HEADS, "none: the reference model"])
@torch.no_grad()
def test_models_of_another_type_give_nearly_the_same(head: str, dtype: torch.dtype) -> None:
    tokens, _ = discs()
    model = (vit(head) if head in HEADS else pt.build_model("patchtree:nano", 2, patch_size=8)).eval()
    expected = model(tokens)[tokens.valid]
    found = model.to(dtype)(tokens)[tokens.valid]
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.1 if dtype == torch.bfloat16 else 1e-4)


@pytest.mark.filterwarnings("ignore")  # torch's own, of what it compiles
@pytest.mark.parametrize("name", ["linear", "reference", "mosaic"])
@torch.no_grad()
def test_compiled_models_give_the_same(name: str) -> None:
    tokens, _ = discs()
    assert not tokens.valid.all()
    mosaic = Segmenter(pt.through_mosaic(nn.Conv2d(3, 2, 3, padding=1)), None, 2)
    model = (mosaic if name == "mosaic" else vit(name)).eval()
    expected = model(tokens)[tokens.valid]
    torch.testing.assert_close(torch.compile(model, backend="eager")(tokens)[tokens.valid], expected)


def test_what_is_no_batch_of_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="the model reads Tokens and was given Tensor"):
        vit("linear")(torch.zeros(1, 3, 64, 64))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="size 'huge' is unknown; choose one of nano, tiny"):
        MeshEncoder("huge")
