"""Losses on patch pixels equal torch's and MONAI's on the painted image, in value and in gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceCELoss, DiceLoss, FocalLoss
from torch import Tensor
from torch.nn import functional as F

from patchtree import losses
from patchtree.errors import InputError
from patchtree.losses import cross_entropy, dice_loss, focal_loss, loss_of_sums, loss_sums, segmentation_loss
from patchtree.patches import count_labels
from patchtree.tokens import pad
from patchtree.tree import Tree, cover_level, grow

PATCH = 4
IGNORE = 255
SHAPES = [(64, 64), (37, 91), (70, 3), (19, 14, 11)]


@dataclass
class Scene:
    """Two images of one shape, each with its own tree, and the same logits on patch pixels and painted."""

    logits: Tensor  # (2, N, p, p, K)
    counts: Tensor  # (2, N, p, p, K)
    painted: Tensor  # (2, K, H, W), a function of logits
    masks: Tensor  # (2, H, W)

    @property
    def known(self) -> Tensor:
        """1 where a pixel is not ignored, (2, 1, H, W)."""
        return (self.masks != IGNORE)[:, None].float()

    @property
    def one_hot(self) -> Tensor:
        """(2, K, H, W), all 0 where a pixel is ignored."""
        ids = torch.where(self.masks == IGNORE, 0, self.masks)
        return F.one_hot(ids, self.painted.shape[1]).movedim(-1, 1) * self.known


def make_tree(shape: tuple[int, ...], rng: np.random.Generator) -> Tree:
    """A tree refined at random."""
    top = cover_level(shape, PATCH)
    return grow(shape, PATCH, top, lambda level, cells: (rng.random(len(cells)) < 0.7) | (level == top))


def make_scene(shape: tuple[int, ...], classes: int = 4, ignored: float = 0.2, seed: int = 0) -> Scene:
    rng = np.random.default_rng(seed)
    trees = [make_tree(shape, rng) for _ in range(2)]
    masks = rng.integers(0, classes, (2, *shape))
    masks[rng.random(masks.shape) < ignored] = IGNORE
    counts = pad([count_labels(m, tree, classes, ignore=IGNORE) for m, tree in zip(masks, trees, strict=True)])
    # Padding too gets logits, as from a model: they must not matter.
    logits = torch.from_numpy(rng.normal(0, 3, counts.shape).astype(np.float32)).requires_grad_()
    painted = []
    for own, tree in zip(logits, trees, strict=True):
        patch_pixels = np.arange(len(tree) * PATCH**tree.ndim).reshape(len(tree), *[PATCH] * tree.ndim)
        painted.append(own.flatten(0, -2)[torch.from_numpy(tree.paint(patch_pixels))].movedim(-1, 0))
    return Scene(logits, counts, torch.stack(painted), torch.from_numpy(masks))


def assert_same(scene: Scene, loss: Tensor, reference: Tensor) -> None:
    """Equal in value and in gradient with respect to the patch pixels' logits."""
    (gradient,) = torch.autograd.grad(loss, scene.logits)
    (expected,) = torch.autograd.grad(reference, scene.logits)
    torch.testing.assert_close(loss, reference, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [0.0, 0.2])
@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy_is_torch_s(shape: tuple[int, ...], ignored: float, weighted: bool) -> None:
    scene = make_scene(shape, ignored=ignored)
    weight = torch.tensor([0.1, 1.0, 2.5, 0.7]) if weighted else None
    reference = F.cross_entropy(scene.painted, scene.masks, weight=weight, ignore_index=IGNORE)
    assert_same(scene, cross_entropy(scene.logits, scene.counts, weight), reference)


@settings(max_examples=50)
@given(
    shape=st.lists(st.integers(1, 40), min_size=2, max_size=2).map(tuple),
    classes=st.integers(2, 5),
    ignored=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 2**32 - 1),
)
def test_cross_entropy_is_torch_s_for_any_tree(shape: tuple[int, ...], classes: int, ignored: float, seed: int) -> None:
    scene = make_scene(shape, classes, ignored, seed)
    reference = F.cross_entropy(scene.painted, scene.masks, ignore_index=IGNORE, reduction="sum")
    loss = cross_entropy(scene.logits, scene.counts)
    torch.testing.assert_close(loss * scene.known.sum(), reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("include_background", [False, True])
@pytest.mark.parametrize("ignored", [0.0, 0.2])
@pytest.mark.parametrize("shape", SHAPES)
def test_dice_loss_is_monai_s(shape: tuple[int, ...], ignored: float, include_background: bool, batch: bool) -> None:
    scene = make_scene(shape, ignored=ignored)
    reference = DiceLoss(include_background=include_background, batch=batch)
    expected = reference(scene.painted.softmax(1) * scene.known, scene.one_hot)
    assert_same(scene, dice_loss(scene.logits, scene.counts, include_background, batch), expected)


def test_dice_loss_of_absent_classes_is_monai_s() -> None:
    scene = make_scene((37, 91))
    scene.counts[0, ..., 2] = 0
    scene.counts[..., 3] = 0
    scene.masks[0][scene.masks[0] == 2] = IGNORE
    scene.masks[scene.masks == 3] = IGNORE
    expected = DiceLoss(smooth_nr=0.5, smooth_dr=0.5)(scene.painted.softmax(1) * scene.known, scene.one_hot)
    assert_same(scene, dice_loss(scene.logits, scene.counts, smooth=0.5), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("ignored", [0.0, 0.2])
@pytest.mark.parametrize("shape", SHAPES)
def test_focal_loss_is_monai_s(shape: tuple[int, ...], ignored: float, gamma: float) -> None:
    scene = make_scene(shape, ignored=ignored)
    per_pixel = FocalLoss(use_softmax=True, gamma=gamma, reduction="none")(scene.painted, scene.one_hot)
    assert_same(scene, focal_loss(scene.logits, scene.counts, gamma), per_pixel.sum() / scene.known.sum())


def test_focal_loss_is_monai_s_mean_times_the_classes() -> None:
    scene = make_scene((37, 91), ignored=0)
    expected = FocalLoss(use_softmax=True)(scene.painted, scene.one_hot) * 4
    assert_same(scene, focal_loss(scene.logits, scene.counts), expected)


def test_segmentation_loss_is_monai_s_dice_ce() -> None:
    scene = make_scene((37, 91), ignored=0)
    expected = DiceCELoss(include_background=False, softmax=True, batch=True)(scene.painted, scene.one_hot)
    assert_same(scene, segmentation_loss(scene.logits, scene.counts), expected)


def test_segmentation_loss_is_its_parts() -> None:
    scene = make_scene((37, 91))
    parts = cross_entropy(scene.logits, scene.counts) + dice_loss(scene.logits, scene.counts, False, batch=True)
    assert_same(scene, segmentation_loss(scene.logits, scene.counts), parts)


def test_classes_weigh_in_the_cross_entropy_alone() -> None:
    scene = make_scene((37, 91))
    weight = torch.linspace(0.5, 2, scene.logits.shape[-1])
    parts = cross_entropy(scene.logits, scene.counts, weight) + dice_loss(scene.logits, scene.counts, False, batch=True)
    assert_same(scene, loss_of_sums(loss_sums(scene.logits, scene.counts), weight), parts)


def test_batches_can_be_added_before_the_loss() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 4, 4, 3, generator=rng)
    counts = torch.randint(0, 9, logits.shape, generator=rng).float()
    counts[3, 3:] = 0
    parts = [loss_sums(logits[own], counts[own]) for own in (slice(3), slice(3, None))]
    torch.testing.assert_close(loss_of_sums(parts[0] + parts[1]), segmentation_loss(logits, counts))


@given(
    shape=st.sampled_from([(1, 1), (2, 5), (3, 4)]),
    side=st.sampled_from([(2, 2), (4, 4), (2, 2, 2)]),
    classes=st.integers(1, 4),
    part=st.sampled_from([1, 50, 1 << 16]),
    seed=st.integers(0, 2**32),
)
def test_sums_of_a_few_patches_at_a_time_are_those_of_all_at_once(
    shape: tuple[int, int], side: tuple[int, ...], classes: int, part: int, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, *side, classes, generator=rng).double().requires_grad_()
    counts = torch.randint(0, 3, logits.shape, generator=rng).double()
    wanted = torch.randn(4, classes, generator=rng).double()

    pixels = list(range(logits.ndim - 1))
    log = logits.log_softmax(-1)
    terms = log * counts, counts, log.exp() * counts, log.exp() * counts.sum(-1, keepdim=True)
    slow = torch.stack([term.sum(pixels) for term in terms])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "_PART", part)
        quick = loss_sums(logits, counts)
        gradients = [torch.autograd.grad(sums, logits, wanted)[0] for sums in (quick, slow)]
    torch.testing.assert_close(quick, slow)
    torch.testing.assert_close(*gradients)


Loss = Callable[[Tensor, Tensor], Tensor]
every_loss = pytest.mark.parametrize("loss", [cross_entropy, dice_loss, focal_loss, segmentation_loss])


@every_loss
def test_nothing_counted_is_no_loss(loss: Loss) -> None:
    logits = torch.randn(2, 3, 4, 4, 3, requires_grad=True)
    value = loss(logits, torch.zeros_like(logits))
    value.backward()
    assert value == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_a_weight_of_nothing_is_no_loss() -> None:
    logits = torch.randn(1, 3, 4, 4, 2, requires_grad=True)
    counts = torch.zeros_like(logits)
    counts[..., 0] = 1
    assert cross_entropy(logits, counts, torch.tensor([0.0, 1.0])) == 0


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(loss: Loss, dtype: torch.dtype) -> None:
    scene = make_scene((64, 64))
    half = scene.logits.detach().to(dtype).requires_grad_()
    value = loss(half, scene.counts)
    assert torch.equal(value, loss(half.float(), scene.counts))
    value.backward()
    assert half.grad is not None
    assert half.grad.dtype == dtype


@every_loss
def test_autocast_changes_nothing(loss: Loss) -> None:
    scene = make_scene((64, 64))
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(scene.logits, scene.counts)
    assert torch.equal(inside, loss(scene.logits, scene.counts))


@every_loss
def test_saturated_logits_keep_finite_gradients(loss: Loss) -> None:
    counts = torch.ones(1, 2, 4, 4, 3)
    logits = torch.tensor([1e4, 0.0, -1e4]).expand(counts.shape).clone().requires_grad_()
    kwargs = {"gamma": 0.5} if loss is focal_loss else {}
    value = loss(logits, counts, **kwargs)
    value.backward()
    assert logits.grad is not None
    assert value.isfinite()
    assert logits.grad.isfinite().all()


@every_loss
@pytest.mark.parametrize("shape", [(2, 3, 4, 4, 2), (2, 3, 4, 4, 1), (3, 4, 4, 3)])
def test_other_shapes_are_refused(loss: Loss, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"logits are \(2, 3, 4, 4, 3\), counts"):
        loss(torch.zeros(2, 3, 4, 4, 3), torch.zeros(shape))
    with pytest.raises(InputError, match="give both as"):
        loss(torch.zeros(4, 3), torch.zeros(4, 3))


def test_a_single_class_is_refused() -> None:
    one = torch.ones(1, 4, 16, 16, 1)
    with pytest.raises(InputError, match="at least 2 classes"):
        segmentation_loss(one, one)
    with pytest.raises(InputError, match="at least 2 classes"):
        dice_loss(one, one, include_background=False)
    assert dice_loss(one, one).item() == pytest.approx(0, abs=1e-5)
