"""Whether a device computes in bfloat16 quickly, and computing in it where it does."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

# What to train in, as Lightning calls it.
HALF = "bf16-mixed"
# Not there in every release of torch.
_CPU_ASKS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def half_is_quick(device: torch.device | str) -> bool:
    """Say whether a device has instructions for bfloat16; without them it is slower than float32.

    >>> half_is_quick("meta")
    False
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and any(getattr(torch.cpu, ask, bool)() for ask in _CPU_ASKS)


def half_where_quick(device: torch.device | str) -> AbstractContextManager[object]:
    """Compute in bfloat16 on devices where that is quick, and in float32 on others, whatever was set before.

    >>> with half_where_quick("meta"):
    ...     torch.is_autocast_enabled("cpu")
    False
    """
    kind = torch.device(device).type
    if kind not in ("cpu", "cuda"):
        return torch.autocast("cpu", enabled=False)
    return torch.autocast(kind, torch.bfloat16, enabled=half_is_quick(kind))


def trains_in_half(x: Tensor) -> bool:
    """Whether gradients will be asked for of what a processor computes in bfloat16: torch's own are slow there.

    >>> trains_in_half(torch.zeros(1, 4, 8))
    False
    """
    half = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    return half and x.device.type == "cpu" and torch.is_grad_enabled()


def choose_precision(accelerator: str) -> str:
    """Choose what to train in, a name that Lightning knows, by what the machine has instructions for.

    >>> choose_precision("cpu") in ("bf16-mixed", "32-true")
    True

    Args:
        accelerator: ``"cpu"``, ``"gpu"``, ...
    """
    if accelerator in ("gpu", "cuda") and torch.cuda.is_available():
        return HALF if half_is_quick("cuda") else "16-mixed"
    return HALF if accelerator == "cpu" and half_is_quick("cpu") else "32-true"
