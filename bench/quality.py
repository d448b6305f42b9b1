"""Dice and IoU on held-out images at full resolution, at equal training time: patchtree and a U-Net on crops."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # in the folder of the script, tokenize.py would hide the standard library's
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import json
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench import common
from bench.common import Case, Result, fresh, table
from numpy.typing import NDArray

from patchtree.datasets import DataSet, check_data, choose, find_data, split_data
from patchtree.io.images import write_image, write_mask

# What decides which images are for what; not the seed of a training.
SPLIT_SEED = 0
HELD_OUT = 0.25
VALIDATION = 0.2


@dataclass(frozen=True)
class Trained:
    """What a method gives: a way to predict, and what it took.

    Attributes:
        predict: image ``(H, W[, C])`` -> class ids ``(H, W)``.
        seconds: that the training took, imports left out.
        steps: of the optimiser.
        parameters: numbers in the model.
        tokens: tokens that it reads an image as, or None.
    """

    predict: Callable[[NDArray[Any]], NDArray[Any]]
    seconds: float
    steps: int
    parameters: int
    tokens: Callable[[NDArray[Any]], int] | None = None


# Methods: a name, and a function from a case to a `Trained`. Each is given the folder of the images to train on, with
# its split, and has `seconds` for everything from finding the images to the last step.


def train_patchtree(case: Case) -> Trained:
    """Use the library as its users do, with its defaults; the best of its validations is kept."""
    from patchtree.inference import load
    from patchtree.training import train

    out, begin = Path(case["scratch"]) / "run", time.monotonic()
    options = {"max_time": case["seconds"], "seed": case["seed"], "workers": case["workers"]}
    train(case["train"], out, **options, progress=False, report=print)
    seconds = time.monotonic() - begin
    predictor = load(out)
    rows = (out / "metrics.csv").read_text().splitlines()
    return Trained(
        predictor,
        seconds,
        steps=int(rows[-1].split(",")[rows[0].split(",").index("step")]),
        parameters=sum(weight.numel() for weight in predictor.model.parameters()),
        tokens=lambda image: len(predictor.config.patcher_for(image.shape[:2]).plan(image)),
    )


def train_unet(case: Case) -> Trained:
    """Train MONAI's U-Net on crops; the weights at the end of the cosine are kept."""
    import torch
    from bench.peers import crops

    from patchtree.cache import cache_data

    begin = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(case["seed"])
    dataset = find_data(case["train"])
    images = cache_data(split_data(dataset)[0], Path(case["scratch"]) / "cache")
    settings = crops.Settings(scale=case["scale"], crop=case["crop"], seed=case["seed"], workers=case["workers"])
    network = crops.make_unet(images[0].channels, len(dataset.labels), case["width"])
    supply = crops.Crops.of(images, len(dataset.labels), dataset.ignore, settings)
    steps = crops.train(network, supply, case["seconds"] - (time.monotonic() - begin), device)
    return Trained(
        lambda image: crops.predict(network, image, settings, device),
        time.monotonic() - begin,
        steps,
        parameters=sum(weight.numel() for weight in network.parameters()),
    )


METHODS: dict[str, Callable[[Case], Trained]] = {"patchtree": train_patchtree, "unet": train_unet}


# One run


def measure(case: Case) -> Result:
    """Train one method and count, for each held-out image, the pixels of every true and predicted class."""
    warnings.simplefilter("ignore")
    common.set_threads(case["threads"])
    trained = METHODS[case["method"]](case)
    result: Result = {
        "train_seconds": trained.seconds,
        "train_memory": device_memory(),
        "steps": trained.steps,
        "parameters": trained.parameters,
        "predict_seconds": {},
        "tokens": {},
        "confusions": {},
    }
    dataset = find_data(case["data"])
    for pair in choose(dataset, case["test"]).pairs:
        image = pair.read_image()
        begin = time.monotonic()
        ids = trained.predict(image)
        result["predict_seconds"][pair.name] = time.monotonic() - begin
        result["confusions"][pair.name] = confusion(ids, pair.read_mask(), dataset).tolist()
        if trained.tokens is not None:
            result["tokens"][pair.name] = trained.tokens(image)
    return {**result, "memory": device_memory()}


def device_memory() -> int:
    """Give the most memory used so far: of this process, or what torch allocated on a GPU."""
    torch = sys.modules["torch"]
    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else common.peak_memory()


def confusion(ids: NDArray[Any], mask: NDArray[Any], dataset: DataSet) -> NDArray[np.int64]:
    """Count pixels, ``(K, K)``, the true class first."""
    classes = len(dataset.labels)
    known = np.ones(mask.shape, bool) if dataset.ignore is None else mask != dataset.ignore
    pairs = mask[known].astype(np.int64) * classes + ids[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


# Runs that are done are kept in a file, and not repeated


class Book:
    """The finished runs, in a JSON file that is rewritten after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else []

    def find(self, case: Case) -> Result | None:
        return next((run["result"] for run in self.runs if run["case"] == case), None)

    def add(self, case: Case, result: Result) -> None:
        self.runs.append({"case": case, "result": result})
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"runs": self.runs}, indent=1))
        temporary.replace(self.path)


def run(case: Case, book: Book, out: Path) -> Result:
    """Look a run up, or make it in a process of its own."""
    found = book.find(case)
    if found is not None:
        return found
    name = f"{Path(case['data']).name}, {describe(case)}, seed {case['seed']}"
    common.progress(f"{name}: {case['seconds']:g} s of training, then {len(case['test'])} images")
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        train, _ = split_test(Path(case["data"]))
        link(train, Path(scratch) / "data")
        places = {"train": str(Path(scratch) / "data"), "scratch": scratch}
        result = fresh(__file__, {**case, **places}, threads=case["threads"])
    if "failed" in result:
        common.progress(f"{name} failed: {result['failed']}")
    else:
        book.add(case, result)
    return result


def describe(case: Case) -> str:
    return case["method"] if "scale" not in case else f"{case['method']}, input x {case['scale']:g}"


# Who sees which image


def split_test(root: Path) -> tuple[DataSet, DataSet]:
    """Split into images to train on and images to test on; ``splits.json`` decides where there is one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return split_data(find_data(root), HELD_OUT, SPLIT_SEED)


def link(dataset: DataSet, folder: Path) -> None:
    """Make a data set's folder of links, with labels and a split: what every method trains on, or validates on."""
    for pair in dataset.pairs:
        for path in (pair.image, *pair.channels, pair.mask):
            place = folder / path.parent.name / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.resolve())
    labels = dataset.labels if dataset.ignore is None else {**dataset.labels, "ignore": dataset.ignore}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    unsplit = DataSet(folder, dataset.pairs, dataset.labels, dataset.ignore)
    train, val = ([pair.name for pair in part.pairs] for part in split_data(unsplit, VALIDATION, SPLIT_SEED))
    (folder / "splits.json").write_text(json.dumps({"train": train, "val": val}))


# The report


def dice(table: NDArray[Any]) -> NDArray[np.float64]:
    """Give the Dice of each class, nan for one neither true nor predicted; ``(..., K, K)`` -> ``(..., K)``."""
    both, sums = np.diagonal(table, axis1=-2, axis2=-1), table.sum(-1) + table.sum(-2)
    return np.where(sums > 0, 2 * both / np.maximum(sums, 1), np.nan)


def iou(table: NDArray[Any]) -> NDArray[np.float64]:
    score = dice(table)
    return score / (2 - score)


def mean(scores: NDArray[np.float64]) -> float:
    """Average the classes but the background, those that are nowhere left out."""
    foreground = scores[..., 1:]
    return float(np.nanmean(foreground)) if np.isfinite(foreground).any() else float("nan")


def spread(values: Sequence[float]) -> str:
    """Write a number, and its deviation over the seeds where there are several."""
    text = f"{statistics.mean(values):.3f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.3f}"


def by_class(images: NDArray[Any]) -> NDArray[np.float64]:
    """Average the Dice of each class over the images where it is true or predicted, ``(I, K, K)`` -> ``(K,)``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that is nowhere
        return np.nanmean(dice(images), axis=0)


def score_rows(name: str, results: Sequence[Result], labels: Sequence[str]) -> list[Sequence[object]]:
    """Give a row for the mean of the foreground, then one for each class."""
    images = [np.array(list(result["confusions"].values())) for result in results]
    whole = [one.sum(0) for one in images]
    kinds = [[dice(one) for one in whole], [iou(one) for one in whole], [by_class(one) for one in images]]
    rows: list[Sequence[object]] = [(name, "**mean**", *(spread([mean(one) for one in kind]) for kind in kinds))]
    for at, label in enumerate(labels):
        rows.append(("", label, *(spread([float(one[at]) for one in kind]) for kind in kinds)))
    return rows


def cost_row(name: str, results: Sequence[Result]) -> Sequence[object]:
    def average(values: Sequence[float]) -> float:
        return statistics.mean(values)

    tokens = [count for result in results for count in result["tokens"].values()]
    seconds = [statistics.median(result["predict_seconds"].values()) for result in results]
    return (
        name,
        f"{average([result['train_seconds'] for result in results]):.0f}",
        f"{average([result['steps'] for result in results]):.0f}",
        f"{average([result['train_memory'] for result in results]) / 1e9:.2f}",
        f"{average(seconds):.2f}",
        f"{average(tokens):,.0f}" if tokens else "",
        f"{results[0]['parameters'] / 1e6:.2f} M",
    )


SCORES = ("method", "class", "Dice, all pixels", "IoU, all pixels", "Dice, mean of images")
COSTS = ("method", "training, s", "steps", "peak memory, GB", "prediction, s an image", "tokens an image", "parameters")


def report(root: Path, runs: dict[str, list[Result]], about: str) -> list[str]:
    """Write what there is of a data set."""
    train, test = split_test(root)
    done = {name: [one for one in results if "failed" not in one] for name, results in runs.items()}
    failed = [f"{name}: {one['failed']}." for name, results in runs.items() for one in results if "failed" in one]
    scores = [
        line for name, results in done.items() if results for line in score_rows(name, results, list(test.labels))
    ]
    costs = [cost_row(name, results) for name, results in done.items() if results]
    head = f"### {root.name}: {len(train)} images to train and validate on, {len(test)} held out"
    return [head, about, table(SCORES, scores), table(COSTS, costs), *failed]


def cases_of(root: Path, args: Any) -> dict[str, list[Case]]:
    """List the runs of a data set by method; the first seed of all comes before the second of any."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_data(find_data(root))
    _, test = split_test(root)
    cases: dict[str, list[Case]] = {}
    for seed in range(args.seeds):
        for method in args.methods:
            for scale in args.scales if method == "unet" else [None]:
                case: Case = {
                    "data": str(root.resolve()),
                    "method": method,
                    "seed": seed,
                    "seconds": args.max_time,
                    "threads": args.threads,
                    "workers": args.workers,
                    "test": [pair.name for pair in test.pairs],
                }
                if scale is not None:
                    case |= {"scale": scale, "crop": args.crop, "width": args.width}
                cases.setdefault(describe(case), []).append(case)
    return cases


def read_time(text: str) -> float:
    """Read ``HH:MM:SS`` as seconds."""
    seconds = 0.0
    for part in text.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def make_example(folder: Path) -> Path:
    """Write a few small images with labels by their stains, to try the script on."""
    picture = common.load_picture("ihc")
    labels = common.stain_labels(picture)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for at in range(6):
        part = (slice(256 * (at % 2), 256 * (at % 2) + 256), slice(128 * (at // 2), 128 * (at // 2) + 256))
        write_image(folder / "images" / f"{at}.png", np.ascontiguousarray(picture[part]))
        write_mask(folder / "masks" / f"{at}.png", np.ascontiguousarray(labels[part]))
    return folder


def main(argv: Sequence[str]) -> None:
    parser = common.options(__doc__)
    parser.add_argument("data", type=Path, nargs="*", metavar="DATA", help="folders as `patchtree train` takes them")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"), help="folder of quality.json, which resumes")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--max-time", type=read_time, default=300.0, metavar="HH:MM:SS", help="of each training")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each method")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="of the U-Net's input")
    parser.add_argument("--crop", type=int, default=256, help="side of the U-Net's crops")
    parser.add_argument("--width", type=int, default=16, help="channels of the U-Net's first stage")
    parser.add_argument("--threads", type=int, default=1, help="of a training")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare samples")
    args = parser.parse_args(argv)
    if not args.quick and not args.data:
        parser.error("name at least one data set, or give --quick")
    with tempfile.TemporaryDirectory() as scratch:
        if args.quick:
            args.data, args.out = [make_example(Path(scratch) / "example")], Path(scratch)
            args.max_time, args.crop, args.seeds, args.scales = 3.0, 64, 1, [1.0]
        args.out.mkdir(parents=True, exist_ok=True)
        book = Book(args.out / "quality.json")
        parts = []
        for root in args.data:
            runs: dict[str, list[Result]] = {}
            cases = cases_of(root, args)
            for seed in range(args.seeds):
                for name, own in cases.items():
                    runs.setdefault(name, []).append(run(own[seed], book, args.out))
            parts += report(root, runs, explain(args))
        common.publish("quality", parts, args.save, ["torch", "monai"])
        if args.save:
            shutil.copy(book.path, common.RESULTS / "quality.json")


def explain(args: Any) -> str:
    return (
        f"Each had {args.max_time:g} s from finding the images to the last step, {args.threads} thread(s) and "
        f"{args.workers} process(es) that prepare samples; {args.seeds} seed(s). Same images, same augmentation; "
        "scores in pixels of the original images. patchtree: its defaults (cross-entropy + Dice, "
        "bfloat16 where the processor has it), best validation. unet: cross-entropy + Dice, float32; MONAI's UNet "
        f"({args.width} to {16 * args.width} channels, residual units), balanced crops of {args.crop} px in batches of "
        "8, each image normalised, AdamW with cosine, sliding windows blended by a Gaussian, overlap 0.25."
    )


if __name__ == "__main__":
    common.start(main, measure)
