"""The course of a training: learning rate, validations, checkpoints, the end."""

from __future__ import annotations

import csv
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, distributed

from patchtree.budget import ALIKE
from patchtree.ema import Average
from patchtree.errors import InputError
from patchtree.files import replacing
from patchtree.runs import CHECKPOINT, METRICS, WEIGHTS, save_weights, weights_metadata

_WARMUP = 0.05
_LAST_RATE = 0.01
# A training is validated at most 20 times and, if it goes by time, at most for about this share of it.
_VALIDATIONS = 20
_VALIDATING = 0.06
_SAVE_SECONDS = 60.0
# Validations that there must be time for after the last step.
_AFTER = 1.1


def rate(progress: float) -> float:
    """Give the share of the highest learning rate at a progress of 0 to 1: a linear rise, then a cosine down to 1%.

    >>> [round(rate(progress), 3) for progress in (0, 0.05, 0.525, 1)]
    [0.01, 1.0, 0.505, 0.01]

    Source: I. Loshchilov and F. Hutter, SGDR, ICLR 2017.
    """
    rising = progress / _WARMUP if progress < _WARMUP else 1.0
    falling = (1 + math.cos(math.pi * max(0.0, progress - _WARMUP) / (1 - _WARMUP))) / 2
    return max(_LAST_RATE, rising * (_LAST_RATE + (1 - _LAST_RATE) * falling))


class Course(Callback):
    """Decide what happens after each step, and keep what a resumed training needs.

    Everything goes by the progress, 0 to 1: the share used of the time or of the samples, whichever is larger. Process
    0 looks at the clock and decides; the others do as it says.

    Args:
        out: the run folder.
        average: of the weights, which is what is kept.
        lr: highest learning rate.
        epoch: samples in an epoch.
        max_time: seconds, or None.
        max_samples: windows of all processes together, or None.
        started: when the run began, by ``time.monotonic()``.
        report: takes lines on how it goes.
        score: what the best weights have most of, in words; one of the module's `scores` in lower case.
        about: metadata of the weights, beside what the module's `about` says of them.

    Attributes:
        progress: from 0 to 1.
        samples: windows drawn by all processes together.
        first_step: steps made before this run resumed another.
        top: best score so far; minus infinity before the first validation.
        best: score of the weights that are kept: the last ones that scored as well as any, or nearly.
        best_step: the step they are of.
        interrupted: Ctrl-C was pressed.
    """

    def __init__(
        self,
        out: Path,
        average: Average,
        lr: float,
        epoch: int,
        max_time: float | None,
        max_samples: int | None,
        started: float,
        report: Callable[[str], None],
        score: str = "Dice",
        about: Mapping[str, str] | None = None,
    ) -> None:
        self.about = about or {}
        self.out, self.average, self.lr, self.epoch, self.report = out, average, lr, epoch, report
        self.score = score
        self.max_time, self.max_samples = max_time, max_samples
        self.progress = 0.0
        self.samples = self.first_step = 0
        self.top, self.best, self.best_step = -math.inf, -math.inf, 0
        self.interrupted = False
        # When the clock was 0; in seconds since then when training began; what it had used before a resumption.
        self._zero, self._began, self._trained = started, 0.0, 0.0
        # Seconds that a validation takes, and a step.
        self._validating = self._step = 0.0
        self._step_began = 0.0
        self._validated_at = self._saved_at = 0.0
        self._validated_samples = 0
        self._unsaved = False
        # The sum of the losses since the last validation, and of how many steps.
        self._loss, self._steps = torch.zeros(()), 0

    def elapsed(self) -> float:
        """Give the seconds used so far, those before a resumption included."""
        return time.monotonic() - self._zero

    def state_dict(self) -> dict[str, Any]:
        """Give what a checkpoint must keep."""
        return {
            "goal": [self.max_time, self.max_samples],
            "complete": self.progress >= 1,
            "top": self.top,
            "elapsed": self.elapsed(),
            "trained": self.elapsed() - self._began,
            "samples": self.samples,
            "validating": self._validating,
            "validated_samples": self._validated_samples,
            "loss": self._loss,
            "steps": self._steps,
            "random": torch.get_rng_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: `resume` has done it, before Lightning could."""

    def resume(self, checkpoint: dict[str, Any]) -> None:
        """Go on from a checkpoint; what was written down after it is taken back."""
        state = checkpoint["callbacks"][self.state_key]
        self._zero -= state["elapsed"]
        self._trained = state["trained"]
        self._began = self.elapsed() - self._trained
        self.samples, self._validating = state["samples"], state["validating"]
        self._validated_samples = state["validated_samples"]
        self._loss, self._steps = state["loss"], state["steps"]
        self.top = state.get("top", -math.inf)
        self.first_step = checkpoint["global_step"]
        torch.set_rng_state(state["random"])
        self.progress = self._progress(self.elapsed())
        # The last step ends a little before the time does.
        if state.get("complete") and state["goal"] == [self.max_time, self.max_samples]:
            self.progress = 1.0
        if (self.out / WEIGHTS).exists():
            about = weights_metadata(self.out)
            self.best, self.best_step = float(about[self.score.lower()]), int(about["step"])
            self.top = max(self.top, self.best)
        if rows := self._rows():
            self._write([rows[0], *(row for row in rows[1:] if int(row[0]) <= self.first_step)])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the training, which leaves out what was done before."""
        now = self.elapsed()
        self._began = now - self._trained
        self._validated_at = self._saved_at = now

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Set the learning rate, and tell the task how far it is."""
        self._step_began = self.elapsed()
        pl_module.progress = self.progress  # type: ignore[assignment]
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.lr * group["lr_scale"] * rate(self.progress)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Decide whether to stop, to validate, to save."""
        self._loss, self._steps = self._loss.to(outputs["loss"].device) + outputs["loss"].detach(), self._steps + 1
        self.samples += len(batch) * trainer.world_size
        elapsed = self.elapsed()
        self._step = elapsed - self._step_began
        self.progress, interrupted, validate, save = self._agree(trainer, *self._decide(elapsed))
        if interrupted:
            self.interrupted = True
            # Lightning validates before it stops, which is not what Ctrl-C is for.
            trainer.limit_val_batches = 0
        trainer.should_stop = bool(interrupted or self.progress >= 1)
        # Lightning validates when this divides the number of steps.
        trainer.val_check_batch = trainer.fit_loop.total_batch_idx + 1 if validate else sys.maxsize
        if save or interrupted:
            self._save(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the validation."""
        self._validated_at = self.elapsed()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a row of metrics, and the weights unless earlier ones were clearly better.

        Of weights that score alike the later have learnt longer, and at a lower rate.
        """
        loss = float(self._loss) / self._steps
        self._loss, self._steps = torch.zeros(()), 0
        if not math.isfinite(loss):
            raise InputError("the loss is no longer a finite number; train again with a lower learning rate (lr)")
        scores: dict[str, float] = pl_module.scores  # type: ignore[assignment]
        found: dict[str, float] = pl_module.about  # type: ignore[assignment]
        step, score = trainer.global_step, scores[self.score.lower()]
        self.top = max(self.top, score)
        kept = score >= self.top - ALIKE
        if kept:
            self.best, self.best_step = score, step
        if trainer.is_global_zero:
            values = {"step": step, "epoch": self.samples / self.epoch, "seconds": self.elapsed(), "loss": loss}
            values |= {"lr": trainer.optimizers[0].param_groups[0]["lr"], **scores, **found}
            self._append(values)
            if kept:
                weights: dict[str, Tensor] = pl_module.kept(self.average.weights)  # type: ignore[operator]
                about = {self.score.lower(): score, "step": step, **found}
                save_weights(self.out, weights, {**self.about, **{name: repr(value) for name, value in about.items()}})
            reached = f"{self.score} {score:.3f}{' *' * kept}"
            self.report(f"step {step}, {_minutes(self.elapsed())}: loss {loss:.3f}, {reached}")
        now = self.elapsed()
        self._validating, self._validated_at = now - self._validated_at, now
        self._validated_samples = self.samples
        self._unsaved = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the end, for a training that is to go on longer."""
        if not self.interrupted:
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save when the machine is taken away, as Slurm does with SIGTERM."""
        # A signal to all processes may end one that makes samples first, which torch's handler tells at any moment.
        if isinstance(exception, SIGTERMException) or trainer.received_sigterm:
            if hasattr(signal, "SIGCHLD"):
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._save(trainer)
            self.report(f"stopped after {trainer.global_step} steps, all is saved; go on with --resume")

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let the first Ctrl-C stop the training after its step; the second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def interrupt(*_: Any) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, before)
            # In the middle of printing nothing more can be printed.
            with suppress(RuntimeError):
                self.report("stopping after this step; Ctrl-C again stops at once")

        signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _progress(self, elapsed: float) -> float:
        """Give the share used of the samples, or of the time for training.

        That is what getting ready, the step that comes and what is validated at the end leave of the time.
        """
        shares = [0.0]
        if self.max_time is not None:
            left = self._left(elapsed)
            trained = max(elapsed - self._began, 1e-9)
            shares.append(trained / (trained + max(left, 0)))
        if self.max_samples is not None:
            shares.append(self.samples / self.max_samples)
        return max(shares)

    def _left(self, elapsed: float) -> float:
        """Give the seconds until the training must end, for its last validation to fit in the time."""
        assert self.max_time is not None
        return self.max_time - _AFTER * self._validating - self._step - elapsed

    def _decide(self, elapsed: float) -> tuple[float, bool, bool, bool]:
        """Give the progress, whether Ctrl-C was pressed, and whether to validate and to save."""
        progress = self._progress(elapsed)
        if self.max_samples is not None:
            # By epochs alone, so that it does not depend on the machine.
            epochs, every = self.samples // self.epoch, max(1, self.max_samples // self.epoch // _VALIDATIONS)
            validate = epochs // every > self._validated_samples // self.epoch // every
        else:
            assert self.max_time is not None
            pause = max(self.max_time / _VALIDATIONS, self._validating / _VALIDATING)
            # The one at the end is one of them.
            validate = min(elapsed - self._validated_at, self._left(elapsed)) >= pause
        save = progress < 1 and (self._unsaved or elapsed - self._saved_at >= _SAVE_SECONDS)
        return progress, self.interrupted, validate or progress >= 1, save

    def _agree(self, trainer: Trainer, *decision: float) -> tuple[float, ...]:
        """Take over what process 0 has decided: a clock, or a Ctrl-C, is not the same in all of them."""
        if trainer.world_size == 1:
            return decision
        shared = torch.tensor(decision, dtype=torch.float64, device=trainer.strategy.root_device)
        distributed.broadcast(shared, src=0)
        return tuple(shared.tolist())

    def _save(self, trainer: Trainer) -> None:
        """Write ``last.ckpt``, whole or not at all; all processes take part, process 0 writes."""
        if trainer.is_global_zero:
            with replacing(self.out / CHECKPOINT) as temporary:
                trainer.save_checkpoint(temporary)
        else:
            trainer.save_checkpoint(self.out / CHECKPOINT)
        self._saved_at, self._unsaved = self.elapsed(), False

    def _append(self, values: dict[str, float]) -> None:
        row = [f"{value:.6g}" if isinstance(value, float) else str(value) for value in values.values()]
        self._write([*(self._rows() or [list(values)]), row])

    def _rows(self) -> list[list[str]]:
        """Read the rows of ``metrics.csv`` that are whole, its header first; none if there is no file."""
        if not (self.out / METRICS).exists():
            return []
        with (self.out / METRICS).open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        return [row for row in rows if len(row) == len(rows[0])]

    def _write(self, rows: list[list[str]]) -> None:
        with (
            replacing(self.out / METRICS) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            csv.writer(file).writerows(rows)


class Bar(Callback):
    """A progress bar on standard error.

    Args:
        course: whose progress it shows.
    """

    def __init__(self, course: Course) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self.course = course
        # What goes to a file must not pass through the bar's terminal.
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty())
        self.task = self.bar.add_task("training", total=1.0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar."""
        self.bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Move the bar."""
        best = f", best {self.course.score} {self.course.best:.3f}" if self.course.best >= 0 else ""
        self.bar.update(self.task, completed=self.course.progress, description=f"step {trainer.global_step}{best}")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what takes so long."""
        self.bar.update(self.task, description="validating")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the bar away."""
        self.bar.stop()


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
