"""Training end to end on tiny images: what a run holds, killed and resumed runs, several processes."""

from __future__ import annotations

import csv
import itertools
import json
import math
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from patchtree.budget import ALIKE
from patchtree.datasets import find_data
from patchtree.errors import InputError
from patchtree.inference import evaluate, load
from patchtree.io.images import write_image, write_mask
from patchtree.metrics import dice
from patchtree.models.choose import build, build_classifier, build_model
from patchtree.options import choose_options
from patchtree.patcher import Patches
from patchtree.runs import CHECKPOINT, CONFIG, METRICS, WEIGHTS, load_config, weights_metadata
from patchtree.samples import Sample, collate_samples
from patchtree.tasks import ImageTask, Task
from patchtree.training import train
from patchtree.tree import Tree
from patchtree.windows import Windows

HERE: dict[str, Any] = {"workers": 0, "accelerator": "cpu", "progress": False}
SMALL: dict[str, Any] = {"model": "patchtree:nano", "patch_size": 8, "budget": 16, "detail": "variance", **HERE}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five noisy pictures of a bright disc."""
    root = tmp_path_factory.mktemp("discs")
    (root / "images").mkdir()
    (root / "masks").mkdir()
    rng = np.random.default_rng(0)
    rows, columns = np.indices((64, 48))
    for name in "abcde":
        disc = np.hypot(rows - rng.integers(20, 44), columns - rng.integers(16, 32)) < 12
        image = np.clip(60 + 120 * disc + rng.normal(0, 10, disc.shape), 0, 255)
        write_image(root / "images" / f"{name}.png", image.astype(np.uint8))
        write_mask(root / "masks" / f"{name}.png", disc)
    return root


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four epochs, two steps each, that nothing interrupts."""
    return train(data, tmp_path_factory.mktemp("whole") / "run", max_epochs=4, batch_size=2, **SMALL)


def rows(run: Path) -> list[dict[str, str]]:
    with (run / METRICS).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def checkpoint(run: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(run / CHECKPOINT, weights_only=True)
    return loaded


def run_python(script: str, *arguments: object, expected: int = 0) -> str:
    """Run a script in a process of its own and give what it says on standard error."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == expected, done.stderr
    return done.stderr


def assert_same(run: Path, other: Path) -> None:
    """Two runs ended in the same state, bit by bit, and wrote down the same but for the time it took."""
    first, second = checkpoint(run), checkpoint(other)
    assert first["global_step"] == second["global_step"]
    for name, weight in first["state_dict"].items():
        assert torch.equal(weight, second["state_dict"][name]), name
    for index, state in first["optimizer_states"][0]["state"].items():
        other_state = second["optimizer_states"][0]["state"][index]
        for name, value in state.items():  # Muon keeps flags too
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other_state[name])), name
    for name, weight in first["callbacks"]["Average"]["weights"].items():
        assert torch.equal(weight, second["callbacks"]["Average"]["weights"][name]), name
    assert first["callbacks"]["Course"]["samples"] == second["callbacks"]["Course"]["samples"]
    kept, twins = load_file(run / WEIGHTS), load_file(other / WEIGHTS)
    assert all(torch.equal(weight, twins[name]) for name, weight in kept.items())
    assert weights_metadata(run) == weights_metadata(other)
    for row, twin in zip(rows(run), rows(other), strict=True):
        assert row | {"seconds": ""} == twin | {"seconds": ""}


def test_a_run_folder_says_all_it_needs(whole: Path, data: Path) -> None:
    config = load_config(whole)
    assert config.labels == {"background": 0, "class 1": 1}
    assert config.channels == 1
    assert sorted(config.train + config.val) == list("abcde")
    assert config.patcher_for((64, 48)).patch_size == 8
    assert config.density == 16 / (64 * 48)
    assert {"python", "torch", "patchtree"} <= config.versions.keys()
    assert build(labels=config.labels, **config.model).config == config.model
    assert [int(row["step"]) for row in rows(whole)] == [2, 4, 6, 8]
    found = [float(row["dice"]) for row in rows(whole)]
    kept = max(at for at, score in enumerate(found) if score >= max(found[: at + 1]) - ALIKE)
    assert weights_metadata(whole)["step"] == rows(whole)[kept]["step"]
    assert float(weights_metadata(whole)["dice"]) == pytest.approx(found[kept], abs=1e-5)
    assert list((whole / "logs").glob("events*"))
    assert sorted(path.name for path in whole.iterdir()) == [CONFIG, CHECKPOINT, "logs", METRICS, WEIGHTS]


def test_three_lines_say_what_was_chosen(data: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    train(data, tmp_path / "run", max_epochs=1, report=lines.append, **SMALL)
    assert [line.split(":")[0] for line in lines[:3]] == ["data", "patches", "model"]
    assert all(len(line.replace(str(tmp_path), "")) < 120 for line in lines)
    assert lines[3].startswith("step 1, ")
    assert lines[-1].startswith("best Dice ")


def test_a_killed_run_goes_on_as_if_nothing_had_happened(data: Path, whole: Path, tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(
        textwrap.dedent("""
            import os, signal, sys
            import torch
            from patchtree.training import train

            torch.set_num_threads(1)

            def report(line):
                if line.startswith("step 6, "):
                    os.kill(os.getpid(), signal.SIGKILL)

            if __name__ == "__main__":
                train(sys.argv[1], sys.argv[2], max_epochs=4, batch_size=2, patch_size=8, budget=16,
                      model="patchtree:nano", detail="variance", workers=1, accelerator="cpu", report=report)
        """)
    )
    said = run_python(str(script), data, tmp_path / "run", expected=-signal.SIGKILL)
    assert said == ""
    assert checkpoint(tmp_path / "run")["global_step"] == 5
    assert len(rows(tmp_path / "run")) == 3
    with (tmp_path / "run" / METRICS).open("a", encoding="utf-8") as file:
        file.write("8,0.")  # a row that was being written
    train(data, tmp_path / "run", max_epochs=4, resume=True, **HERE)
    assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize(
    "options",
    [
        {"model": "timm:test_vit", "head": "depths", "layer_decay": 0.5, "freeze": 1},
        {"model": "timm:test_vit", "lora": 2},
        pytest.param({"model": "smp:unet/resnet18"}, marks=pytest.mark.slow),  # its batch norms have buffers
    ],
)
@pytest.mark.filterwarnings("ignore:what is not trained of the encoder", "ignore:the model's patches are 16")
def test_other_models_resume_and_predict(
    options: dict[str, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Adapters that are merged into their matrices round otherwise in half precision.
    monkeypatch.setattr("patchtree.models.precision.half_is_quick", lambda device: False)
    pytest.importorskip({"t": "peft", "s": "segmentation_models_pytorch"}[options["model"][0]])
    options = {**SMALL, **options, "max_epochs": 3, "batch_size": 2}
    lines: list[str] = []
    one = train(data, tmp_path / "one", report=lines.append, **options)
    assert lines[3].startswith("weights: random, --weights begins with trained ones; learning rate")

    def report(line: str) -> None:
        if line.startswith("step 2, "):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit):
        train(data, tmp_path / "two", report=report, **options)
    assert_same(train(data, tmp_path / "two", max_epochs=3, resume=True, **HERE), one)
    groups = checkpoint(one)["optimizer_states"][0]["param_groups"]
    assert all(group["lr"] == pytest.approx(groups[0]["lr"] * group["lr_scale"]) for group in groups)
    assert len({group["lr"] for group in groups}) == (6 if "layer_decay" in options else 1)
    # What is kept needs neither adapters nor the library's weights, and is the average that was validated.
    predictor = load(one, "cpu", smooth=False)
    config = load_config(one)
    [pair] = [pair for pair in find_data(data).pairs if pair.name in config.val]
    [table] = evaluate(predictor, [pair])
    assert dice(table)[1].item() == pytest.approx(float(weights_metadata(one)["dice"]), abs=1e-5)


@pytest.fixture
def default_ctrl_c() -> Iterator[None]:
    """Python's own Ctrl-C: a process started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_ctrl_c")
def test_ctrl_c_saves_and_stops(data: Path, whole: Path, tmp_path: Path) -> None:
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        if line.startswith("step 4, "):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", max_epochs=4, batch_size=2, report=report, **SMALL)
    assert lines[-1] == "stopped after 5 steps, all is saved; go on with --resume"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert checkpoint(tmp_path / "run")["global_step"] == 5
    train(data, tmp_path / "run", max_epochs=4, resume=True, **SMALL)
    assert_same(tmp_path / "run", whole)


def test_sigterm_saves_and_stops(data: Path, whole: Path, tmp_path: Path) -> None:
    def report(line: str) -> None:
        if line.startswith("step 4, "):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit):
        train(data, tmp_path / "run", max_epochs=4, batch_size=2, report=report, **SMALL)
    assert checkpoint(tmp_path / "run")["global_step"] == 4
    train(data, tmp_path / "run", max_epochs=4, resume=True, **HERE)
    assert_same(tmp_path / "run", whole)


def test_the_bar_goes_to_standard_error(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    train(data, tmp_path / "run", max_epochs=1, **{**SMALL, "progress": True})
    said = capsys.readouterr()
    assert said.out == ""
    assert "100%" in said.err


def test_a_complete_run_can_be_made_longer(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "run", max_epochs=1, batch_size=2, **SMALL)
    lines: list[str] = []
    # How long it is for is remembered.
    train(data, tmp_path / "run", resume=True, report=lines.append, **SMALL)
    assert "is complete" in lines[-1]
    train(data, tmp_path / "run", max_epochs=3, resume=True, **SMALL)
    assert [int(row["step"]) for row in rows(tmp_path / "run")] == [2, 4, 6]
    assert checkpoint(tmp_path / "run")["global_step"] == 6


def test_time_is_kept_and_remembered(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that goes on by 0.1 s each time it is read, so that no machine is too slow or too quick.
    clock = SimpleNamespace(monotonic=partial(next, itertools.count(0, 0.1)))
    monkeypatch.setattr("patchtree.training.time", clock)
    monkeypatch.setattr("patchtree.schedule.time", clock)
    run = train(data, tmp_path / "run", max_time=10, **SMALL)
    last = rows(run)[-1]
    assert int(last["step"]) == checkpoint(run)["global_step"]
    assert 9 < float(last["seconds"]) < 11
    assert float(last["lr"]) < 3e-4
    train(data, run, max_time=15, resume=True, **SMALL)
    longer = rows(run)[-1]
    assert 14 < float(longer["seconds"]) < 16
    assert int(longer["step"]) > int(last["step"])


def test_two_processes_train_as_one(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Adam hardly cares for the scale of gradients, so their norm is compared too.
    script = tmp_path / "both.py"
    script.write_text(
        textwrap.dedent("""
            import sys
            from pathlib import Path

            import torch
            from patchtree.tasks import Task
            from patchtree.training import train

            torch.set_num_threads(1)

            def note(task, optimizer):
                if task.global_rank == 0:
                    norm = torch.nn.utils.get_total_norm([weight.grad for weight in task.parameters()])
                    with Path(sys.argv[3]).open("a") as file:
                        print(norm.item(), file=file)

            if __name__ == "__main__":
                Task.on_before_optimizer_step = note
                train(sys.argv[1], sys.argv[2], max_epochs=3, batch_size=2, patch_size=8, budget=16,
                      model="patchtree:nano", detail="variance", workers=0, accelerator="cpu", devices=2,
                      strategy="ddp", lr=1e-4, precision="32-true")
        """)
    )
    assert run_python(str(script), data, tmp_path / "two", tmp_path / "norms.txt") == ""
    norms: list[float] = []

    def note(task: Task, optimizer: object) -> None:
        norms.append(torch.nn.utils.get_total_norm([weight.grad for weight in task.parameters()]).item())

    monkeypatch.setattr(Task, "on_before_optimizer_step", note)
    train(data, tmp_path / "one", max_epochs=3, batch_size=4, lr=1e-4, precision="32-true", **SMALL)
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [row["step"] for row in one] == [row["step"] for row in two] == ["1", "2", "3"]
    for row, twin in zip(one, two, strict=True):
        assert float(row["loss"]) == pytest.approx(float(twin["loss"]), abs=2e-5)
        assert float(row["dice"]) == pytest.approx(float(twin["dice"]), abs=2e-3)
    assert [float(line) for line in (tmp_path / "norms.txt").read_text().split()] == pytest.approx(norms, rel=1e-3)
    assert checkpoint(tmp_path / "two")["callbacks"]["Course"]["samples"] == 12


def test_a_run_is_not_overwritten(whole: Path, data: Path) -> None:
    with pytest.raises(InputError, match="holds a run already"):
        train(data, whole, max_epochs=1, **SMALL)


def test_a_resumed_run_keeps_its_options(whole: Path, data: Path) -> None:
    with pytest.raises(InputError, match="was started with budget 16"):
        train(data, whole, max_epochs=9, resume=True, **{**SMALL, "budget": 20})
    with pytest.raises(InputError, match="was started with detail"):
        train(data, whole, max_epochs=9, resume=True, detail="edges", **HERE)


def test_resume_without_a_run_starts_one(data: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    train(data, tmp_path / "run", max_epochs=1, resume=True, report=lines.append, **SMALL)
    assert lines[0] == f"nothing to resume in {tmp_path / 'run'}, begins anew"
    assert (tmp_path / "run" / WEIGHTS).exists()


def test_a_folder_of_something_else_is_left_alone(data: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "mine").touch()
    train(data, tmp_path, max_epochs=1, **SMALL)
    assert (tmp_path / "cache" / "mine").exists()
    for name in (CONFIG, METRICS):
        other = tmp_path / name[:3]
        other.mkdir()
        (other / name).write_text("{}")
        with pytest.raises(InputError, match="or choose another folder for the run"):
            train(data, other, max_epochs=1, **SMALL)
        assert (other / name).read_text() == "{}"


def test_trained_weights_are_not_begun_anew(whole: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / CHECKPOINT).unlink()
    with pytest.raises(InputError, match=rf"{CHECKPOINT}: is missing.*give --weights"):
        train(data, tmp_path / "run", max_epochs=9, resume=True, **SMALL)
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_an_empty_table_hinders_nothing(data: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / METRICS).write_bytes(b"")
    train(data, tmp_path / "run", max_epochs=4, resume=True, **HERE)
    assert not (tmp_path / "run" / METRICS).read_bytes()


def test_a_damaged_checkpoint_is_one_line(data: Path, tmp_path: Path) -> None:
    for content in (b"", b"not a checkpoint"):
        (tmp_path / CHECKPOINT).write_bytes(content)
        with pytest.raises(InputError, match=f"{CHECKPOINT}: cannot be read") as caught:
            train(data, tmp_path, max_epochs=1, resume=True, **SMALL)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_time": 0},
        {"max_epochs": 0},
        {"window": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"model": "patchtree:vast"},
        {"layer_decay": 0.0},
        {"freeze": 3},
        {"freeze": 1, "lora": 2},
        {"strategy": "fsdp"},
        {"seed": -1},
    ],
)
def test_what_is_not_possible_is_refused(data: Path, tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        train(data, tmp_path / "run", **{**SMALL, "max_epochs": 1, **wrong})
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_ends_the_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patchtree.tasks.loss_of_sums", lambda sums, _: sums.sum() * torch.nan)
    with pytest.raises(InputError, match="no longer a finite number"):
        train(data, tmp_path / "run", max_epochs=1, **SMALL)
    assert not (tmp_path / "run" / WEIGHTS).exists()


def test_a_fault_in_a_process_that_makes_samples_is_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Windows, index: int) -> Sample:
        raise InputError("mips.bin: cannot be written, the disk is full; free some space")

    monkeypatch.setattr(Windows, "__getitem__", full)
    with pytest.raises(InputError) as raised:
        train(data, tmp_path / "run", max_epochs=1, **{**SMALL, "workers": 1})
    assert str(raised.value) == "mips.bin: cannot be written, the disk is full; free some space"


def test_only_matrices_decay() -> None:
    task = Task(build_model("patchtree:tiny", 2, patch_size=8), lr=1e-3)
    matrices, vectors = task.configure_optimizers().param_groups
    assert matrices["weight_decay"] > 0
    assert vectors["weight_decay"] == 0
    assert all(weight.ndim > 1 for weight in matrices["params"])
    names = {id(weight): name for name, weight in task.named_parameters()}
    assert all(names[id(weight)].endswith(("bias", "weight", "gamma")) for weight in vectors["params"])
    assert len(names) == len(matrices["params"]) + len(vectors["params"])


def test_rare_classes_count_for_more_to_begin_with() -> None:
    task = Task(build_model("patchtree:tiny", 3, patch_size=8), lr=1e-3, shares=(0.8, 0.2, 0.0))
    common, rare, absent = task.class_weight().tolist()
    assert rare == pytest.approx(2 * common)
    assert math.isfinite(absent)
    task.progress = 0.5
    common, rare, _ = task.class_weight().tolist()
    assert rare == pytest.approx(math.sqrt(2) * common)
    task.progress = 1.0
    assert task.class_weight().tolist() == [1, 1, 1]


def test_windows_count_by_their_odds_in_the_end() -> None:
    task = Task(build_model("patchtree:tiny", 2, patch_size=8), lr=1e-3)
    tree = Tree.uniform((16, 16), 8)
    patches = Patches(np.zeros((4, 8, 8, 3), np.uint8), tree)
    samples = [Sample(patches, np.ones((4, 8, 8, 2), np.float32), "a", odds) for odds in (0.5, 1.0, 4.0)]
    batch = collate_samples(samples)
    for progress, expected in ((0.0, [1, 1, 1]), (0.5, [2**0.5, 1, 0.5]), (1.0, [2, 1, 0.25])):
        task.progress = progress
        assert task.window_weight(batch).tolist() == pytest.approx(expected)


def test_a_class_that_is_in_no_validation_image_does_not_choose_the_weights() -> None:
    """A single pixel that is given to it would count as a class with a Dice of 0."""
    task = Task(build_model("patchtree:tiny", 3, patch_size=8), lr=1e-3)
    task.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    counts = torch.eye(3)[torch.tensor([0, 0, 1, 1])]
    for prediction in ([0, 0, 1, 1], [0, 2, 1, 1]):
        task.confusions[0].update(torch.tensor(prediction), counts)
        task.on_validation_epoch_end()
        assert task.scores["dice"] == task.scores["dice class 1"] == 1


def test_muon_trains_the_reference_model(data: Path, tmp_path: Path) -> None:
    for model, muon in (("patchtree:tiny", True), ("monai:unet", False)):
        out = train(data, tmp_path / str(muon), max_epochs=1, **{**SMALL, "model": model})
        assert load_config(out).options["muon"] is muon
        states = checkpoint(out)["optimizer_states"][0]["state"].values()
        assert any("momentum_buffer" in state for state in states) is muon


def test_rare_classes_of_images_count_for_more() -> None:
    task = ImageTask(build_classifier("patchtree:tiny", 2), 1e-3, {}, 1.0, shares=(0.8, 0.2))
    normal, rare = task.weight.tolist()
    assert rare == pytest.approx(2 * normal)
    assert 0.8 * normal + 0.2 * rare == pytest.approx(1)


def test_defaults_come_from_the_data(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "run", max_epochs=1, detail="variance", **HERE)
    options = json.loads((tmp_path / "run" / CONFIG).read_text(encoding="utf-8"))["options"]
    assert options["budget"] == 64 * 48 / 16**2
    assert options["model"] == "patchtree:tiny"
    assert options["samples"] == 4


@pytest.mark.parametrize("quick", [True, False])
def test_the_model_is_smaller_where_time_is_short(quick: bool, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchtree.models.precision.half_is_quick", lambda device: quick)
    asked = dict.fromkeys(
        ["task", "patch_size", "budget", "detail", "model", "head", "weights", "freeze", "lora", "window"]
        + ["batch_size", "lr", "layer_decay", "seed"]
    )
    dataset = find_data(data)
    short = 599 if quick else 1199
    sizes = [choose_options(dataset, asked, "cpu", time).model for time in (short, short + 2, None)]
    assert sizes == ["patchtree:nano", "patchtree:tiny", "patchtree:tiny"]
    assert choose_options(dataset, asked, "gpu", short).model == "patchtree:small"
    assert choose_options(dataset, {**asked, "model": "patchtree:base"}, "cpu", short).model == "patchtree:base"
