"""`patchtree predict`: a run, images and slides in, masks out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchtree.cli.areas import write_areas
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
    opens_as_slide,
    tell_error,
    verb,
)
from patchtree.cli.many import Job, at_once, do_jobs
from patchtree.cli.masks import Wanted, derive_from_image, derive_from_slide, predict_image, predict_slide
from patchtree.errors import InputError

if TYPE_CHECKING:
    from patchtree.inference import Predictor
    from patchtree.jobs import Input


class Format(str, Enum):
    """How the masks of slides are written."""

    tiff = "tiff"
    ome_tiff = "ome-tiff"


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


def _say_share(share: float) -> str:
    """Say a share in percent, and not that nothing is there where something is."""
    return "under 0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def _describe(result: dict[str, Any]) -> str:
    """Say in a line what became of an image or a slide."""
    total = sum(result["pixels"].values())
    areas = result.get("mm2") or {}
    shares = ", ".join(
        f"{name} {_say_share(count / total)}" + (f" ({areas[name]:.4g} mm²)" if name in areas else "")
        for name, count in result["pixels"].items()
    )
    windows = ""
    if "windows" in result:
        count = result["windows"]
        windows = (
            f"{describe_mpp(result['mpp'])}, {result['tissue']:.0%} tissue in {count:,} window{'s' * (count != 1)}"
        )
    channels = ""
    if "channels" in result:
        count = len(result["channels"]) - 1
        channels = f" with {count} more file{'s as its channels' if count > 1 else ' as a channel'}"
    what = f"{result['image']}{channels}{windows}"
    return f"{what}: {shares}; {result['seconds']:.2f} s; wrote {', '.join(result['files'])}"
