"""What the verbs share: options, errors and warnings told in one line, exit codes, results for machines."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from patchtree.errors import InputError, say_size
from patchtree.process import keep_memory, wait_briefly

if TYPE_CHECKING:
    from rich.table import Table

    from patchtree.io.slides import Slide
    from patchtree.jobs import Input

P = ParamSpec("P")

DEBUG: ContextVar[bool] = ContextVar("DEBUG", default=False)

# What other packages tell their developers.
_QUIET = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")]
Inputs = Annotated[
    list[str] | None,
    typer.Argument(metavar="IMAGE...", help="Images, volumes, slides, folders of them, quoted patterns, URLs."),
]
Manifest = Annotated[
    Path | None,
    typer.Option(metavar="FILE.csv", help="Also do what a table names: columns path and, if any, mpp, name."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Skip what was finished with the same options; do again what failed.")
]
SkipBadTiles = Annotated[
    bool,
    typer.Option(
        "--skip-bad-tiles", help="Take what cannot be read of a slide as background and count it, instead of failing."
    ),
]
NumParts = Annotated[int, typer.Option(help="Share the inputs out among so many calls, such as those of a job array.")]
PartId = Annotated[int | None, typer.Option(help="Which of those parts to do, from 0.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Threads that read a slide. (default one a core)")]


def parse_micrometres(text: str) -> float:
    """Read the size of a pixel.

    >>> parse_micrometres("0.25")
    0.25

    Raises:
        typer.BadParameter: it is no number, or none that a size can be.
    """
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 < size < math.inf:
        raise typer.BadParameter(f"{text!r} is no pixel size; give micrometres a pixel, as in 0.25")
    return size


Mpp = Annotated[
    float | None,
    typer.Option(
        parser=parse_micrometres,
        metavar="MICROMETRES",
        help="Along a pixel of the finest level, in place of what the files say.",
    ),
]
MinMpp = Annotated[
    float | None,
    typer.Option(
        parser=parse_micrometres, metavar="MICROMETRES", help="Along a pixel of the finest patches wanted of a slide."
    ),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that patchtree train wrote.")]
Flips = Annotated[bool, typer.Option("--flips", help="Average over the image and its mirror images; 4 times slower.")]
Device = Annotated[str | None, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ... (default: a GPU if any).")]


class DetailName(str, Enum):
    """The details that have a name."""

    edges = "edges"
    residual = "residual"
    variance = "variance"


def verb(command: Callable[P, None]) -> Callable[P, None]:
    """Make a command tell what went wrong in one line, and end with the right exit code.

    Exit codes: 0, 1 for anything at fault, 130 after Ctrl-C. Usage errors (2) never reach the command.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        keep_memory()
        wait_briefly()
        try:
            with told_warnings():
                command(*args, **kwargs)
                if sys.stdout is not None:
                    sys.stdout.flush()
        except KeyboardInterrupt:
            tell("stopped by Ctrl-C", kind="")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            stop_printing()
            raise typer.Exit(1) from None
        except Exception as error:
            if isinstance(error, typer.Exit):
                raise
            tell_error(error)
            raise typer.Exit(1) from None

    return run


def tell(message: str, kind: str) -> None:
    """Print one line on stderr, after a word that says what kind of line it is."""
    message = " ".join(line.strip() for line in message.splitlines())
    if kind:
        typer.secho(f"{kind}: ", err=True, nl=False, bold=True, fg="red" if kind == "error" else "yellow")
    typer.echo(message, err=True)


def tell_error(error: Exception, image: str | Path | None = None) -> None:
    """Print an exception as one line on stderr, with its traceback before it where that was asked for.

    Args:
        error: the exception.
        image: what was worked on, for exceptions that do not name it.
    """
    if DEBUG.get():
        traceback.print_exception(error)
    tell(explain(error, image), kind="error")


def explain(error: Exception, image: str | Path | None = None) -> str:
    """Say what went wrong and what to do; arguments as those of `tell_error`."""
    about = f"{image}: " if image else ""
    match error:
        case InputError():
            message = str(error)
        case OSError(strerror=str() as reason, filename=name):
            message = f"{name}: {reason.lower()}" if name is not None else f"{about}{reason.lower()}"
            message += "; check the path, its permissions and the free space"
        case OSError():
            # NumPy's short writes have no error number: "4096 requested and 512 written".
            message = f"{about}reading or writing failed, {error}; check the free space and the permissions"
        case MemoryError():
            message = (
                f"{about}not enough memory ({error}); give smaller images or a smaller budget, or free some memory"
            )
        case RuntimeError() if "DataLoader worker" in str(error):
            message = (
                "a worker was killed, as happens where memory runs out; give fewer --workers or a smaller --window"
            )
        case _ if type(error).__name__ == "OutOfMemoryError":
            message = (
                f"{about}not enough memory on the GPU; train with a smaller --batch-size, --window or --budget, "
                "predict with --device cpu"
            )
        case _:
            message = (
                f"{about}unexpected {type(error).__name__}: {error}; this is a bug in patchtree, "
                "please report it with what the same command prints with --debug"
            )
    return message


@contextmanager
def told_warnings() -> Iterator[None]:
    """Print each warning once, as one line on stderr."""
    seen: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        # Of the processes of one training the first speaks for all.
        speaks = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"
        if speaks and str(message) not in seen:
            seen.add(str(message))
            tell(str(message), kind="warning")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        for category in _QUIET:
            warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        yield


def given(**options: Any) -> dict[str, Any]:
    """Keep the options that the user set: defaults live in the library.

    >>> given(budget=64, threshold=None, balanced=False)
    {'budget': 64}
    """
    return {
        name: value.value if isinstance(value, Enum) else value
        for name, value in options.items()
        if value is not None and value is not False
    }


def say(message: str) -> None:
    """Print on stdout; if whoever reads it has enough, the work goes on and is told no further."""
    try:
        typer.echo(message)
        sys.stdout.flush()
    except BrokenPipeError:
        stop_printing()


def stop_printing() -> None:
    """Let stdout go nowhere: whoever reads it has enough, and the interpreter's last flush must not complain either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def print_table(table: Table) -> None:
    """Print a table on stdout: as wide as it is, but where a person reads it on a terminal."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 1000).print(table)


def as_number(value: Any) -> float | None:
    """Give a number as JSON can hold it: None for NaN."""
    number = float(value)
    return None if number != number else number


def gather_inputs(paths: Sequence[str] | None, manifest: Path | None) -> tuple[list[Input], int]:
    """List what to work on; tells what is wrong with each path that names nothing, and counts those.

    Raises:
        InputError: nothing was named.
    """
    from patchtree.io.images import is_volume
    from patchtree.io.slides.source import is_url
    from patchtree.jobs import find_inputs

    if not paths and manifest is None:
        raise InputError("nothing to do; name images, slides, folders or patterns, or give a --manifest")
    inputs, errors = find_inputs(paths or [], manifest)
    for one in [one for one in inputs if is_url(one.path) and is_volume(one.path)]:
        inputs.remove(one)
        errors.append(InputError(f"{one.path}: is a volume, and those are read from files alone; download it"))
    for error in errors:
        tell_error(error)
    return inputs, len(errors)


def opens_as_slide(one: Input) -> bool:
    """Tell whether an input is opened as a slide; what only looks like one is, to be told what is wrong with it."""
    from patchtree.io.images import IMAGE_SUFFIXES, is_still, is_volume
    from patchtree.io.slides import is_slide
    from patchtree.io.slides.source import is_url
    from patchtree.jobs import SLIDE_SUFFIXES

    if is_volume(one.path):
        return False
    suffix = Path(one.path).suffix.lower()
    # Some scanners' files begin as a JPEG does.
    if not is_url(one.path) and (suffix in IMAGE_SUFFIXES or (suffix not in SLIDE_SUFFIXES and is_still(one.path))):
        return is_slide(one.path)
    return True


def open_input(one: Input, skip_bad_tiles: bool = False) -> Slide:
    """Open an input as a slide; what cannot be read of it is background where that is wanted.

    Raises:
        InputError: it is none.
    """
    from patchtree.io.slides import open_slide
    from patchtree.slides.lenient import Lenient

    slide = open_slide(one.path, one.mpp)
    return Lenient(slide) if skip_bad_tiles else slide


def tell_bad_tiles(slide: Slide) -> dict[str, int]:
    """Warn of the tiles that were taken as background; gives their number for ``--json``, where they may be."""
    from patchtree.slides.lenient import Lenient

    if not isinstance(slide, Lenient):
        return {}
    slide.warn()
    return {"bad_tiles": len(slide.bad)}


def make_folder(path: Path) -> Path:
    """Make a folder for output, with its parents.

    Raises:
        InputError: it cannot be made, or a file is in the way.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file is in the way" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise InputError(f"{path}: cannot be made a folder for output, {reason}; choose another --out") from error
    return path


def describe_size(shape: Sequence[int], ndim: int = 2) -> str:
    """Say an image's size and channels in words, from ``(H, W)`` or ``(H, W, C)``; a volume has a ``D`` in front.

    >>> describe_size((2848, 4288, 3)), describe_size((26, 166, 164), ndim=3)
    ('4,288 x 2,848 px, 3 channels', '164 x 166 x 26 voxels, 1 channel')
    """
    channels = shape[ndim] if len(shape) > ndim else 1
    return f"{say_size(shape, ndim)}, {channels} channel{'s' if channels > 1 else ''}"


def describe_mpp(mpp: Sequence[float] | None) -> str:
    """Say how large a pixel is, after what else there is to say; nothing where it is not known.

    >>> describe_mpp([0.25, 0.25]), describe_mpp([0.25, 0.5]), describe_mpp(None)
    (', 0.25 µm a pixel', ', 0.25 x 0.5 µm a pixel', '')
    """
    return f", {' x '.join(dict.fromkeys(f'{size:.4g}' for size in mpp))} µm a pixel" if mpp else ""


def parse_time(text: str) -> float:
    """Read a duration as seconds: ``HH:MM:SS``, or ``DD:HH:MM:SS`` as Lightning's.

    >>> parse_time("00:10:30"), parse_time("01:00:00:00")
    (630.0, 86400.0)

    Raises:
        typer.BadParameter: it is none, or zero.
    """
    parts = text.split(":")
    if len(parts) not in (3, 4) or not all(part.isdecimal() for part in parts):
        raise typer.BadParameter(f"{text!r} is no time; write hours, minutes and seconds as 00:10:00")
    seconds = 0
    for part, unit in zip(reversed(parts), (1, 60, 3600, 86400), strict=False):
        seconds += int(part) * unit
    if not seconds:
        raise typer.BadParameter(f"{text!r} leaves no time; give at least one second")
    return float(seconds)
