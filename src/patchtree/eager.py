"""Keeping `torch.compile` out of NumPy code that models call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch

Given = ParamSpec("Given")
Found = TypeVar("Found")


def eagerly(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """Run a function as it is where a compiled model calls it, and all that it calls.

    torch would translate NumPy's calls into its own, which fails on how trees are read.

    >>> eagerly(len)([1, 2])
    2
    """

    @wraps(function)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        # The compiler takes seconds to import; where nobody did, nothing is compiled.
        if "torch._dynamo" in sys.modules:
            found: Found = _disabled(function)(*args, **kwargs)
            return found
        return function(*args, **kwargs)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    return call


@lru_cache
def _disabled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compiler.disable(function)  # type: ignore[no-any-return, no-untyped-call]
