"""What `patchtree predict` does of an image or a slide: its mask, and what is made of that."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from patchtree.cli.areas import measure_areas
from patchtree.cli.common import open_input, tell_bad_tiles
from patchtree.cli.many import Report
from patchtree.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from patchtree.inference import Predictor
    from patchtree.io.annotations import Annotations
    from patchtree.io.slides import Slide
    from patchtree.jobs import Input
    from patchtree.runs import RunConfig

# Pixels that an outline may be moved by when vertices are left out.
_TOLERANCE = 1.0
_PICTURE_SIDE = 1600
# Pixel sizes further apart than this show other things at the same number of pixels.
_SAME_MPP = 1.2


@dataclass(frozen=True)
class Wanted:
    """Where what was asked for of an image goes.

    Attributes:
        mask: class ids.
        probabilities: of classes, if anywhere.
        geojson: outlines, if anywhere.
        overlay: a picture, if anywhere.
    """

    mask: Path
    probabilities: Path | None = None
    geojson: Path | None = None
    overlay: Path | None = None

    @property
    def predicted(self) -> tuple[Path, ...]:
        """Give what the model is needed for."""
        return tuple(file for file in (self.mask, self.probabilities) if file is not None)

    @property
    def derived(self) -> tuple[Path, ...]:
        """Give what is made of the mask."""
        return tuple(file for file in (self.geojson, self.overlay) if file is not None)


def predict_image(files: Sequence[Path], predictor: Predictor, wanted: Wanted, flips: bool = False) -> dict[str, Any]:
    """Predict one image or volume, and write its mask and, where that was asked for, its probabilities.

    Args:
        files: the image, or its channels.
        predictor: a loaded run.
        wanted: where they go.
        flips: average over flipped images.

    Returns:
        What ``predict --json`` prints of an image.
    """
    from patchtree.channels import read_channels
    from patchtree.ids import count_ids, likeliest
    from patchtree.io.images import write_image, write_mask
    from patchtree.io.volumes import read_grid, write_volume

    started = perf_counter()
    image = read_channels(files, at_least=predictor.config.channels)
    try:
        if wanted.probabilities is None:
            ids = predictor(image, flips=flips)
        else:
            shares = predictor.probabilities(image, flips=flips)
            ids = likeliest(shares)
    except InputError as error:
        raise InputError(f"{files[0]}: {error}") from error
    labels = predictor.config.labels
    write_shares, write_ids = write_image, write_mask
    if predictor.config.ndim == 3:
        write_shares = write_ids = partial(write_volume, grid=read_grid(files[0]))
    if wanted.probabilities is not None:
        write_shares(wanted.probabilities, shares)
    write_ids(wanted.mask, ids)
    pixels = count_ids(ids, len(labels))
    return {
        "image": str(files[0]),
        **({"channels": [str(file) for file in files]} if len(files) > 1 else {}),
        "shape": list(image.shape),
        "pixels": {name: int(pixels[label]) for name, label in labels.items()},
        "seconds": perf_counter() - started,
        "files": [str(file) for file in wanted.predicted],
    }


def derive_from_image(
    files: Sequence[Path], config: RunConfig, wanted: Wanted, result: dict[str, Any], missing: Sequence[Path]
) -> dict[str, Any]:
    """Write what is made of the mask of an image.

    Args:
        files: the image, or its channels.
        config: of the run.
        wanted: where the mask is and what goes where.
        result: what `predict_image` gave.
        missing: what of it to write.

    Returns:
        What ``predict --json`` prints of an image.
    """
    import numpy as np

    from patchtree.channels import read_channels
    from patchtree.io.annotations import write_annotations
    from patchtree.io.colours import class_colours
    from patchtree.io.images import read_mask, write_image
    from patchtree.io.outlines import outline
    from patchtree.io.volumes import read_volume_mask

    started = perf_counter()
    ids, labels = (read_volume_mask if config.ndim == 3 else read_mask)(wanted.mask), config.labels
    if wanted.geojson is not None and wanted.geojson in missing:
        write_annotations(wanted.geojson, outline([ids], _outlined(labels), class_colours(labels), _TOLERANCE))
    if wanted.overlay is not None and wanted.overlay in missing:
        image = read_channels(files, at_least=config.channels)
        if config.ndim == 3:
            fullest = int(np.count_nonzero(ids, axis=(1, 2)).argmax())
            image, ids = image[fullest], ids[fullest]
        write_image(wanted.overlay, _tint(image, ids, labels))
    return _with_files(result, missing, started)


def predict_slide(
    source: Input,
    predictor: Predictor,
    wanted: Wanted,
    model: str,
    ome: bool = False,
    min_mpp: float | None = None,
    workers: int | None = None,
    resume: bool = False,
    skip_bad_tiles: bool = False,
    report: Report = lambda *_: None,
) -> dict[str, Any]:
    """Predict one slide, and write its mask and, where that was asked for, its probabilities.

    Args:
        source: the slide.
        predictor: a loaded run.
        wanted: where they go.
        model: tells the run apart from others.
        ome: write the mask as OME-TIFF.
        min_mpp: micrometres a pixel of the finest patches.
        workers: threads that read and paint.
        resume: go on where it was killed.
        skip_bad_tiles: what cannot be read is background.
        report: told how far it is.

    Returns:
        What ``predict --json`` prints of a slide.
    """
    from patchtree.io.slides import need_mpp
    from patchtree.jobs import fingerprint
    from patchtree.slide_inference import predict_slide

    started = perf_counter()
    with open_input(source, skip_bad_tiles) as slide:
        mpp = need_mpp(slide, "its mask has none")
        _compare_mpp(slide, predictor.config.mpp, min_mpp)
        found = predict_slide(
            predictor,
            slide,
            wanted.mask,
            key=fingerprint({"model": model, "mpp": source.mpp}, (source.path,)),
            probabilities=wanted.probabilities,
            ome=ome,
            min_mpp=min_mpp,
            workers=workers,
            resume=resume,
            progress=report,
        )
        return {
            "image": slide.path,
            "kind": slide.kind,
            "shape": [*slide.shape, slide.channels],
            "mpp": None if mpp is None else list(mpp),
            **found,
            "mm2": measure_areas(found["pixels"], mpp),
            **tell_bad_tiles(slide),
            "seconds": perf_counter() - started,
            "files": [str(file) for file in wanted.predicted],
        }


def derive_from_slide(
    source: Input,
    labels: Mapping[str, int],
    wanted: Wanted,
    skip_bad_tiles: bool,
    result: dict[str, Any],
    missing: Sequence[Path],
) -> dict[str, Any]:
    """Write what is made of the mask of a slide.

    Args:
        source: the slide.
        labels: name to id.
        wanted: where the mask is and what goes where.
        skip_bad_tiles: what cannot be read of the slide is background.
        result: what `predict_slide` gave.
        missing: what of it to write.

    Returns:
        What ``predict --json`` prints of a slide.
    """
    from patchtree.io.annotations import write_annotations
    from patchtree.io.images import write_image
    from patchtree.io.slides import open_slide
    from patchtree.slides.thumbnail import thumbnail

    started = perf_counter()
    with open_slide(wanted.mask) as mask:
        if wanted.geojson is not None and wanted.geojson in missing:
            write_annotations(wanted.geojson, _outline(mask, labels), mask.mpp)
        if wanted.overlay is not None and wanted.overlay in missing:
            with open_input(source, skip_bad_tiles) as slide:
                picture = thumbnail(slide, _PICTURE_SIDE)
            write_image(wanted.overlay, _tint(picture, thumbnail_ids(mask, picture.shape[:2]), labels))
    return _with_files(result, missing, started)


def thumbnail_ids(mask: Slide, shape: tuple[int, ...]) -> NDArray[Any]:
    """Read class ids of a whole mask, of the coarsest level that is no smaller than a shape."""
    fits = [
        at
        for at, level in enumerate(mask.levels)
        if all(there >= shown for there, shown in zip(level.shape, shape, strict=False))
    ]
    level = max(fits, default=0)
    return mask.read(level, 0, 0, *mask.levels[level].shape)[..., 0]


def _with_files(result: Mapping[str, Any], more: Sequence[Path], started: float) -> dict[str, Any]:
    """Add files, and the time that they took, to what is told of an input."""
    files = [*result["files"], *map(str, more)]
    return {**result, "seconds": result["seconds"] + perf_counter() - started, "files": files}


def _compare_mpp(slide: Slide, trained: float | None, min_mpp: float | None) -> None:
    """Warn where a slide is shown at another scale than the images trained on."""
    if trained is None or slide.mpp is None:
        return
    shown = max(min(slide.mpp), min_mpp or 0)
    if not 1 / _SAME_MPP <= shown / trained <= _SAME_MPP:
        hint = f"--min-mpp {trained:.4g} shows it as coarse" if shown < trained else "expect worse predictions"
        warnings.warn(
            f"{slide.path}: {shown:.4g} µm a pixel, the run was trained at {trained:.4g}; {hint}", stacklevel=2
        )


def _outlined(labels: Mapping[str, int]) -> dict[str, int]:
    """Give the classes that get outlines: all but that of id 0."""
    return {name: label for name, label in labels.items() if label}


def _outline(mask: Slide, labels: Mapping[str, int]) -> Annotations:
    """Outline a slide's mask, at the finest level that can be."""
    from patchtree.io.colours import class_colours
    from patchtree.io.outlines import TooManyCorners, outline_slide

    for level in range(len(mask.levels)):
        try:
            found = outline_slide(mask, _outlined(labels), class_colours(labels), _TOLERANCE, level)
        except TooManyCorners:
            if level == len(mask.levels) - 1:
                raise
            continue
        break
    if level:
        down = max(mask.levels[level].downsample)
        warnings.warn(f"{mask.path}: has too many corners, so outlines are coarser, to {down:g} pixels", stacklevel=2)
    return found


def _tint(image: NDArray[Any], ids: NDArray[Any], labels: Mapping[str, int]) -> NDArray[Any]:
    """Make a small picture of an image, tinted by class."""
    from patchtree.io.colours import class_colours, overlay
    from patchtree.show import as_rgb

    colours = {labels[name]: colour for name, colour in class_colours(labels).items()}
    return overlay(as_rgb(image, _PICTURE_SIDE), ids, colours)
