"""The one call: an image in, patches and their tree out."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchtree.detail import Detail, as_detail, from_dict, measure, to_dict
from patchtree.errors import InputError
from patchtree.files import replacing
from patchtree.patches import cut
from patchtree.refine import refine
from patchtree.tree import MOST_LEVELS, Tree

if TYPE_CHECKING:
    from patchtree.io.slides import Slide

_LARGEST = 1 << 16
# Images with so few rows are seldom meant.
_FEW_CHANNELS = 4
_SPARE = "found too little detail"


@dataclass(frozen=True, eq=False)
class Patches:
    """The patches of an image and the tree that says where they lie.

    Attributes:
        pixels: ``(N, p, p, C)``, or ``(N, p, p)`` for an image without channels (one more ``p`` in 3-D).
        tree: the leaves that the patches show, in the same order.
        origin: where the image's corner lies in the whole image that it is a window of, in pixels; None: at its corner.
        extent: shape of that whole image in pixels; None: the image is whole.
    """

    pixels: NDArray[Any]
    tree: Tree
    origin: tuple[int, ...] | None = None
    extent: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.pixels) != len(self.tree):
            raise InputError(f"{len(self.pixels)} patches do not fit a tree of {len(self.tree)} leaves")
        sides = self.pixels.shape[1 : 1 + self.tree.ndim]
        if sides != (self.tree.patch_size,) * self.tree.ndim:
            raise InputError(f"patches of {sides} pixels do not fit a tree of patches of {self.tree.patch_size}")

    def __len__(self) -> int:
        return len(self.tree)

    def __repr__(self) -> str:
        return f"Patches({len(self)} of {self.pixels.shape[1:]} {self.pixels.dtype}, {self.tree!r})"

    def save(self, path: str | Path) -> None:
        """Write an ``.npz`` file with ``pixels``, ``level``, ``index``, ``boxes`` and the packed ``tree``."""
        tree = self.tree
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                pixels=self.pixels,
                level=tree.level,
                index=tree.index,
                boxes=tree.boxes(),
                tree=np.frombuffer(tree.to_bytes(), np.uint8),
                origin=self.origin or (0,) * tree.ndim,
                extent=self.extent or tree.shape,
            )

    @classmethod
    def load(cls, path: str | Path) -> Patches:
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing or was not written by `save`.
        """
        try:
            with Path(path).open("rb") as data, np.load(data, allow_pickle=False) as file:
                tree = Tree.from_bytes(file["tree"].tobytes())
                place = [tuple(int(number) for number in file[name]) for name in ("origin", "extent")]
                return cls(file["pixels"], tree, *place)
        except (OSError, ValueError, LookupError, EOFError, TypeError, BadZipFile, zlib.error) as error:
            raise InputError(f"{path}: not a patches file ({error}); write it with Patches.save") from error


# Pixels on a side of a patch that suit images and volumes: of both, a patch has about as many.
PATCH_SIZES = {2: 16, 3: 8}


@dataclass(frozen=True)
class Patcher:
    """Split an image into adaptive patches.

    >>> image = np.zeros((256, 256, 3), np.uint8)
    >>> image[90:110, 30:200] = 255
    >>> patches = Patcher(patch_size=16, budget=64)(image)
    >>> len(patches), patches.pixels.shape
    (64, (64, 16, 16, 3))

    Attributes:
        patch_size: pixels on a side of a patch, ``p``.
        budget: the most leaves to make, ``N``.
        threshold: cells with no more detail than this are not split, even within the budget.
        detail: ``"edges"``, ``"residual"`` or ``"variance"``, a detail with options such as ``Edges(low=50)``, or a
            function from the image to a non-negative map.
        max_level: level of the largest leaves; None lets a single cell cover the image.
        balanced: make leaves that share a face differ by at most one level.
        ndim: 2 for images, 3 for volumes.
    """

    patch_size: int = 16
    budget: int | None = 1024
    threshold: float | None = None
    detail: str | Detail | Callable[[NDArray[Any]], NDArray[Any]] = "edges"
    max_level: int | None = None
    balanced: bool = False
    ndim: int = 2

    def __post_init__(self) -> None:
        for name in ("patch_size", "budget", "max_level"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise InputError(f"{name} {value!r} is not possible; give a whole number")
            object.__setattr__(self, name, int(value))  # NumPy's own are no JSON, and overflow
        if self.threshold is not None and not self.threshold >= 0:
            raise InputError(f"threshold {self.threshold} is not possible; give 0 or more")
        if not 1 <= self.patch_size <= _LARGEST:
            bound = "at least 1" if self.patch_size < 1 else f"at most {_LARGEST}"
            raise InputError(f"patch size {self.patch_size} is not possible; give {bound}")
        if self.budget is not None and self.budget < 1:
            raise InputError(f"budget {self.budget} is not possible; give at least 1 leaf")
        if self.budget is None and self.threshold is None:
            raise InputError("give a budget (a number of leaves) or a threshold (the least detail to split)")
        if self.ndim not in (2, 3):
            raise InputError(f"ndim {self.ndim} is not possible; give 2 for images, 3 for volumes")
        if self.max_level is not None and not 0 <= self.max_level <= MOST_LEVELS[self.ndim]:
            raise InputError(f"max_level {self.max_level} is not possible; give 0 to {MOST_LEVELS[self.ndim]}")
        as_detail(self.detail)

    def __call__(
        self, image: ArrayLike | Slide, origin: tuple[int, ...] | None = None, extent: tuple[int, ...] | None = None
    ) -> Patches:
        """Plan the tree of an image and cut it.

        Args:
            image: ``(H, W)`` or ``(H, W, C)``; with ``ndim=3`` ``(D, H, W)`` or ``(D, H, W, C)``; or a slide that
                `open_slide` gave, of which only what is opened is read (`patchtree.slides.patch_slide`).
            origin: where the image lies in a larger one, in pixels; None: it is whole.
            extent: shape of that larger image in pixels.

        Raises:
            InputError: the image's shape or type cannot be split, it holds NaN or infinity, the budget is below the
                number of roots, or the slide cannot be read.
        """
        if not isinstance(image, np.ndarray):
            from patchtree.io.slides import Slide
            from patchtree.slides import patch_slide

            if isinstance(image, Slide):
                if self.ndim != 2:
                    raise InputError(
                        f"{image.path}: a slide cannot be split in {self.ndim}-D; make the Patcher with ndim=2"
                    )
                return replace(patch_slide(self, image), origin=origin, extent=extent)
        image = np.asarray(image)
        tree = self.plan(image)
        return Patches(cut(image, tree), tree, origin, extent)

    def plan(self, image: ArrayLike) -> Tree:
        """Make the tree of an image without cutting it.

        >>> Patcher(budget=10, detail="variance").plan(np.eye(64))
        Tree(10 leaves of 16 to 32 px, patch_size=16, shape=(64, 64))
        """
        image = np.asarray(image)
        if image.ndim not in (self.ndim, self.ndim + 1) or 0 in image.shape:
            axes = "(H, W) or (H, W, C)" if self.ndim == 2 else "(D, H, W) or (D, H, W, C)"
            raise InputError(f"an image of shape {image.shape} cannot be split; give {axes} with at least one pixel")
        first, *_, last = image.shape
        if image.ndim > self.ndim and first <= _FEW_CHANNELS < min(image.shape[1:]):
            warnings.warn(
                f"an image of shape {image.shape} is taken as {' x '.join(map(str, image.shape[:-1]))} pixels of "
                f"{last} channels; if its channels come first, give np.moveaxis(image, 0, -1)",
                stacklevel=3,
            )
        if image.dtype.kind not in "biuf":
            raise InputError(f"an image of type {image.dtype} cannot be split; give booleans, integers or floats")
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            wrong = int(np.count_nonzero(~np.isfinite(image)))
            raise InputError(f"the image holds {wrong} NaN or infinite values; replace them first")
        shape = image.shape[: self.ndim]
        details = measure(image, self.detail, self.patch_size, self.max_level, self.ndim)
        tree = refine(details, shape, self.patch_size, self.budget, self.threshold, self.balanced)
        if self.budget is not None and self.threshold is None and len(tree) < self.budget and tree.level.any():
            left = any(
                details[at - 1][tuple(tree.index[tree.level == at].T)].any() for at in range(1, len(details) + 1)
            )
            if not left:
                warn_of_spare_budget(self, any(map(np.any, details)))
        return tree

    def to_dict(self) -> dict[str, Any]:
        """Describe the patcher in plain values, for a file.

        >>> Patcher.from_dict(Patcher(budget=64).to_dict())
        Patcher(patch_size=16, budget=64, threshold=None, detail=Edges(low=100, high=200, blur=3), max_level=None, \
balanced=False, ndim=2)

        Raises:
            InputError: the detail is a function, which cannot be written down.
        """
        if not isinstance(self.detail, str) and not hasattr(self.detail, "measure"):
            raise InputError("a patcher whose detail is a function cannot be written to a file; use a named detail")
        return {**self.__dict__, "detail": to_dict(self.detail)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Patcher:
        """Make the patcher that `to_dict` described."""
        return cls(**{**values, "detail": from_dict(values["detail"])})


@contextmanager
def spare_budget_allowed() -> Iterator[None]:
    """Keep in what `warn_of_spare_budget` says: where a budget is a bound, too little detail for it is no trouble.

    >>> with spare_budget_allowed():
    ...     len(Patcher(budget=99)(np.zeros((64, 64))))
    1
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", f".*{_SPARE}")
        yield


def warn_of_spare_budget(patcher: Patcher, found: bool) -> None:
    """Say that a tree has fewer leaves than it may have, and whether any detail was found at all."""
    name = type(as_detail(patcher.detail)).__name__
    hint = "; 'residual' may find more" if found and name != "Residual" else ""
    warnings.warn(
        f"{name} {_SPARE} to use a budget of {patcher.budget}: what has no detail was not split{hint}",
        stacklevel=3,
    )
