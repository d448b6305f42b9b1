"""What the benchmarks share: pictures, clocks, memory, fresh processes and markdown."""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "bench" / "results"

Case = dict[str, Any]
Result = dict[str, Any]


# Pictures


def load_picture(name: str) -> NDArray[np.uint8]:
    """Load a picture that ships inside scikit-image, ``"ihc"`` (512 x 512) or ``"retina"`` (1411 x 1411), or a file."""
    import skimage.data

    import patchtree

    shipped = {"ihc": skimage.data.immunohistochemistry, "retina": skimage.data.retina}
    return shipped[name]() if name in shipped else patchtree.read_image(name)


def fill(image: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Cover `shape` with mirrored copies of an image, so that its detail a pixel stays the same at every size."""
    rows, columns = (_mirrored(length, wanted) for length, wanted in zip(image.shape, shape, strict=False))
    return np.ascontiguousarray(image[rows][:, columns])


def _mirrored(length: int, wanted: int) -> NDArray[np.int64]:
    """Walk to and fro over ``0 ... length - 1``."""
    place = np.arange(wanted) % (2 * length)
    return np.minimum(place, 2 * length - 1 - place)


def stain_labels(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Label tissue by its stains: 0 neither, 1 haematoxylin, 2 DAB, ``(H, W, 3)`` -> ``(H, W)``.

    Colour deconvolution (A. Ruifrok and D. Johnston, 2001), each stain cut by Otsu's threshold.
    """
    from skimage.color import rgb2hed
    from skimage.filters import gaussian, threshold_otsu

    stains = gaussian(rgb2hed(image), sigma=1, channel_axis=2)
    labels = np.zeros(image.shape[:2], np.uint8)
    for label, channel in ((1, 0), (2, 2)):
        labels[stains[..., channel] > threshold_otsu(stains[..., channel])] = label
    return labels


# Clocks


@dataclass(frozen=True)
class Timing:
    """Seconds of each repetition."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def least(self) -> float:
        return min(self.seconds)


def interleave(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Time every call once, then all again, and so on: what disturbs the machine disturbs all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name].append(clock(call))
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def clock(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def set_threads(count: int) -> None:
    """Hold OpenCV, and torch if it is loaded, to a number of threads; NumPy's parts that we use have one."""
    import cv2

    cv2.setNumThreads(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


# Memory


def extra_memory(call: Callable[[], Any]) -> tuple[int, Any]:
    """Give the most bytes that a call holds beyond what there was, and what it returns: the resident set is watched.

    Only the first such call of a process counts all: later ones reuse what the allocator kept.
    """
    gc.collect()
    before, peak, done = _resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.0005):
            peak = max(peak, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        value = call()
        peak = max(peak, _resident())
    finally:
        done.set()
        watcher.join()
    return max(0, peak - before), value


def peak_memory() -> int:
    """Give the largest resident set of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # what the process was forked from counts in its resource usage, but not here
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_memory() -> int:
    """Give the bytes that can still be taken."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _resident(process: int | str = "self") -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return peak_memory() if process == "self" else 0


# Fresh processes


def start(main: Callable[[Sequence[str]], None], measure: Callable[[Case], Result]) -> None:
    """Run a script: as the user calls it, or as `fresh` does, for one case."""
    if sys.argv[1:2] == ["--case"]:
        result = measure(json.loads(sys.argv[2]))
        Path(sys.argv[3]).write_text(json.dumps(result))
    else:
        main(sys.argv[1:])


def fresh(script: str, case: Case, threads: int = 1, timeout: float | None = None, memory: int | None = None) -> Result:
    """Measure a case in a process of its own.

    Args:
        script: the benchmark's own file, which calls `start`.
        case: what its `measure` is given; plain values.
        threads: for OpenMP and OpenCV.
        timeout: seconds after which the process is ended.
        memory: resident bytes beyond which the process is ended.

    Returns:
        What `measure` gave, or ``{"failed": why}``.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "result.json", Path(folder) / "log.txt"
        command = [sys.executable, script, "--case", json.dumps(case), str(out)]
        threading_limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=file, env={**os.environ, **threading_limits}, start_new_session=True
            )
        why = None
        try:
            why = _wait(process, timeout, memory)
        finally:
            _end(process)
        if why is None and process.returncode == 0:
            return dict(json.loads(out.read_text()))
        return {"failed": why or _reason(process.returncode, log.read_text(errors="replace"))}


def _wait(process: subprocess.Popen[bytes], timeout: float | None, memory: int | None) -> str | None:
    """Wait for a process to end, or say why it may not go on."""
    begin = time.monotonic()
    while process.poll() is None:
        if timeout is not None and time.monotonic() - begin > timeout:
            return f"took over {timeout:.0f} s"
        if memory is not None and _resident(process.pid) > memory:
            return f"took over {memory / 2**30:.1f} GB"
        time.sleep(0.02)
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _reason(code: int, log: str) -> str:
    lines = log.strip().splitlines() or [f"exit code {code}"]
    signs = ("OutOfMemory", "MemoryError", "allocate memory", "Insufficient memory")
    if code == -signal.SIGKILL or any(sign in lines[-1] for sign in signs):
        return "out of memory"
    return lines[-1]


# Output


def options(description: str) -> argparse.ArgumentParser:
    """Make a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only shows that it runs")
    parser.add_argument("--save", action="store_true", help="also write bench/results/NAME.md, which the README quotes")
    return parser


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Make a markdown table, the first column to the left, the others to the right.

    >>> print(table(("what", "s"), [("edges", 1.5)]))
    | what | s |
    | :-- | --: |
    | edges | 1.5 |
    """
    lines = [header, [":--"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def publish(name: str, parts: Sequence[str], save: bool, libraries: Sequence[str] = ()) -> None:
    """Print a report, and write it to ``bench/results/NAME.md`` if it is to be kept."""
    text = "\n\n".join([*parts, f"_{machine(libraries)}_"]) + "\n"
    print(text)
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.md").write_text(text)


def machine(libraries: Sequence[str] = ()) -> str:
    """Say what ran this; the libraries are named besides those that always matter."""
    processor = platform.processor() or platform.machine()
    about = Path("/proc/cpuinfo")
    if about.exists():
        text = about.read_text()
        names = [line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line]
        processor = names[0] if names else processor
        processor += " with bfloat16" if any(flag in text for flag in ("avx512_bf16", "amx_bf16")) else ""
    versions = [f"{name} {version(name)}" for name in ("patchtree", "opencv-python-headless", "numpy", *libraries)]
    return f"{', '.join(versions)}; {processor}, {os.cpu_count()} cores; {datetime.date.today().isoformat()}"


def progress(text: str) -> None:
    """Say what is going on, beside the report."""
    print(text, file=sys.stderr, flush=True)


def millis(seconds: float) -> str:
    return f"{1e3 * seconds:.{0 if seconds >= 0.1 else 1}f}"


def ratio(number: float) -> str:
    return f"{number:.2f}" if number < 10 else f"{number:.0f}"
