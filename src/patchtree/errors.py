"""What a user did wrong, told in one line."""

from __future__ import annotations

from collections.abc import Sequence, Sized


class InputError(ValueError):
    """The input is at fault: the message is one line that names the file or argument, what is wrong, and what to do.

    The command line prints it and exits with code 1.

    >>> raise InputError("budget is 0: a tree has at least one leaf; give 1 or more")
    Traceback (most recent call last):
    patchtree.errors.InputError: budget is 0: a tree has at least one leaf; give 1 or more
    """


def and_more(found: Sized, what: str = "more") -> str:
    """Say how many more are at fault than the first, which was named; nothing where it is alone.

    >>> and_more(["a", "b", "c"]), and_more(["a"]), and_more(["a", "b"], "more such files")
    (' (and 2 more)', '', ' (and 1 more such files)')
    """
    return f" (and {len(found) - 1} {what})" if len(found) > 1 else ""


def say_size(shape: Sequence[int], ndim: int = 2) -> str:
    """Say an image's size as people do, width first, from ``(H, W)`` or ``(H, W, C)``; of a volume, ``(D, H, W)``.

    >>> say_size((2848, 4288, 3)), say_size((26, 166, 164), ndim=3)
    ('4,288 x 2,848 px', '164 x 166 x 26 voxels')
    """
    lengths = " x ".join(f"{length:,}" for length in reversed(shape[:ndim]))
    return f"{lengths} {'px' if ndim == 2 else 'voxels'}"
