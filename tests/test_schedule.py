"""The learning rate over a training, and what the clock decides."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from patchtree.ema import Average
from patchtree.runs import weights_metadata
from patchtree.schedule import Course, rate


@given(st.floats(0, 1))
def test_the_rate_stays_between_a_hundredth_and_one(progress: float) -> None:
    assert 0.01 <= rate(progress) <= 1


@given(st.floats(0.05, 1), st.floats(0.05, 1))
def test_the_rate_only_falls_after_the_rise(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert rate(low) >= rate(high)


def course(max_time: float | None, max_samples: int | None, used: float = 0) -> Course:
    started = time.monotonic() - used
    return Course(Path(), Average(0.9), 1.0, 10, max_time, max_samples, started, lambda line: None)


def test_the_last_validation_fits_in_the_time() -> None:
    long = course(max_time=100, max_samples=None)
    long._began = 20
    assert long._progress(60) == pytest.approx(0.5)
    long._validating = 10
    assert long._progress(89) == pytest.approx(1)
    assert long._progress(54.5) == pytest.approx(0.5)
    assert long._progress(120) == 1


def test_whichever_is_used_up_first_ends_it() -> None:
    both = course(max_time=100, max_samples=50)
    both.samples = 10
    assert both._progress(1) == pytest.approx(0.2)
    assert both._progress(40) == pytest.approx(0.4)


def test_validations_cost_a_small_share_of_the_time() -> None:
    timed = course(max_time=1000, max_samples=None)
    assert not timed._decide(49)[2]
    assert timed._decide(51)[2]
    timed._validating = 24
    assert not timed._decide(399)[2]
    assert timed._decide(401)[2]


def test_no_validation_is_made_shortly_before_the_last() -> None:
    timed = course(max_time=1000, max_samples=None)
    timed._validating, timed._validated_at = 24, 100
    assert timed._decide(510)[2]
    timed._validated_at = 200
    assert not timed._decide(650)[2]
    assert timed._decide(974)[2]


def test_validations_by_epochs_do_not_depend_on_the_clock() -> None:
    long = course(max_time=None, max_samples=1000)
    steps = []
    for samples in range(0, 1001, 4):
        long.samples = samples
        if long._decide(elapsed=0)[2]:
            steps.append(samples)
            long._validated_samples = samples
    assert steps[:2] == [52, 100]
    assert len(steps) == 20
    assert steps[-1] == 1000


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([0.5, 0.6, 0.7], 3),
        ([0.85, 0.80, 0.846], 3),  # as good as the lucky first, and later
        ([0.85, 0.80, 0.844], 1),
        # What is let pass does not add up: the best so far counts, not the weights that are kept.
        ([0.85, 0.846, 0.842], 2),
    ],
)
def test_the_last_weights_that_score_as_well_as_any_are_kept(tmp_path: Path, scores: list[float], kept: int) -> None:
    lines: list[str] = []
    average = SimpleNamespace(weights={})
    course = Course(tmp_path, average, 0.1, 4, None, 100, 0.0, lines.append)  # type: ignore[arg-type]
    for step, score in enumerate(scores, start=1):
        course._loss, course._steps = torch.ones(()), 1
        optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
        trainer = SimpleNamespace(global_step=step, is_global_zero=True, optimizers=[optimizer])
        weights = {"step": torch.tensor(step)}
        task = SimpleNamespace(scores={"dice": score}, about={}, kept=lambda average, weights=weights: weights)
        course.on_validation_end(trainer, task)  # type: ignore[arg-type]
    assert load_file(tmp_path / "weights.safetensors")["step"].item() == kept
    assert weights_metadata(tmp_path) == {"dice": repr(scores[kept - 1]), "step": str(kept)}
    assert (course.best, course.best_step, course.top) == (scores[kept - 1], kept, max(scores))
