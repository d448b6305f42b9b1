"""Muon where bfloat16 is emulated."""

from __future__ import annotations

import pytest
import torch
from timm.optim import muon
from torch import Tensor, nn

from patchtree.muon import Float32Muon


def moved(kind: type[muon.Muon], gradient: Tensor) -> Tensor:
    weight = nn.Parameter(torch.zeros_like(gradient))
    weight.grad = gradient.clone()
    kind([weight], lr=1.0).step()
    return weight.detach()


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (6, 4, 3, 3)])
def test_it_moves_as_timms_does(shape: tuple[int, ...]) -> None:
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    own, theirs = moved(Float32Muon, gradient), moved(muon.Muon, gradient)
    assert (own - theirs).norm() < 0.02 * theirs.norm()
    # Bits that bfloat16 has not.
    assert not torch.equal(own, theirs)


def test_timms_own_stays_as_it_is() -> None:
    usual = muon.zeropower_via_newtonschulz
    moved(Float32Muon, torch.eye(3))
    with pytest.raises(RuntimeError):
        moved(Float32Muon, torch.eye(3).to_sparse())
    assert muon.zeropower_via_newtonschulz is usual
