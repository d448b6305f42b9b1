"""How far a long job is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic
from typing import Protocol

import typer

# A bar that is gone before it can be read only flickers.
_BAR_AFTER = 2.0
_LINE_EVERY = 30.0


class Step(Protocol):
    """Tells how far a job is: called without arguments when an input is done, else with how much of one is."""

    def __call__(self, what: str = "", done: int = 0, total: int = 0) -> None:
        """Show it: such as 3 of 40 of the windows of an input."""


@contextmanager
def progress(label: str, total: int) -> Iterator[Step]:
    """Show a bar on stderr after two seconds; if stderr is no terminal, a line every 30 s.

    >>> with progress("cutting", total=2) as step:
    ...     step("a.svs, windows", 3, 40)
    ...     step()
    """
    if not sys.stderr.isatty():
        yield _lines(label, total)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        # What goes to a file must not pass through the bar's terminal.
        redirect_stdout=sys.stdout.isatty(),
        # A window or a slide may take longer than any period, and without two of them there is no speed.
        speed_estimate_period=math.inf,
    )
    task = bar.add_task(label, total=total)
    parts: dict[str, TaskID] = {}

    def step(what: str = "", done: int = 0, total: int = 0) -> None:
        if what in parts:
            bar.update(parts[what], completed=done)
            return
        while parts:
            bar.remove_task(parts.popitem()[1])
        if what:
            parts[what] = bar.add_task(f"  {what}", completed=done, total=total)
        else:
            bar.advance(task)

    timer = threading.Timer(_BAR_AFTER, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield step
    finally:
        timer.cancel()
        timer.join()
        if bar.live.is_started:
            bar.stop()


def _lines(label: str, inputs: int) -> Step:
    """Tell in a line on stderr, now and then, how far a job is: for logs."""
    start = told = began = monotonic()
    count = before = 0
    part = ""

    def left(since: float, done: int, total: int) -> str:
        return f", {timedelta(seconds=round((monotonic() - since) / done * (total - done)))} left" if done else ""

    def step(what: str = "", done: int = 0, total: int = 0) -> None:
        nonlocal told, began, count, before, part
        if what != part:
            part, began, before = what, monotonic(), done
        count += not what
        if monotonic() - told < _LINE_EVERY:
            return
        told = monotonic()
        line = f"{label}: {count:,} of {inputs:,}"
        more = left(began, done - before, total - before)
        typer.echo(
            f"{line}; {what}: {done:,} of {total:,}{more}" if what else line + left(start, count, inputs), err=True
        )

    return step
