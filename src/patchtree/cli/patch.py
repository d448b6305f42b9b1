"""`patchtree patch`: images and slides in, patches and pictures out."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchtree.cli.common import (
    DetailName,
    Inputs,
    Json,
    Manifest,
    MinMpp,
    Mpp,
    NumParts,
    PartId,
    Resume,
    SkipBadTiles,
    Workers,
    describe_mpp,
    describe_size,
    gather_inputs,
    given,
    open_input,
    opens_as_slide,
    tell_bad_tiles,
    verb,
)
from patchtree.cli.many import Job, at_once, do_jobs
from patchtree.errors import InputError, say_size
from patchtree.patcher import PATCH_SIZES, Patcher, Patches
from patchtree.patches import cut
from patchtree.tree import grid_shape

if TYPE_CHECKING:
    from patchtree.io.slides import Slide
    from patchtree.jobs import Input
    from patchtree.tree import Tree

_BLOCKS = 30
_PICTURE_SIDE = 1600
_CHILDREN = 4


@verb
def patch(
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    images: Inputs = None,
    patch_size: Annotated[
        int | None, typer.Option(help=f"Pixels on a side of a patch. (default {Patcher.patch_size}, of volumes 8)")
    ] = None,
    budget: Annotated[
        int | None, typer.Option(help=f"The most patches to make of an image. (default {Patcher.budget})")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Leaves with no more detail than this are not split, even within the budget.")
    ] = None,
    detail: Annotated[DetailName | None, typer.Option(help=f"What to refine. (default {Patcher.detail})")] = None,
    max_level: Annotated[
        int | None, typer.Option(help="The largest leaves have patch-size * 2**max-level pixels on a side.")
    ] = None,
    balanced: Annotated[
        bool, typer.Option("--balanced", help="Neighbouring leaves differ by at most one level.")
    ] = False,
    mpp: Mpp = None,
    min_mpp: MinMpp = None,
    manifest: Manifest = None,
    resume: Resume = False,
    skip_bad_tiles: SkipBadTiles = False,
    num_parts: NumParts = 1,
    part_id: PartId = None,
    workers: Workers = None,
    json: Json = False,
) -> None:
    """Split images, volumes and slides into adaptive patches.

    For each image writes STEM.npz (patches and tree) and STEM_leaves.png (the
    leaves drawn on the image), and says how many patches there are, how large
    their leaves, what uniform patches would take, how well the patches show the
    image (PSNR of painting them back; in JSON null where they show it exactly),
    and where the time went. Of a volume the picture shows the middle slice.
    (`patchtree train` refines by residual.)

    A slide is read only where there is something to see. Instead of the PSNR,
    which would take reading all of it, the share that was read and the share of
    tissue are given.

    Example: patchtree patch slides/ "more/*.svs" --out patches --budget 16384 --detail residual --resume
    """
    from patchtree.io.images import is_volume

    options = given(
        patch_size=patch_size,
        budget=budget,
        threshold=threshold,
        detail=detail,
        max_level=max_level,
        balanced=balanced,
    )
    patcher = Patcher(**options)
    inputs, failed = gather_inputs(images, manifest)
    settings = {**patcher.to_dict(), "min_mpp": min_mpp}
    jobs = []
    for one in inputs:
        one = one if one.mpp is not None else replace(one, mpp=mpp)
        outputs = out / f"{one.name}.npz", out / f"{one.name}_leaves.png"
        work = partial(
            patch_input,
            one,
            replace(patcher, ndim=3, patch_size=patch_size or PATCH_SIZES[3]) if is_volume(one.path) else patcher,
            *outputs,
            min_mpp=min_mpp,
            workers=workers,
            must_fit=patch_size is not None,
            skip_bad_tiles=skip_bad_tiles,
        )
        jobs.append(Job((one.path,), outputs, at_once(work), {**settings, "mpp": one.mpp}))
    do_jobs("Patching", jobs, out, _describe, json, failed, resume, num_parts, part_id)


def patch_input(
    source: Input,
    patcher: Patcher,
    arrays: Path,
    picture: Path,
    min_mpp: float | None = None,
    workers: int | None = None,
    must_fit: bool = False,
    skip_bad_tiles: bool = False,
) -> dict[str, Any]:
    """Patch an image, a volume or a slide, write what comes of it, and measure it.

    Args:
        source: the image, volume or slide.
        patcher: what to do with it; of volumes, that with ``ndim=3``.
        arrays: where the patches go.
        picture: where the picture of the leaves goes.
        min_mpp: micrometres a pixel of the finest patches wanted, which makes any image a slide.
        workers: threads that read a slide.
        must_fit: refuse what is smaller than one patch.
        skip_bad_tiles: what cannot be read of a slide is background.

    Returns:
        What ``patch --json`` prints of it.
    """
    if patcher.ndim == 3:
        if (source.mpp, min_mpp) != (None, None):
            raise InputError(f"{source.path}: is a volume, and --mpp and --min-mpp are for slides; leave them out")
        return patch_image(Path(source.path), patcher, arrays, picture, must_fit)
    if min_mpp is None and not opens_as_slide(source):
        return patch_image(Path(source.path), patcher, arrays, picture, must_fit)
    with open_input(source, skip_bad_tiles) as slide:
        return patch_slide(slide, patcher, arrays, picture, min_mpp, workers, must_fit)


def patch_image(path: Path, patcher: Patcher, arrays: Path, picture: Path, must_fit: bool = False) -> dict[str, Any]:
    """Patch one image or volume, write what comes of it, and measure it.

    Args:
        path: the image or volume.
        patcher: what to do with it.
        arrays: where the patches go.
        picture: where the picture of the leaves goes.
        must_fit: refuse an image that is smaller than one patch.

    Returns:
        What ``patch --json`` prints of an image.
    """
    import numpy as np

    from patchtree.channels import read_channels
    from patchtree.datasets import read_shape
    from patchtree.fidelity import measure_psnr
    from patchtree.io.images import write_image
    from patchtree.show import show

    if must_fit:
        _check_fit(path, patcher, read_shape(path))
    times = [perf_counter()]
    image = read_channels([path])
    times.append(perf_counter())
    try:
        tree = patcher.plan(image)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    times.append(perf_counter())
    patches = Patches(cut(image, tree), tree)
    times.append(perf_counter())
    patches.save(arrays)
    write_image(picture, show(image, tree))
    psnr = measure_psnr(image, patches)
    return {
        "image": str(path),
        **({"kind": "volume"} if patcher.ndim == 3 else {}),
        "shape": list(image.shape),
        "dtype": str(image.dtype),
        **_count(tree),
        "psnr": psnr if np.isfinite(psnr) else None,
        "seconds": {name: times[at + 1] - times[at] for at, name in enumerate(("read", "plan", "cut"))},
        "files": [str(arrays), str(picture)],
    }


def patch_slide(
    slide: Slide,
    patcher: Patcher,
    arrays: Path,
    picture: Path,
    min_mpp: float | None = None,
    workers: int | None = None,
    must_fit: bool = False,
) -> dict[str, Any]:
    """Patch a slide, write what comes of it, and measure it; arguments as those of `patch_input`."""
    from patchtree.io.images import write_image
    from patchtree.io.slides import need_mpp
    from patchtree.show import show_small
    from patchtree.slides import patch_slide
    from patchtree.slides.metered import Metered
    from patchtree.slides.thumbnail import thumbnail

    if must_fit:
        _check_fit(slide.path, patcher, slide.shape)
    mpp = need_mpp(slide, "sizes are in pixels")
    times = [perf_counter()]
    metered = Metered(slide)
    try:
        patches = patch_slide(patcher, metered, min_mpp, workers=workers)
    except InputError as error:
        raise error if str(error).startswith(slide.path) else InputError(f"{slide.path}: {error}") from error
    tree = patches.tree
    times.append(perf_counter())
    patches.save(arrays)
    times.append(perf_counter())
    write_image(picture, show_small(thumbnail(slide, 2 * _PICTURE_SIDE), tree, _PICTURE_SIDE))
    times.append(perf_counter())
    return {
        "image": slide.path,
        "kind": slide.kind,
        "shape": [*slide.shape, slide.channels],
        "dtype": str(slide.dtype),
        "mpp": None if mpp is None else list(mpp),
        **_count(tree),
        **_measure_tissue(tree, patcher),
        "read": metered.pixels / (slide.shape[0] * slide.shape[1]),
        **tell_bad_tiles(slide),
        "seconds": {name: times[at + 1] - times[at] for at, name in enumerate(("patch", "save", "draw"))},
        "files": [str(arrays), str(picture)],
    }


def _check_fit(path: str | Path, patcher: Patcher, shape: tuple[int, ...]) -> None:
    """Refuse what is smaller than one patch."""
    if patcher.patch_size > max(shape):
        raise InputError(
            f"{path}: patch size {patcher.patch_size} is larger than the image of {say_size(shape, len(shape))}; "
            f"give at most {max(shape)}"
        )


def _count(tree: Tree) -> dict[str, Any]:
    """Count the leaves of each size, and the patches that there would be if all were of the finest."""
    import numpy as np

    side = tree.patch_size
    uniform = math.prod(grid_shape(tree.shape, side))
    sizes, counts = np.unique(tree.sizes(), return_counts=True)
    return {
        "patches": len(tree),
        "patch_size": side,
        "uniform": uniform,
        "reduction": uniform / len(tree),
        "leaves": {str(size): int(count) for size, count in zip(sizes, counts, strict=True)},
    }


def _measure_tissue(tree: Tree, patcher: Patcher) -> dict[str, Any]:
    """Bound the share of tissue by the cells that were opened, of the finest size of which the others are surely empty.

    They are where there were leaves enough to open all that came up, or where leaves were left over.
    """
    from patchtree.slides import opened

    level = tree.max_level
    finest = int(tree.level.min()) + 1
    budget = patcher.budget
    if level < finest:  # nothing was opened, or there was nothing to open
        return {"tissue": 0.0 if level and tree.level.min() == level else None, "tissue_cell": tree.patch_size << level}
    if budget is None or len(tree) <= budget - _CHILDREN:
        level = finest
    while level > finest and _CHILDREN**2 * opened(tree, level).sum() <= len(tree):
        level -= 1
    return {"tissue": float(opened(tree, level).mean()), "tissue_cell": tree.patch_size << level}


def _describe(result: dict[str, Any]) -> str:
    """Say in a few lines what became of an image or a slide."""
    side, count, ndim = result["patch_size"], result["patches"], 3 if result.get("kind") == "volume" else 2
    times = result["seconds"]
    mpp = result.get("mpp")
    most = max(result["leaves"].values())
    fewer = result["reduction"]
    lines = [
        f"{result['image']}: {describe_size(result['shape'], ndim)}, {result['dtype']}{describe_mpp(mpp)}",
        f"  patches  {count:,} of {say_size([side] * ndim, ndim)}; "
        f"{result['uniform']:,} if they were uniform ({fewer:,.{1 if fewer < 100 else 0}f} times)",
    ]
    for at, (size, number) in enumerate(result["leaves"].items()):
        bar = "█" * max(1, round(_BLOCKS * number / most))
        scale = f"{int(size) // side * mpp[0]:>8.3g} µm/px" if mpp else ""
        unit = "px" if ndim == 2 else "voxels"
        lines.append(f"  {'leaves' if at == 0 else '':7}{size:>6} {unit}{scale} {number:>9,}  {bar}")
    if "psnr" in result:
        psnr = "exact (inf dB)" if result["psnr"] is None else f"{result['psnr']:.2f} dB PSNR"
        lines.append(f"  painted  {psnr}")
    else:
        share, cell = result["tissue"], result["tissue_cell"]
        tissue = "not known" if share is None else f"at most {share:.1%} of the slide, by cells of {cell:,} px"
        lines += [
            f"  tissue   {tissue}",
            f"  read     {result['read']:.2%} as many pixels as the finest level has",
            "  painted  not compared: it would take reading all of the finest level",
        ]
    lines += [
        f"  time     {sum(times.values()):.3f} s: " + ", ".join(f"{name} {time:.3f}" for name, time in times.items()),
        f"  wrote    {', '.join(result['files'])}",
    ]
    return "\n".join(lines)
