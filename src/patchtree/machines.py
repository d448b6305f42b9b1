"""What trains: devices and processes, how they end, and Lightning kept quiet about them."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from patchtree.errors import InputError

# What Lightning warns of although it is meant so.
_NOISE = (
    ".*does not have many workers",
    "GPU available but not used",
    # Lightning's own calls of what newer versions of torch deprecate.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)


def check_machines(accelerator: str, devices: int | str, num_nodes: int, strategy: str, precision: str) -> None:
    """Let Lightning refuse what it does not know before an image is read.

    Raises:
        InputError: they are not possible, or not together.
    """
    if accelerator == "cpu" and str(devices).isdecimal() and int(devices) > (cores := os.cpu_count() or 1):
        raise InputError(f"devices {devices} would start as many processes on {cores} cores; give {cores} at most")
    try:
        with quiet():
            Trainer(
                accelerator=accelerator,
                devices=devices,
                num_nodes=num_nodes,
                strategy=strategy,
                precision=precision,  # type: ignore[arg-type]
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"accelerator {accelerator}, devices {devices}, num_nodes {num_nodes}, strategy {strategy}, precision "
            f"{precision} are not possible together ({str(error).splitlines()[0]}); see Lightning's Trainer"
        ) from error


def choose_workers(asked: int | None) -> int:
    """Choose how many processes make samples: on a small machine one, beside the one that trains."""
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // 2))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep in what Lightning says on each start, to every user, whatever the run."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in _NOISE:
            warnings.filterwarnings("ignore", message)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def faults_in_one_line() -> Iterator[None]:
    """Leave out what torch puts around what a process that makes samples finds at fault."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).rpartition(f"{InputError.__module__}.InputError: ")[2].strip()) from error


@contextmanager
def exit_code_of_sigterm(trainer: Trainer) -> Iterator[None]:
    """Give the exit code of SIGTERM, also where that has ended a process that makes samples before this one."""
    try:
        yield
    except (RuntimeError, SystemExit) as error:
        if not trainer.received_sigterm:
            raise
        raise SystemExit(128 + signal.SIGTERM) from error
