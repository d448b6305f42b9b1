"""The command line: one file a verb, what a verb needs is imported inside it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from patchtree.cli.bench import bench
from patchtree.cli.common import DEBUG, tell_error
from patchtree.cli.demo import demo
from patchtree.cli.evaluate import evaluate
from patchtree.cli.info import info
from patchtree.cli.patch import patch
from patchtree.cli.predict import predict
from patchtree.cli.pretrain import pretrain
from patchtree.cli.train import train

app = typer.Typer(
    name="patchtree",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: patchtree patch slide.tif --out patches --budget 4096",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"patchtree {version('patchtree')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print tracebacks; may also follow the command.")] = False,
) -> None:
    """Segment images far larger than a transformer can read, with patches that are fine where there is detail."""
    DEBUG.set(debug)


for command in (demo, patch, pretrain, train, predict, evaluate, info):
    app.command()(command)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(bench)


def main(argv: list[str] | None = None) -> None:
    """Run a command line, by default the process's own; ends with `SystemExit`."""
    words = list(sys.argv[1:] if argv is None else argv)
    own = words[: words.index("--")] if "--" in words else words
    if "--debug" in own:
        words.remove("--debug")
        words.insert(0, "--debug")
    for stream in (sys.stdout, sys.stderr):
        # A file name that the terminal cannot show is no reason to fail.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(words, prog_name="patchtree")
    except OSError as error:
        # What verbs run into they tell themselves; this was printing help or the version.
        tell_error(error)
        raise SystemExit(1) from None
