"""What all verbs share: quick help, exit codes, one line an error, warnings once."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchtree import Patcher
from patchtree.cli import app, common, progress
from patchtree.io.images import write_image

from .conftest import Run, outputs, picture, run_process

VERBS = [str(command.callback.__name__) for command in app.registered_commands if command.callback]


def test_help_is_light() -> None:
    code = (
        "import atexit, sys\n"
        "names = lambda: {name.partition('.')[0] for name in sys.modules}\n"
        "atexit.register(lambda: print(*names() & {'torch', 'cv2', 'scipy', 'lightning', 'skimage', 'timm', 'PIL'}, "
        "file=sys.stderr))\n"
        "from patchtree.cli import main; main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "patch" in done.stdout
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str, run: Run) -> None:
    result = run(verb, "--help")
    assert (result.code, result.err) == (0, "")
    assert f"Example: patchtree {verb}" in result.out


def test_the_fixed_verbs_exist() -> None:
    assert {"demo", "patch", "pretrain", "train", "predict", "evaluate", "info", "bench"} == set(VERBS)


def test_the_package_is_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "patchtree", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("patchtree ")


def test_version(run: Run) -> None:
    result = run("--version")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("patchtree ")


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["patch"],
        ["patch", "a.png"],
        ["patch", "a.png", "--out"],
        ["patch", "a.png", "--out", "x", "--budget", "many"],
        ["patch", "a.png", "--out", "x", "--patch-size", "1.5"],
        ["patch", "a.png", "--out", "x", "--detail", "beauty"],
        ["patch", "a.png", "--out", "x", "--what"],
        ["train", "data"],
        ["train", "data", "--out", "x", "--max-time", "soon"],
        ["train", "data", "--out", "x", "--max-time", "00:00:00"],
        ["train", "data", "--out", "x", "--size", "huge"],
        ["predict", "run"],
        ["evaluate", "run"],
    ],
)
def test_usage_errors_exit_with_2(words: list[str], run: Run) -> None:
    result = run(*words)
    assert (result.code, result.out) == (2, "")
    assert "Error" in result.err


def test_debug_may_stand_anywhere(run: Run, tmp_path: Path) -> None:
    words = ["patch", "a.png", "--out", tmp_path, "--budget", "0"]
    assert run(*words).failed_with("budget 0")
    for with_debug in (["--debug", *words], [*words, "--debug"], ["patch", "--debug", *words[1:]]):
        result = run(*with_debug)
        assert result.code == 1
        assert result.err.startswith("Traceback")
        assert result.err.splitlines()[-1].startswith("error: budget 0")
    # After -- it is a file's name.
    assert run("patch", "--out", tmp_path, "--", "--debug").failed_with("--debug: cannot be read, no such file")


def raising(error: BaseException, **where: Any) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def test_a_bug_is_called_one(run: Run, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchtree.patcher.Patcher.plan", raising(IndexError("index 5 is\nout of bounds")))
    result = run("patch", image, "--out", tmp_path)
    assert (result.code, result.out) == (1, "")
    assert result.err == (
        f"error: {image}: unexpected IndexError: index 5 is out of bounds; this is a bug in patchtree, "
        "please report it with what the same command prints with --debug\n"
    )


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (MemoryError("12 GiB"), "not enough memory (12 GiB)"),
        (RuntimeError("DataLoader worker (pid(s) 77) exited unexpectedly"), "a worker was killed"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), "not enough memory on the GPU"),
        (PermissionError(13, "Permission denied", "x.npz"), "x.npz: permission denied"),
        (OSError(28, "No space left on device"), "no space left on device"),
        (OSError("4096 requested and 512 written"), "4096 requested and 512 written; check the free space"),
    ],
)
def test_the_machine_at_fault(
    error: Exception, word: str, run: Run, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patchtree.patcher.Patcher.plan", raising(error))
    assert run("patch", image, "--out", tmp_path).failed_with(word)


def test_ctrl_c(run: Run, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchtree.patcher.Patcher.plan", raising(KeyboardInterrupt()))
    result = run("patch", image, "--out", tmp_path)
    assert (result.code, result.out, result.err) == (130, "", "stopped by Ctrl-C\n")


def test_a_reader_that_has_enough(image: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", "from patchtree.cli import main; main()", "info", str(image)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_work_goes_on_where_nobody_reads(image: Path, tmp_path: Path) -> None:
    for name in "abc":
        shutil.copy(image, tmp_path / f"{name}.png")
    read, write = os.pipe()
    os.close(read)
    words = [
        "patch",
        *(str(tmp_path / f"{name}.png") for name in "abc"),
        "--out",
        str(tmp_path / "out"),
        "--budget",
        "9",
    ]
    command = [sys.executable, "-c", "from patchtree.cli import main; main()", *words]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list((tmp_path / "out").glob("*.npz"))) == 3


def test_without_an_output(image: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.stdout = None; from patchtree.cli import main; main()"]
    done = subprocess.run([*command, "info", str(image)], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", [["info", "disc.png"], ["--help"], ["info", "--help"], ["--version"], ["bench"]])
def test_output_to_a_full_disk(words: list[str], image: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    command = [sys.executable, "-c", "from patchtree.cli import main; main()", *words]
    with full.open("w") as stdout:
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, cwd=image.parent)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no space left on device")
    assert done.stderr.count("\n") == 1


def test_warnings_are_told_once_on_one_line(run: Run, tmp_path: Path) -> None:
    for name in "abc":
        write_image(tmp_path / f"{name}.png", picture()[:, :, 0] // 200)
    Image.fromarray(np.full((300, 300, 4), 7, np.uint8)).save(tmp_path / "d.png")
    result = run("patch", tmp_path, "--out", tmp_path / "out", "--json")
    assert result.code == 0
    assert len(result.json) == 4
    first, second = result.err.splitlines()
    assert first.startswith(f"warning: {tmp_path / 'a.png'} and 3 more images: Edges found too little detail")
    assert second == f"warning: {tmp_path / 'd.png'}: transparent pixels are put on white"
    alone = run("patch", tmp_path / "b.png", "--out", tmp_path / "out")
    assert alone.err.startswith(f"warning: {tmp_path / 'b.png'}: Edges found too little detail")


def test_the_rest_is_done_whatever_is_wrong_with_one(
    run: Run, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [IndexError("a"), MemoryError("12 GiB"), OSError(5, "Input/output error")]
    paths = [tmp_path / f"{at}.png" for at in range(len(errors) + 1)]
    for path in paths:
        path.write_bytes(image.read_bytes())
    plan = Patcher.plan

    def fail_first(self: Patcher, image: Any) -> Any:
        if errors:
            raise errors.pop(0)
        return plan(self, image)

    monkeypatch.setattr(Patcher, "plan", fail_first)
    result = run("patch", *paths, "--out", tmp_path / "out", "--budget", 50, "--json")
    assert (result.code, [figures["image"] for figures in result.json]) == (1, [str(paths[-1])])
    lines = result.err.splitlines()
    assert [line.startswith(f"error: {path}: ") for line, path in zip(lines, paths[:-1], strict=True)] == [True] * 3
    assert "input/output error" in lines[2]


def test_warnings_for_developers_are_not_for_users(run: Run, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(*_: Any) -> Any:
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.warn(f"a {category.__name__}\nof two lines", category, stacklevel=2)
        return {"kind": "image"}

    monkeypatch.setattr(import_module("patchtree.cli.info"), "_image", warn)
    result = run("info", image)
    assert (result.code, result.err) == (0, "warning: a UserWarning of two lines\n")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run("info", image).err == ""


def test_every_verb_keeps_its_memory(run: Run, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(common, "keep_memory", lambda: calls.append(True))
    assert run("info", str(image)).code == 0
    assert calls == [True]


def test_names_that_no_terminal_can_show(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff\xfe.png")
    try:
        write_image(path, picture())
    except OSError:
        pytest.skip("this file system takes only names it can show")
    result = run_process(
        "patch", path, "--out", tmp_path / "out", "--budget", "50", env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert (result.code, result.err) == (0, "")
    assert len(outputs(tmp_path / "out")) == 2


def test_the_bar_waits_two_seconds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    before = set(threading.enumerate())
    with progress.progress("Patching", 2) as step:
        step()
    assert "Patching" not in capsys.readouterr().err
    monkeypatch.setattr(progress, "_BAR_AFTER", 0.01)
    with progress.progress("Patching", 2) as step:
        step()
        time.sleep(0.3)
        assert "Patching" in capsys.readouterr().err
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=5)
        assert not thread.is_alive()


def test_the_bar_shows_how_far_an_input_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(progress, "_BAR_AFTER", 0)
    with progress.progress("Predicting", 2) as step:
        for done in range(5):
            step("a.svs, windows", done + 3, 9)
            time.sleep(0.05)
        time.sleep(0.3)
        bar = capsys.readouterr().err
        step()
        time.sleep(0.3)
        assert "a.svs" not in capsys.readouterr().err
    assert "a.svs, windows" in bar
    assert "7/9" in bar
    last = bar[bar.rindex("7/9") :]
    assert re.search(r"0:00:00\S* \S*0:00:0[01]", last), last  # since it began, and left


def test_a_line_now_and_then_where_no_terminal_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress, "monotonic", lambda: now)
    with progress.progress("Predicting", 12) as step:
        for _ in range(4):
            now += 10
            step()
        for done in range(100, 151):
            step("a.svs, windows", done, 1000)
            now += 3
        now += 30
        step("a.svs, writing", 0, 8)
        step()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Predicting: 3 of 12, 0:01:30 left"
    assert lines[1] == "Predicting: 4 of 12; a.svs, windows: 107 of 1,000, 0:44:39 left"
    assert len(lines) == 1 + 5 + 1
    assert lines[-1] == "Predicting: 4 of 12; a.svs, writing: 0 of 8"


def test_no_bar_where_no_terminal_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "_BAR_AFTER", 0)
    with progress.progress("Patching", 1) as step:
        time.sleep(0.05)
        step()
    assert capsys.readouterr().err == ""
