"""timm's Muon, for many small matrices and for processors without instructions for bfloat16."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from timm.optim import muon
from torch import Tensor

from patchtree.models.precision import half_is_quick


class StackedMuon(muon.Muon):
    """Muon that orthogonalises all matrices of one shape at once, in bfloat16 where that is quick, else in float32.

    timm's does so one by one, each of them dozens of small products, which keep a GPU waiting; and always in bfloat16,
    which takes ten times as long where it is emulated.

    >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
    >>> optimizer = StackedMuon([weight], lr=1.0)
    >>> weight.grad = torch.diag(torch.tensor([3.0, -4.0]))
    >>> optimizer.step()
    >>> weight.sign().tolist()
    [[-1.0, 0.0], [0.0, 1.0]]
    """

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make a step."""
        # timm has no option for it.
        usual = muon.muon
        muon.muon = move_together
        try:
            loss: float | None = super().step(closure)  # type: ignore[no-untyped-call]
        finally:
            muon.muon = usual
        return loss


def move_together(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_bufs: list[Tensor],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    ns_steps: int,
    ns_coefficients: Any,
    eps: float,
    safety_factor: float,
    adjust_lr_fn: str | None,
    scale_eps: bool,
    **unused: Any,
) -> None:
    """Do what timm's `muon` does, to matrices of one shape together; kernels of convolutions are flattened to matrices.

    >>> weight, buffer = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)
    >>> move_together(
    ...     [weight[0]], [torch.eye(2)], [buffer[0]], lr=1.0, weight_decay=0.0, momentum=0.95, nesterov=True,
    ...     ns_steps=5, ns_coefficients="quintic", eps=1e-7, safety_factor=1.0, adjust_lr_fn=None, scale_eps=False,
    ... )
    >>> weight.sign().tolist()
    [[[-1.0, 0.0], [0.0, -1.0]]]
    """
    coefficients = muon.resolve_ns_coefficients(ns_coefficients, muon._COEFFICIENTS)
    torch._foreach_mul_(params, 1 - lr * weight_decay)
    torch._foreach_lerp_(momentum_bufs, grads, 1 - momentum)
    updates = torch._foreach_lerp(grads, momentum_bufs, momentum) if nesterov else momentum_bufs
    alike: dict[torch.Size, list[int]] = defaultdict(list)
    for at, update in enumerate(updates):
        alike[update.flatten(1).shape].append(at)
    for shape, places in alike.items():
        stack = torch.stack([updates[at].flatten(1) for at in places])
        moved = muon.zeropower_via_newtonschulz(
            stack,
            ns_steps,
            coefficients,
            eps=eps,
            safety_factor=safety_factor,
            dtype=torch.bfloat16 if half_is_quick(stack.device) else torch.float32,
            scale_eps=scale_eps,
        )
        scale = muon.get_lr_scale(shape, adjust_lr_fn) if adjust_lr_fn else 1.0
        weights = [params[at] for at in places]
        steps = [one.reshape(weight.shape) for one, weight in zip(moved.to(stack.dtype), weights, strict=True)]
        torch._foreach_add_(weights, steps, alpha=-lr * scale)
