"""Dice, IoU and distances of borders on held-out images at full resolution, and costs, at equal training time.

patchtree, the same model on uniform patches, and networks of others on crops. Runs are kept in OUT/quality.json, which
resumes; runs of before that lack a figure leave its cell empty.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # in the folder of the script, tokenize.py would hide the standard library's
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import common
from bench.common import Case, Result, fresh
from bench.peers.networks import NETWORKS
from bench.segmentation import pictures, scores
from bench.segmentation.methods import METHODS, Trained, median_image
from bench.segmentation.report import report

from patchtree.datasets import DataSet, Pair, check_data, choose, find_data, split_data
from patchtree.io.images import image_size

LIBRARIES = ("torch", "monai", "transformers", "segmentation-models-pytorch")
# What decides which images are for what; not the seed of a training.
SPLIT_SEED = 0
HELD_OUT = 0.25
VALIDATION = 0.2


# One run


def measure(case: Case) -> Result:
    """Train one method, then compare what it predicts of every validation and held-out image with its mask."""
    warnings.simplefilter("ignore")
    common.set_threads(case["threads"])
    trained = METHODS[case["method"]](case)
    result: Result = {
        "train_seconds": trained.seconds,
        "train_memory": device_memory(),
        "steps": trained.steps,
        "parameters": trained.parameters,
        "validation": {},
        "predict_seconds": {},
        "tokens": {},
        "confusions": {},
        "hausdorff": {},
    }
    known = find_data(case["train"])
    for pair in split_data(known)[1].pairs:
        ids = trained.predict(pair.read_image())
        result["validation"][pair.name] = scores.confusion(ids, pair.read_mask(), known).tolist()
    dataset = find_data(case["data"])
    pairs = choose(dataset, case["test"]).pairs
    median = median_image({pair.name: image_size(pair.image) for pair in pairs})
    for pair in pairs:
        look(trained, pair, dataset, result)
        if pair.name == median:
            result["multiply_adds"] = trained.multiply_adds(pair.read_image())
    return {**result, "memory": device_memory()}


def look(trained: Trained, pair: Pair, dataset: DataSet, result: Result) -> None:
    """Add a held-out image to what is known of a method."""
    image, mask = pair.read_image(), pair.read_mask()
    begin = time.monotonic()
    ids = trained.predict(image)
    result["predict_seconds"][pair.name] = time.monotonic() - begin
    result["confusions"][pair.name] = scores.confusion(ids, mask, dataset).tolist()
    result["hausdorff"][pair.name] = scores.hausdorff(ids, mask, dataset)
    if trained.tokens is not None:
        result["tokens"][pair.name] = trained.tokens(image)


def device_memory() -> int:
    """Give the most memory used so far: of this process, or what torch allocated on a GPU."""
    torch = sys.modules["torch"]
    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else common.peak_memory()


# Runs that are done are kept in a file, and not repeated


class Book:
    """The finished runs, in a JSON file that is rewritten after each."""

    def __init__(self, path: Path) -> None:
        self.path, self.made = path, common.machine(LIBRARIES)
        self.runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else []
        for run in self.runs:  # once, whole paths were written
            run["case"]["data"] = Path(run["case"]["data"]).name

    def find(self, case: Case) -> Result | None:
        return next((run["result"] for run in self.runs if run["case"] == case), None)

    def add(self, case: Case, result: Result) -> None:
        self.runs.append({"case": case, "made": self.made, "result": result})
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"runs": self.runs}, indent=1))
        temporary.replace(self.path)


def run(root: Path, case: Case, book: Book, out: Path) -> Result:
    """Look a run up, or make it in a process of its own."""
    found = book.find(case)
    if found is not None:
        return found
    name = f"{case['data']}, {describe(case)}, seed {case['seed']}"
    common.progress(f"{name}: {case['seconds']:g} s of training, then {len(case['test'])} images")
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        train, _ = split_test(root)
        link(train, Path(scratch) / "data")
        places = {"data": str(root.resolve()), "train": str(Path(scratch) / "data"), "scratch": scratch}
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


# What is run


def cases_of(root: Path, args: Any) -> dict[str, dict[str, list[Case]]]:
    """List the runs of a data set by method and variant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_data(find_data(root))
    _, test = split_test(root)
    cases: dict[str, dict[str, list[Case]]] = {}
    for method in args.methods:
        for scale in args.scales if method in NETWORKS else [None]:
            case: Case = {
                "data": root.resolve().name,
                "method": method,
                "seconds": args.max_time,
                "threads": args.threads,
                "workers": args.workers,
                "test": [pair.name for pair in test.pairs],
            }
            if scale is not None:
                # Once, all of these were trained in float32, patchtree was not: those runs are not looked up.
                case |= {"scale": scale, "crop": args.crop, "width": args.width, "precision": "as patchtree's"}
            cases.setdefault(method, {})[describe(case)] = [{**case, "seed": seed} for seed in range(args.seeds)]
    return cases


def compare(root: Path, args: Any, book: Book) -> list[str]:
    """Make the runs of a data set, the first seed of all before the second of any, and report."""
    runs: dict[str, dict[str, list[Result]]] = {}
    cases = cases_of(root, args)
    for seed in range(args.seeds):
        for method, variants in cases.items():
            for name, own in variants.items():
                if args.finished and book.find(own[seed]) is None:
                    continue
                runs.setdefault(method, {}).setdefault(name, []).append(run(root, own[seed], book, args.out))
    train, test = split_test(root)
    head = f"### {root.name}: {len(train)} images to train and validate on, {len(test)} held out"
    return report(head, runs, list(test.labels))


def read_time(text: str) -> float:
    """Read ``HH:MM:SS`` as seconds."""
    seconds = 0.0
    for part in text.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def main(argv: Sequence[str]) -> None:
    parser = common.options((__doc__ or "").split("\n\n")[0])
    parser.add_argument("data", type=Path, nargs="*", metavar="DATA", help="folders as `patchtree train` takes them")
    parser.add_argument("--sizes", type=int, nargs="+", default=[], metavar="PX", help="of scikit-image's pictures")
    parser.add_argument("--pictures", nargs="+", default=list(pictures.PICTURES), choices=list(pictures.PICTURES))
    parser.add_argument("--out", type=Path, default=Path("runs/quality"), help="folder of quality.json, which resumes")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--finished", action="store_true", help="report the runs that are finished, make no others")
    parser.add_argument("--max-time", type=read_time, default=300.0, metavar="HH:MM:SS", help="of each training")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each method")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="of the input of networks on crops")
    parser.add_argument("--crop", type=int, default=256, help="side of the crops, a multiple of 32")
    parser.add_argument("--width", type=int, default=16, help="channels of the U-Net's first stage, others alike")
    parser.add_argument("--threads", type=int, default=1, help="of a training")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare samples")
    args = parser.parse_args(argv)
    if not args.quick and not args.data and not args.sizes:
        parser.error("name at least one data set, or give --sizes, or --quick")
    if args.crop < 32 or args.crop % 32:
        parser.error(f"a crop of {args.crop} px cannot be halved five times; give a multiple of 32")
    with tempfile.TemporaryDirectory() as scratch:
        if args.quick:
            args.data, args.sizes, args.pictures, args.out = [], [128], ["ihc"], Path(scratch)
            args.max_time, args.crop, args.width, args.seeds, args.scales = 1.0, 64, 4, 1, [1.0]
        args.out.mkdir(parents=True, exist_ok=True)
        book = Book(args.out / "quality.json")
        parts = [explain(args)]
        for root in args.data:
            parts += compare(root, args, book)
        for size in args.sizes:
            for picture in args.pictures:
                with tempfile.TemporaryDirectory() as folder:
                    root = pictures.make_data(Path(folder) / f"{picture}_{size}", picture, size)
                    parts += compare(root, args, book)
        common.publish(f"quality_{args.max_time:.0f}s", parts, args.save, LIBRARIES)
        if args.save:
            shutil.copy(book.path, common.RESULTS / "quality.json")


def explain(args: Any) -> str:
    """Say how the figures were made, and what they are."""
    networks = [f"{name}: {kind.title}" for name, kind in NETWORKS.items() if name in args.methods]
    named = f" {'; '.join(networks)}." if networks else ""
    scales = ", ".join(f"{scale:g}" for scale in args.scales)
    return (
        f"Each had {args.max_time:g} s from finding the images to the last step, {args.threads} thread(s) and "
        f"{args.workers} process(es) that prepare samples; up to {args.seeds} seed(s). Same images, same augmentation, "
        "cross-entropy + Dice, random weights at the start, bfloat16 in training where the processor has it. "
        "patchtree: its defaults, best validation. uniform: the same on a uniform grid of its finest patches. Others: "
        f"balanced crops of {args.crop} px in batches of 8 at input scales {scales}, as far as those are named below a "
        "table, else at the row's (the best on validation images is shown), each image normalised, classes and crops "
        "weighed alike, AdamW with cosine, last weights, no average of weights, "
        f"sliding windows blended by a Gaussian, overlap 0.25; width {args.width}.{named}\n\n"
        "Scores are of all pixels of the held-out images together, at their own size, and means over seeds; Dice and "
        "IoU are means over the classes but the background, with the 95 % interval over images and seeds (percentile "
        "bootstrap; few images say little); micro Dice is of all those classes together. HD95 is the 95 % Hausdorff "
        "distance an image and class, the diagonal for a class that is only predicted or only true. Multiply-adds are "
        "those of the model for the held-out image of median size."
    )


if __name__ == "__main__":
    common.start(main, measure)
