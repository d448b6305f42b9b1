"""`patchtree demo`: the whole job on a picture that ships with scikit-image."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchtree.cli.common import Json, make_folder, parse_time, print_json, verb
from patchtree.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PATCH_SIZE = 8
_BUDGET = 400  # of a training image of the median area; as many uniform patches would be 1,044
_WINDOW = 192
_BATCH = 4  # many small steps learn most in two minutes
_LABELS = {"unstained": 0, "DAB stain": 1}
# (y0, x0, y1, x1) of the parts that the picture is cut into; no two share a pixel.
_PARTS = {"train": (0, 0, 288, 512), "val": (288, 0, 512, 232), "test": (288, 232, 512, 512)}
_BLUR = 2.0  # pixels
_MARKER = "README.txt"
_README = """\
Made by `patchtree demo`; the next demo in this folder replaces it.

The picture is skimage.data.immunohistochemistry(): colon glands, antibody against FHL2 in brown (DAB), nuclei in blue
(haematoxylin), 512 x 512 pixels. The "truth" was not drawn by a person, it is computed from the colours: the DAB
channel of colour deconvolution (A. C. Ruifrok and D. A. Johnston, Quantification of histochemical staining by color
deconvolution, 2001), blurred by 2 pixels, above Otsu's threshold. So this shows that the whole job works, and not how
good a model is.

data/     the picture's upper part to train on, its lower left part to validate on (splits.json)
test/     its lower right part, which the training never sees
patches/  patches and leaves of the whole picture
run/      the trained model
masks/    the prediction for test/
demo.png  leaves, prediction and truth of test/
"""
_TINT = (0, 158, 115)  # bluish green of M. Okabe and K. Ito's palette: also colour-blind people tell it from brown
_SECONDS = 120.0
_SCALE = 3


@verb
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("patchtree-demo"),
    max_time: Annotated[
        float | None,
        typer.Option(parser=parse_time, metavar="HH:MM:SS", help="How long to train. (default 00:02:00)"),
    ] = None,
    json: Json = False,
) -> None:
    """Do the whole job once: data, patches, training, prediction, score, pictures.

    Takes three minutes on two cores. The picture ships with scikit-image, so
    nothing is downloaded. Its labels are computed from its colours, and a part
    of it is kept for the test.

    Example: patchtree demo --out demo --max-time 00:01:00
    """
    from patchtree.cli.evaluate import score
    from patchtree.cli.masks import Wanted, predict_image
    from patchtree.cli.patch import patch_image
    from patchtree.datasets import find_data
    from patchtree.inference import load
    from patchtree.io.images import read_image, read_mask, write_image
    from patchtree.patcher import Patcher
    from patchtree.show import show
    from patchtree.training import train

    def say(line: str) -> None:
        typer.echo(line, err=json)

    _clear(out)
    _write_data(out)
    say(f"data      {out / 'data'}: a brown stain in colon glands, labels computed from colour (see {out / _MARKER})")

    whole = out / "patches" / "ihc.png"
    leaves = whole.with_name("ihc_leaves.png")
    figures = patch_image(whole, Patcher(_PATCH_SIZE, 4 * _BUDGET), whole.with_suffix(".npz"), leaves)
    say(f"patches   {leaves}: {figures['patches']:,} leaves, {figures['uniform']:,} if they were uniform")

    run = train(
        out / "data",
        out / "run",
        max_time=max_time or _SECONDS,
        patch_size=_PATCH_SIZE,
        budget=_BUDGET,
        window=_WINDOW,
        batch_size=_BATCH,
        report=lambda line: typer.echo(f"          {line}", err=True),
    )
    say(f"training  {run}")

    predictor = load(run)
    test = out / "test" / "images" / "test.png"
    mask = make_folder(out / "masks") / "test.png"
    predict_image([test], predictor, Wanted(mask))
    result = score(predictor, find_data(out / "test").pairs)
    dice = result["classes"]["DAB stain"]["dice"]
    say(f"test      {mask}: Dice {dice:.3f} on a part that the training never saw")

    image, truth = read_image(test), read_mask(out / "test" / "masks" / "test.png")
    patches = predictor.config.patcher_for(image.shape[:2])(image)
    panels = {
        f"{len(patches)} leaves": show(image, patches.tree, _SCALE * max(image.shape)),
        f"prediction, Dice {dice:.3f}": tint(image, read_mask(mask)),
        "truth, computed from colour": tint(image, truth),
    }
    write_image(out / "demo.png", side_by_side(panels, "patchtree demo: brown stain (DAB), a part not trained on"))
    say(f"picture   {out / 'demo.png'}")
    if json:
        print_json({"patches": figures, "run": str(run), "test": result, "picture": str(out / "demo.png")})


def stain_labels(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Label the pixels that are stained brown (DAB), ``(H, W, 3)`` -> ``(H, W)``, 1 where they are.

    Source: A. C. Ruifrok and D. A. Johnston, Quantification of histochemical staining by color deconvolution,
    Analytical and Quantitative Cytology and Histology 23(4), 2001; N. Otsu, A threshold selection method from
    gray-level histograms, IEEE Transactions on Systems, Man and Cybernetics 9(1), 1979.
    """
    import numpy as np
    from skimage.color import rgb2hed
    from skimage.filters import gaussian, threshold_otsu

    stain: NDArray[np.float64] = gaussian(rgb2hed(image)[..., 2], _BLUR)  # type: ignore[no-untyped-call]
    mask: NDArray[np.uint8] = (stain > threshold_otsu(stain)).astype(np.uint8)  # type: ignore[no-untyped-call]
    return mask


def tint(image: NDArray[np.uint8], mask: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    """Colour what a mask marks, and outline it, enlarged by a whole factor; ``(H, W, 3)`` RGB."""
    import numpy as np

    image = image.repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)
    inside = (mask > 0).repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)
    # A pixel lies on the outline if it is inside and one of its four neighbours is not.
    padded = np.pad(inside, 1, mode="edge")
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    share = (0.35 * inside + 0.65 * (inside & ~core))[..., None]
    tinted: NDArray[np.uint8] = np.rint(image + share * (np.array(_TINT) - image)).astype(np.uint8)
    return tinted


def side_by_side(panels: dict[str, NDArray[np.uint8]], title: str) -> NDArray[np.uint8]:
    """Set pictures beside each other on white, each under its label; ``(H, W, 3)`` RGB."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    gap, top = 24, 120
    height = max(panel.shape[0] for panel in panels.values())
    width = sum(panel.shape[1] + gap for panel in panels.values()) + gap
    sheet = Image.new("RGB", (width, height + top + gap), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, gap), title, fill="black", font=ImageFont.load_default(30))
    left = gap
    for label, panel in panels.items():
        draw.text((left, top - 36), label, fill=(64, 64, 64), font=ImageFont.load_default(24))
        sheet.paste(Image.fromarray(panel), (left, top))
        left += panel.shape[1] + gap
    return np.asarray(sheet)


def _clear(out: Path) -> None:
    """Make an empty folder, of a former demo if there is one.

    Raises:
        InputError: the folder holds something that no demo wrote.
    """
    if out.is_dir() and any(out.iterdir()):
        if not (out / _MARKER).is_file() or (out / _MARKER).read_text(encoding="utf-8") != _README:
            raise InputError(f"{out}: holds files that no demo wrote; choose another --out folder")
        shutil.rmtree(out)
    make_folder(out)
    (out / _MARKER).write_text(_README, encoding="utf-8")


def _write_data(out: Path) -> None:
    """Write the whole picture, and its parts as two data sets."""
    from skimage.data import immunohistochemistry

    from patchtree.io.images import write_image, write_mask

    image = immunohistochemistry()  # type: ignore[no-untyped-call]
    labels = stain_labels(image)
    write_image(make_folder(out / "patches") / "ihc.png", image)
    for name, (y0, x0, y1, x1) in _PARTS.items():
        folder = out / ("test" if name == "test" else "data")
        write_image(make_folder(folder / "images") / f"{name}.png", image[y0:y1, x0:x1])
        write_mask(make_folder(folder / "masks") / f"{name}.png", labels[y0:y1, x0:x1])
        (folder / "dataset.json").write_text(json.dumps({"labels": _LABELS}), encoding="utf-8")
    splits = {"train": ["train"], "val": ["val"]}
    (out / "data" / "splits.json").write_text(json.dumps(splits), encoding="utf-8")
