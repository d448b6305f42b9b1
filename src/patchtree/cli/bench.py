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
    name: Annotated[str | None, typer.Argument(help="Which one; without a name nothing runs, they are listed.")] = None,
) -> None:
    """Run a benchmark, or list them: those that made the figures in the README.

    Benchmarks are part of the source checkout, not of the installed package.
    Further words are handed to the benchmark; after NAME, -- --help lists them.

    Example: patchtree bench tokenize
    """
    import ast
    import subprocess
    import sys

    files = {path.stem: path for path in sorted(_FOLDER.glob("*.py")) if path.stem != "common"}
    if not files:
        raise InputError(
            f"{_FOLDER}: no benchmarks here, they are not part of the installed package; clone the repository, "
            "install it with pip install -e . and run again"
        )
    if name is None:
        width = max(map(len, files))
        for stem, path in files.items():
            about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            typer.echo(f"{stem:{width}}  {about.partition(chr(10))[0]}".rstrip())
        typer.echo("Run one with: patchtree bench NAME")
        return
    if name not in files:
        raise InputError(f"{name}: no such benchmark; choose one of {', '.join(files)}")
    raise typer.Exit(subprocess.run([sys.executable, files[name], *context.args], check=False).returncode)
