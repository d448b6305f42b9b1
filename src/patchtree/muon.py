"""timm's Muon, on processors without instructions for bfloat16 as well."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from timm.optim import muon


class Float32Muon(muon.Muon):
    """Muon that orthogonalises in float32.

    timm's does so in bfloat16, which takes ten times as long where it is emulated.

    >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
    >>> optimizer = Float32Muon([weight], lr=1.0)
    >>> weight.grad = torch.diag(torch.tensor([3.0, -4.0]))
    >>> optimizer.step()
    >>> weight.sign().tolist()
    [[-1.0, 0.0], [0.0, 1.0]]
    """

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make a step."""
        # timm has no option for it.
        usual = muon.zeropower_via_newtonschulz
        muon.zeropower_via_newtonschulz = partial(usual, dtype=torch.float32)
        try:
            loss: float | None = super().step(closure)  # type: ignore[no-untyped-call]
        finally:
            muon.zeropower_via_newtonschulz = usual
        return loss
