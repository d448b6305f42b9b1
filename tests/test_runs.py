"""The run folder: written whole, read without pickle, and every way it can be broken told in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from patchtree.errors import InputError
from patchtree.patcher import Patcher
from patchtree.runs import (
    CONFIG,
    FORMAT,
    WEIGHTS,
    RunConfig,
    load_config,
    load_weights,
    save_config,
    save_weights,
    weights_metadata,
)

CONFIGURED = RunConfig(
    labels={"background": 0, "Tumor äß": 1},
    ignore=255,
    channels=3,
    mean=(0.5, 0.25, 0.125),
    std=(1.0, 2.0, 3.0),
    patcher=Patcher(patch_size=8, budget=100, detail="residual").to_dict(),
    density=1 / 1000,
    model={"name": "patchtree:tiny", "patch_size": 8},
    train=("a", "b"),
    val=("c",),
)
WEIGHTS_HELD = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(())}
SHAPES = {"a": (2, 3), "b": ()}


def test_config_comes_back(tmp_path: Path) -> None:
    save_config(tmp_path / "deep" / "run", CONFIGURED)
    assert load_config(tmp_path / "deep" / "run") == CONFIGURED


def test_weights_come_back(tmp_path: Path) -> None:
    save_weights(tmp_path, WEIGHTS_HELD, {"dice": "0.5"})
    weights = load_weights(tmp_path, SHAPES)
    assert all(torch.equal(weights[name], tensor) for name, tensor in WEIGHTS_HELD.items())
    assert weights_metadata(tmp_path) == {"dice": "0.5"}
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]


def test_budget_follows_the_area_within_limits() -> None:
    assert CONFIGURED.patcher_for((100, 2000)).budget == 200
    assert CONFIGURED.patcher_for((10, 10)).budget == 64
    assert replace(CONFIGURED, most=150).patcher_for((100, 2000)).budget == 150


def test_a_missing_folder_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none: no such run folder"):
        load_config(tmp_path / "none")
    with pytest.raises(InputError, match=rf"{CONFIG} is missing"):
        load_config(tmp_path)
    with pytest.raises(InputError, match=rf"{WEIGHTS} is missing"):
        load_weights(tmp_path, SHAPES)


def test_a_newer_format_is_refused_and_a_further_field_is_not(tmp_path: Path) -> None:
    save_config(tmp_path, CONFIGURED)
    values = json.loads((tmp_path / CONFIG).read_text(encoding="utf-8"))
    (tmp_path / CONFIG).write_text(json.dumps(values | {"later": 1}), encoding="utf-8")
    assert load_config(tmp_path) == CONFIGURED
    (tmp_path / CONFIG).write_text(json.dumps(values | {"format": FORMAT + 1}), encoding="utf-8")
    with pytest.raises(InputError, match=f"newer than {FORMAT}; update patchtree"):
        load_config(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(values | {"format": FORMAT - 1}), encoding="utf-8")
    with pytest.raises(InputError, match=f"has format {FORMAT - 1}, of an older patchtree; train again"):
        load_config(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", f'{{"format": {FORMAT}}}', '{"format": "x"}'])
def test_a_damaged_config_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / CONFIG).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=rf"{CONFIG}: ") as caught:
        load_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_patcher_is_one_line(tmp_path: Path) -> None:
    save_config(tmp_path, replace(CONFIGURED, patcher={"budget": 1, "detail": {"name": "unheard of"}}))
    with pytest.raises(InputError, match=rf"{CONFIG}: is damaged"):
        load_config(tmp_path)


def test_damaged_weights_are_one_line(tmp_path: Path) -> None:
    save_weights(tmp_path, WEIGHTS_HELD, {})
    whole = (tmp_path / WEIGHTS).read_bytes()
    for part in (b"", whole[:5], whole[:-3]):
        (tmp_path / WEIGHTS).write_bytes(part)
        with pytest.raises(InputError, match=rf"{WEIGHTS}: cannot be read"):
            load_weights(tmp_path, SHAPES)
        with pytest.raises(InputError, match=rf"{WEIGHTS}: cannot be read"):
            weights_metadata(tmp_path)


@pytest.mark.parametrize("shapes", [{"a": (2, 3)}, {"a": (3, 2), "b": ()}, {"a": (2, 3), "b": (), "c": (1,)}])
def test_weights_of_another_model_are_refused(tmp_path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    save_weights(tmp_path, WEIGHTS_HELD, {})
    with pytest.raises(InputError, match="different runs"):
        load_weights(tmp_path, shapes)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        save_config(tmp_path / "file" / "run", CONFIGURED)


@pytest.mark.parametrize(
    "wrong",
    [{"labels": None}, {"density": "x"}, {"mean": []}, {"model": {"foo": 1}}, {"model": {"name": 1}}, {"labels": {}}],
)
def test_a_config_that_does_not_fit_itself_is_told(tmp_path: Path, wrong: dict[str, Any]) -> None:
    save_config(tmp_path, CONFIGURED)
    path = tmp_path / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    with pytest.raises(InputError, match=f"{CONFIG}: is damaged"):
        load_config(tmp_path)
