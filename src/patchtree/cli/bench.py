"""`patchtree bench`: run a benchmark of a source checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchtree.cli.common import verb
from patchtree.errors import InputError

_FOLDER = Path(__file__).resolve().parents[3] / "bench"


@verb
def bench(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Which one; without a name they are listed.")] = None,
) -> None:
    """Run a benchmark: the figures in the README.

    Benchmarks are part of the source checkout, not of the installed package.
    Further words are handed to the benchmark.

    Example: patchtree bench tokenize
    """
    import subprocess
    import sys

    names = sorted(path.stem for path in _FOLDER.glob("*.py") if path.stem != "common")
    if not names:
        raise InputError(
            f"{_FOLDER}: no benchmarks here, they are not part of the installed package; clone the repository, "
            "install it with pip install -e . and run again"
        )
    if name is None:
        typer.echo("\n".join(names))
        return
    if name not in names:
        raise InputError(f"{name}: no such benchmark; choose one of {', '.join(names)}")
    raise typer.Exit(subprocess.run([sys.executable, _FOLDER / f"{name}.py", *context.args], check=False).returncode)
