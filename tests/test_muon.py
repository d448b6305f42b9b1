"""Muon for many small matrices, and where bfloat16 is emulated."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from timm.optim import muon
from torch import Tensor, nn

from patchtree.models.precision import half_is_quick
from patchtree.muon import StackedMuon

_SHAPES = ((8, 8), (24, 8), (8, 24), (6, 4, 3, 3), (8, 8), (8,), (6, 4, 3, 3))


def moved(kind: type[muon.Muon], gradients: list[list[Tensor]]) -> list[Tensor]:
    # From 0 on, so that what is compared is how they moved.
    weights = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients[0]]
    optimizer = kind(weights, lr=1.0, weight_decay=0.1, nesterov=True)
    for step in gradients:
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
    return [weight.detach() for weight in weights]


@pytest.mark.parametrize("seed", range(3))
def test_it_moves_as_timms_does(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradients = [[torch.randn(shape, generator=generator) for shape in _SHAPES] for _ in range(3)]
    own, theirs = moved(StackedMuon, gradients), moved(muon.Muon, gradients)
    for one, other in zip(own, theirs, strict=True):
        assert (one - other).norm() < 0.02 * other.norm()
    if not half_is_quick("cpu"):
        # Bits that bfloat16 has not.
        assert not any(torch.equal(one, other) for one, other in zip(own, theirs, strict=True) if one.ndim > 1)
        usual = muon.zeropower_via_newtonschulz
        monkeypatch.setattr(muon, "zeropower_via_newtonschulz", partial(usual, dtype=torch.float32))
        for one, other in zip(own, moved(muon.Muon, gradients), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quick", [True, False])
def test_it_orthogonalises_in_what_is_quick(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, kinds = muon.zeropower_via_newtonschulz, []

    def watched(*args: Any, dtype: torch.dtype, **options: Any) -> Tensor:
        kinds.append(dtype)
        return usual(*args, dtype=dtype, **options)

    monkeypatch.setattr("patchtree.muon.half_is_quick", lambda device: quick)
    monkeypatch.setattr(muon, "zeropower_via_newtonschulz", watched)
    moved(StackedMuon, [[torch.eye(8), torch.eye(8), torch.ones(4, 8)]])
    assert kinds == [torch.bfloat16 if quick else torch.float32] * 2


def test_timms_own_stays_as_it_is() -> None:
    usual = muon.muon
    moved(StackedMuon, [[torch.eye(3)]])
    with pytest.raises(RuntimeError):
        moved(StackedMuon, [[torch.eye(3).to_sparse()]])
    assert muon.muon is usual
