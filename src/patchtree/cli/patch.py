"""`patchtree patch`: images in, patches and pictures out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchtree.cli.common import DetailName, Images, Job, Json, describe_size, do_jobs, find_images, given, verb
from patchtree.errors import InputError
from patchtree.patcher import Patcher, Patches
from patchtree.patches import cut

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STRIP_ROWS = 1024
_BLOCKS = 30


@verb
def patch(
    images: Images,
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    patch_size: Annotated[
        int | None, typer.Option(help=f"Pixels on a side of a patch. (default {Patcher.patch_size})")
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
    json: Json = False,
) -> None:
    """Split images into adaptive patches.

    For each image writes STEM.npz (patches and tree) and STEM_leaves.png (the
    leaves drawn on the image), and says how many patches there are, how large
    their leaves, what uniform patches would take, how well the patches show the
    image (PSNR of painting them back; in JSON null where they show it exactly),
    and where the time went. (`patchtree train` refines by residual.)

    Example: patchtree patch slide.tif photos/ --out patches --budget 4096 --detail residual
    """
    options = given(
        patch_size=patch_size,
        budget=budget,
        threshold=threshold,
        detail=detail,
        max_level=max_level,
        balanced=balanced,
    )
    patcher = Patcher(**options)
    paths, failed = find_images(images)
    jobs = []
    for path in paths:
        outputs = out / f"{path.stem}.npz", out / f"{path.stem}_leaves.png"
        work = partial(patch_image, path, patcher, *outputs, must_fit=patch_size is not None)
        jobs.append(Job((path,), outputs, work))
    do_jobs("Patching", jobs, out, _describe, json, failed)


def patch_image(path: Path, patcher: Patcher, arrays: Path, picture: Path, must_fit: bool = False) -> dict[str, Any]:
    """Patch one image, write what comes of it, and measure it.

    Args:
        path: the image.
        patcher: what to do with it.
        arrays: where the patches go.
        picture: where the picture of the leaves goes.
        must_fit: refuse an image that is smaller than one patch.

    Returns:
        What ``patch --json`` prints of an image.
    """
    import numpy as np

    from patchtree.io.images import image_size, read_image, write_image
    from patchtree.show import show

    height, width = image_size(path)
    if must_fit and patcher.patch_size > max(height, width):
        raise InputError(
            f"{path}: patch size {patcher.patch_size} is larger than the image of {width:,} x {height:,} px; "
            f"give at most {max(height, width)}"
        )
    times = [perf_counter()]
    image = read_image(path)
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
    side = tree.patch_size
    uniform = -(-height // side) * -(-width // side)
    sizes, counts = np.unique(tree.sizes(), return_counts=True)
    psnr = measure_psnr(image, patches)
    return {
        "image": str(path),
        "shape": list(image.shape),
        "dtype": str(image.dtype),
        "patches": len(tree),
        "patch_size": side,
        "uniform": uniform,
        "reduction": uniform / len(tree),
        "leaves": {str(size): int(count) for size, count in zip(sizes, counts, strict=True)},
        "psnr": psnr if np.isfinite(psnr) else None,
        "seconds": {name: times[at + 1] - times[at] for at, name in enumerate(("read", "plan", "cut"))},
        "files": [str(arrays), str(picture)],
    }


def measure_psnr(image: NDArray[Any], patches: Patches) -> float:
    """Compare an image with its patches painted back, in decibels; infinite where they are equal.

    The peak is 255 and 65535 for 8 and 16 bits without sign, and the image's range for other types.

    >>> import numpy as np
    >>> from patchtree import Patcher
    >>> image = np.zeros((64, 64), np.uint8)
    >>> image[0, 0] = 255
    >>> round(measure_psnr(image, Patcher(budget=1)(image)), 1)
    36.4
    """
    import numpy as np

    tree = patches.tree
    squares = 0.0
    for top in range(0, len(image), _STRIP_ROWS):
        strip = image[top : top + _STRIP_ROWS]
        painted = tree.paint(patches.pixels, region=(top, 0, top + len(strip), image.shape[1]))
        error = strip.astype(np.float64) - painted
        squares += float(np.vdot(error, error))
    if squares == 0:
        return float("inf")
    if image.dtype in (np.uint8, np.uint16):
        peak = float(np.iinfo(image.dtype).max)
    else:
        peak = float(image.max()) - float(image.min())
    return float(10 * np.log10(peak**2 * image.size / squares))


def _describe(result: dict[str, Any]) -> str:
    """Say in a few lines what became of an image."""
    side, count = result["patch_size"], result["patches"]
    times = result["seconds"]
    psnr = "exact (inf dB)" if result["psnr"] is None else f"{result['psnr']:.2f} dB PSNR"
    most = max(result["leaves"].values())
    lines = [
        f"{result['image']}: {describe_size(result['shape'])}, {result['dtype']}",
        f"  patches  {count:,} of {side} x {side} px; "
        f"{result['uniform']:,} if they were uniform ({result['reduction']:.3g} times)",
    ]
    for at, (size, number) in enumerate(result["leaves"].items()):
        bar = "█" * max(1, round(_BLOCKS * number / most))
        lines.append(f"  {'leaves' if at == 0 else '':7}{size:>6} px {number:>9,}  {bar}")
    lines += [
        f"  painted  {psnr}",
        f"  time     {sum(times.values()):.3f} s: " + ", ".join(f"{name} {time:.3f}" for name, time in times.items()),
        f"  wrote    {', '.join(result['files'])}",
    ]
    return "\n".join(lines)
