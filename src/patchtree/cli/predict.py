"""`patchtree predict`: a run, images and slides in, masks out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchtree.cli.areas import measure_areas, write_areas
from patchtree.cli.classify import predict_labels, refuse
from patchtree.cli.common import (
    Device,
    Flips,
    Inputs,
    Json,
    Manifest,
    MinMpp,
    Mpp,
    NumParts,
    PartId,
    Resume,
    Run,
    SkipBadTiles,
    Workers,
    describe_mpp,
    gather_inputs,
    given,
    open_input,
    opens_as_slide,
    tell_bad_tiles,
    tell_error,
    verb,
)
from patchtree.cli.many import Job, Report, at_once, do_jobs
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


class Format(str, Enum):
    """How the masks of slides are written."""

    tiff = "tiff"
    ome_tiff = "ome-tiff"


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


@verb
def predict(
    run: Run,
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    images: Inputs = None,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities",
            help="Also write STEM_probabilities.tif: float32, one channel a class; of a slide .zarr: OME-Zarr, 8 bits; "
            "of a volume in its own format.",
        ),
    ] = False,
    geojson: Annotated[
        bool, typer.Option("--geojson", help="Also write STEM.geojson: outlines, within 1 pixel, for QuPath.")
    ] = False,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Also write STEM_overlay.png: a small picture, tinted by class.")
    ] = False,
    format: Annotated[
        Format, typer.Option(help="Of slides' masks: what OpenSlide reads, or levels as sub-images with OME-XML.")
    ] = Format.tiff,
    mpp: Mpp = None,
    min_mpp: MinMpp = None,
    flips: Flips = False,
    device: Device = None,
    manifest: Manifest = None,
    resume: Resume = False,
    skip_bad_tiles: SkipBadTiles = False,
    num_parts: NumParts = 1,
    part_id: PartId = None,
    workers: Workers = None,
    json: Json = False,
) -> None:
    """Predict the masks of images, volumes and slides, or the classes of images, with a trained run.

    For each image writes STEM.png, a mask of class ids of the image's own size
    (STEM.tif where the image is too large for PNG). nnU-Net's CASE_0000.tif,
    CASE_0001.tif, ... are one image where the run was trained on as many
    channels; its mask is CASE.png, and so is that of imagesTs/CASE_0000.tif.

    For a volume writes STEM with the volume's own suffix (.nii.gz, .nrrd, .mha),
    in the same place in space. Its overlay is of the slice with most in it.

    For a slide writes STEM.tif, a pyramid of class ids with the slide's pixel
    size. Its tissue is predicted window by window; what is glass is of class 0.
    With --resume, a slide goes on where it was killed. areas.csv has the mm² of
    each class, a line a slide.

    A run that labels whole images (train --task classify) writes
    predictions.csv: name, label and a probability for each class.

    Example: patchtree predict runs/glands slides/ photo.jpg --out masks --geojson --overlay
    """
    from patchtree.inference import load
    from patchtree.io.images import is_volume
    from patchtree.jobs import fingerprint
    from patchtree.runs import CONFIG, WEIGHTS, load_config

    task = "classify" if load_config(run).task == "classify" else "segment"
    predictor = load(run, task=task, **given(device=device))
    inputs, failed = gather_inputs(images, manifest)
    if task == "classify":
        refuse(probabilities=probabilities, geojson=geojson, overlay=overlay, mpp=mpp, min_mpp=min_mpp)
        refuse(resume=resume, num_parts=num_parts != 1, part_id=part_id is not None, workers=workers)
        refuse(skip_bad_tiles=skip_bad_tiles)
        return predict_labels(predictor, inputs, out, flips, json, failed)
    volumes = predictor.config.ndim == 3
    if volumes and geojson:
        raise InputError(f"{run}: was trained on volumes, and --geojson is for images and slides; leave it out")
    for one in [one for one in inputs if is_volume(one.path) != volumes]:
        inputs.remove(one)
        failed += 1
        kinds = ("no volume", "volumes") if volumes else ("a volume", "images")
        tell_error(InputError(f"{one.path}: is {kinds[0]}, and {run} was trained on {kinds[1]}; name another run"))
    slides: list[Input] = []
    others: list[Input] = []
    for one in inputs:
        (slides if opens_as_slide(one) else others).append(one)
    if slides and flips:
        raise InputError(f"{slides[0].path}: --flips is for images, not for slides; predict slides without it")
    if others and (mpp, min_mpp) != (None, None):
        raise InputError(f"{others[0].path}: --mpp and --min-mpp are for slides; predict images without them")
    if others and not slides and (skip_bad_tiles or format is Format.ome_tiff):
        raise InputError(f"{others[0].path}: --format and --skip-bad-tiles are for slides; predict images without them")
    model = fingerprint({}, (run / CONFIG, run / WEIGHTS))
    settings = {"model": model, "flips": flips, "format": format.value, "min_mpp": min_mpp}
    options = {"probabilities": probabilities, "geojson": geojson, "overlay": overlay}
    jobs, missed = _image_jobs(others, predictor, out, options, flips, settings)
    for one in slides:
        one = one if one.mpp is not None else replace(one, mpp=mpp)
        wanted = _wanted(out, one.name, ".ome.tif" if format is Format.ome_tiff else ".tif", options, ".zarr")
        ome = format is Format.ome_tiff
        work = partial(predict_slide, one, predictor, wanted, model, ome, min_mpp, workers, resume, skip_bad_tiles)
        derive = partial(derive_from_slide, one, predictor.config.labels, wanted, skip_bad_tiles)
        outputs, derived, companions = wanted.predicted, wanted.derived, _companions(out, one.name, ".zarr")
        jobs.append(Job((one.path,), outputs, work, {**settings, "mpp": one.mpp}, derived, derive, companions))
    try:
        do_jobs("Predicting", jobs, out, _describe, json, failed + missed, resume, num_parts, part_id)
    finally:
        write_areas(out)


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


def _image_jobs(
    inputs: Sequence[Input],
    predictor: Predictor,
    out: Path,
    options: Mapping[str, bool],
    flips: bool,
    settings: Mapping[str, Any],
) -> tuple[list[Job], int]:
    """Make jobs of images, and tell of those that cannot be; gives the number of these."""
    from patchtree.channels import group_channels, name_of
    from patchtree.io.images import image_size, mask_suffix
    from patchtree.io.volumes import suffix_for

    names = {Path(one.path): one.name for one in inputs}
    jobs, missed = [], 0
    for files in group_channels(names, predictor.config.channels):
        name = name_of(files, names[files[0]])
        try:
            volume = predictor.config.ndim == 3
            suffix = suffix_for(files[0]) if volume else mask_suffix(image_size(files[0]))
        except InputError as error:
            missed += 1
            tell_error(error)
            continue
        probabilities = suffix if volume else ".tif"
        wanted = _wanted(out, name, suffix, options, probabilities)
        work = partial(predict_image, files, predictor, wanted, flips)
        derive = partial(derive_from_image, files, predictor.config, wanted)
        outputs, derived, companions = wanted.predicted, wanted.derived, _companions(out, name, probabilities)
        jobs.append(Job(files, outputs, at_once(work), settings, derived, derive, companions))
    return jobs, missed


def _wanted(out: Path, name: str, suffix: str, options: Mapping[str, bool], probabilities: str) -> Wanted:
    return Wanted(
        out / f"{name}{suffix}",
        out / f"{name}_probabilities{probabilities}" if options["probabilities"] else None,
        out / f"{name}.geojson" if options["geojson"] else None,
        out / f"{name}_overlay.png" if options["overlay"] else None,
    )


def _companions(out: Path, name: str, probabilities: str) -> tuple[Path, ...]:
    """List all that may be written beside a mask."""
    options = dict.fromkeys(("probabilities", "geojson", "overlay"), True)
    wanted = _wanted(out, name, "", options, probabilities)
    return (*wanted.predicted[1:], *wanted.derived)


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


def _describe(result: dict[str, Any]) -> str:
    """Say in a line what became of an image or a slide."""
    total = sum(result["pixels"].values())
    areas = result.get("mm2") or {}
    shares = ", ".join(
        f"{name} {count / total:.1%}" + (f" ({areas[name]:.4g} mm²)" if name in areas else "")
        for name, count in result["pixels"].items()
    )
    windows = ""
    if "windows" in result:
        count = result["windows"]
        windows = (
            f"{describe_mpp(result['mpp'])}, {result['tissue']:.0%} tissue in {count:,} window{'s' * (count != 1)}"
        )
    return f"{result['image']}{windows}: {shares}; {result['seconds']:.2f} s; wrote {', '.join(result['files'])}"
