"""Pretraining: images without labels, hidden leaves, and a training that starts from what was learned."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from patchtree.errors import InputError
from patchtree.inference import load
from patchtree.io.images import read_image, write_image, write_mask
from patchtree.models.choose import build
from patchtree.patcher import Patches
from patchtree.runs import CHECKPOINT, METRICS, WEIGHTS, load_config, weights_metadata
from patchtree.tasks import hide, mask, normalise_patches
from patchtree.tokens import collate
from patchtree.training import train
from patchtree.tree import Tree
from patchtree.unlabelled import find_unlabelled

HERE: dict[str, Any] = {"workers": 0, "accelerator": "cpu", "progress": False}
SMALL: dict[str, Any] = {"model": "patchtree:nano", "patch_size": 8, "budget": 16, "detail": "variance", **HERE}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures of stripes that go on through the whole of each."""
    root = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    for name in "abcde":
        stripes = (np.arange(64)[:, None] + rng.integers(8) + np.zeros(48, int)) // 4 % 2
        image = np.clip(60 + 120 * stripes + rng.normal(0, 5, stripes.shape), 0, 255)
        write_image(root / f"{name}.png", image.astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def pretrained(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("pretrained") / "run"
    return train(scans, run, task="pretrain", max_epochs=30, batch_size=2, **SMALL)


def fill(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        write_image(folder / name, np.eye(16, dtype=np.uint8))
    return folder


def test_images_are_found_where_data_sets_have_them(tmp_path: Path) -> None:
    fill(tmp_path / "plain", "b.png", "a.tif")
    fill(tmp_path / "ours" / "images", "a.png")
    fill(tmp_path / "ours" / "masks", "a.png")
    fill(tmp_path / "nnunet" / "imagesTr", "x_0000.png", "x_0001.png", "y_0000.png", "y_0001.png")
    assert [pair.name for pair in find_unlabelled(tmp_path / "plain").pairs] == ["a", "b"]
    [pair] = find_unlabelled(tmp_path / "ours").pairs
    assert pair.image == tmp_path / "ours" / "images" / "a.png"
    found = find_unlabelled(tmp_path / "nnunet").pairs
    assert [(pair.name, pair.read_image().shape) for pair in found] == [("x", (16, 16, 2)), ("y", (16, 16, 2))]


def test_what_is_no_folder_of_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="nothing: no such folder"):
        find_unlabelled(tmp_path / "nothing")
    write_image(tmp_path / "one.png", np.eye(16, dtype=np.uint8))
    with pytest.raises(InputError, match=r"one\.png: is a file; give a folder"):
        find_unlabelled(tmp_path / "one.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="a folder without images"):
        find_unlabelled(tmp_path / "empty")
    with pytest.raises(InputError, match=r"a\.tif: has the same stem as a\.png"):
        find_unlabelled(fill(tmp_path / "twice", "a.png", "a.tif"))
    with pytest.raises(InputError, match=r"x_0001\.png: channel _0000 of x is missing"):
        find_unlabelled(fill(tmp_path / "gap" / "imagesTr", "x_0001.png").parent)
    monkeypatch.setattr("patchtree.unlabelled.is_pyramid", lambda path: path.stem == "b")
    with pytest.raises(InputError, match=r"b\.tif: is a slide"):
        find_unlabelled(fill(tmp_path / "slides", "a.tif", "b.tif"))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(0, 99))
def test_some_leaves_of_every_image_are_hidden_and_no_padding(counts: list[int], seed: int) -> None:
    valid = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    hidden = hide(valid, seed)
    assert not (hidden & ~valid).any()
    for count, found in zip(counts, hidden.sum(1).tolist(), strict=True):
        assert found == 1 if count < 3 else found == round(0.6 * count)


def test_hidden_pixels_are_not_to_be_seen() -> None:
    pixels = torch.randn(1, 4, 2, 8, 8)
    tree = Tree.uniform((16, 16), patch_size=8)
    tokens = replace(collate([Patches(np.zeros((4, 8, 8, 2), np.uint8), tree)]), pixels=pixels)
    hidden = torch.tensor([[True, False, True, False]])
    shown = mask(tokens, hidden).pixels
    assert not shown[hidden].any()
    assert torch.equal(shown[~hidden], pixels[~hidden])


def test_flat_patches_have_nothing_to_paint() -> None:
    rng = torch.Generator().manual_seed(0)
    patches = normalise_patches(torch.stack([1e-4 * torch.randn(3, 8, 8, generator=rng), torch.randn(3, 8, 8)])[None])
    assert patches.shape == (1, 2, 8, 8, 3)
    assert patches[0, 0].abs().max() < 0.02
    assert patches[0, 1].std() == pytest.approx(1, abs=0.01)
    assert patches.mean((2, 3, 4)).abs().max() < 1e-6


def test_hidden_pixels_are_learned_from_others(pretrained: Path) -> None:
    config = load_config(pretrained)
    assert (config.task, config.labels) == ("pretrain", {"channel 0": 0})
    assert float(weights_metadata(pretrained)["explained variance"]) > 0.05
    assert (pretrained / METRICS).read_text().startswith("step,epoch,seconds,loss,lr,explained variance\n")


def test_a_killed_pretraining_goes_on_as_if_it_had_not_been(scans: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"task": "pretrain", "max_epochs": 3, "batch_size": 2, **SMALL}

    def report(line: str) -> None:
        if line.startswith("step 2, "):
            signal.raise_signal(signal.SIGTERM)

    one = train(scans, tmp_path / "one", **options)
    with pytest.raises(SystemExit):
        train(scans, tmp_path / "two", report=report, **options)
    two = train(scans, tmp_path / "two", task="pretrain", max_epochs=3, resume=True, **HERE)
    first, second = (torch.load(run / CHECKPOINT, weights_only=True) for run in (one, two))
    assert first["global_step"] == second["global_step"] > 2
    for name, weight in first["state_dict"].items():
        assert torch.equal(weight, second["state_dict"][name]), name
    # In the beginning worse than nothing is painted, and the later the less so.
    scores = [float(line.rpartition(",")[2]) for line in (one / METRICS).read_text().splitlines()[1:]]
    assert len(set(scores)) == len(scores)
    assert float(weights_metadata(one)["explained variance"]) == pytest.approx(max(scores), abs=1e-5)


def test_a_training_starts_from_it_with_its_head(pretrained: Path) -> None:
    weights = load_file(pretrained / WEIGHTS)
    model = build("patchtree:nano", 3, channels=1, patch_size=8, weights=pretrained / WEIGHTS).model
    for name, weight in model.state_dict().items():
        if name.startswith("head.classify."):
            assert weight.shape != weights[name].shape
        else:
            assert torch.equal(weight, weights[name]), name
    of = r"give weights of this very model \(these are of patchtree:nano with patches of 8 px and 1 channel\)"
    with pytest.raises(InputError, match=of):
        build("patchtree:nano", 3, channels=1, patch_size=16, weights=pretrained / WEIGHTS)
    with pytest.raises(InputError, match=of):
        build("patchtree:small", 3, channels=1, patch_size=8, weights=pretrained / WEIGHTS)


@pytest.mark.parametrize(
    ("labels", "head", "words"),
    [
        ({"channel 0": 0}, None, "all of it"),
        ({"x": 0}, None, "but for the last layer"),
        ({"x": 0, "y": 1}, None, "but for the last layer"),
        ({"channel 0": 0}, "linear", "but for the head"),
    ],
)
def test_what_is_taken_over_is_told(labels: dict[str, int], head: str | None, words: str, pretrained: Path) -> None:
    built = build("patchtree:nano", labels, channels=1, patch_size=8, head=head, weights=pretrained / WEIGHTS)
    assert built.weights == f"{pretrained / WEIGHTS}, {words}"
    last = {name for name in built.model.state_dict() if ".classify." in name and name.startswith("head.")}
    weights = load_file(pretrained / WEIGHTS)
    same = (
        {
            name
            for name, weight in built.model.state_dict().items()
            if weight.shape == weights[name].shape and torch.equal(weight, weights[name])
        }
        if head is None
        else set()
    )
    assert (last <= same) == (words == "all of it")
    # What the weights expect is what they were trained on.
    config = load_config(pretrained)
    assert (built.norm, built.dtype) == ((config.mean, config.std), "uint8")


def test_trainings_with_labels_go_on_from_it(pretrained: Path, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for path in scans.iterdir():
        write_image(tmp_path / "images" / path.name, read_image(path) // 2)
        write_mask(tmp_path / "masks" / path.name, np.tri(64, 48, dtype=np.uint8))
    (tmp_path / "labels.csv").write_text("name,label\na,x\nb,y\nc,y\nd,x\ne,x\n")
    lines: list[str] = []
    for task in ("segment", "classify"):
        options = {**SMALL, "weights": pretrained / WEIGHTS, "report": lines.append}
        run = train(tmp_path, tmp_path / task, task=task, max_epochs=1, batch_size=2, **options)
        assert load(run, "cpu", task=task).config.options["weights"] == str(pretrained / WEIGHTS)
        # Darker images are normalised as those that the weights know.
        assert load_config(run).mean == load_config(pretrained).mean
    # What is so small is trained on at full rate.
    assert next(line.rpartition("; ")[2] for line in lines if line.startswith("weights: ")) in (
        "learning rate 0.001",
        "learning rate 0.003",
    )


@pytest.mark.filterwarnings("ignore:the model's patches are 16")
def test_other_models_are_pretrained_as_well(scans: Path, tmp_path: Path) -> None:
    options = {**SMALL, "model": "timm:test_vit"}
    run = train(scans, tmp_path / "run", task="pretrain", max_epochs=1, batch_size=2, **options)
    assert {"encoder", "head"} == {name.partition(".")[0] for name in load_file(run / WEIGHTS)}


def test_the_head_of_another_librarys_model_goes_with_it(scans: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {**SMALL, "patch_size": 16, "model": "timm:test_vit", "batch_size": 2, "max_epochs": 1}
    run = train(scans, tmp_path / "run", task="pretrain", **options)
    built = build("timm:test_vit", 5, channels=1, weights=run / WEIGHTS)
    weights = load_file(run / WEIGHTS)
    for name, weight in built.model.state_dict().items():
        assert ".classify." in name or torch.equal(weight, weights[name]), name
    assert built.weights.endswith(", but for the last layer")
    assert built.norm == (load_config(run).mean, load_config(run).std)


def test_what_paints_channels_does_not_make_as_many_classes(scans: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {**SMALL, "patch_size": 16, "model": "monai:unet", "batch_size": 2, "max_epochs": 1}
    run = train(scans, tmp_path / "run", task="pretrain", **options)
    weights = load_file(run / WEIGHTS)
    built = build("monai:unet", {"background": 0}, channels=1, weights=run / WEIGHTS)
    other = {name for name, weight in built.model.state_dict().items() if not torch.equal(weight, weights[name])}
    assert other
    assert all(".model.2." in name for name in other)
    assert built.weights.endswith(", but for the last layer")
    assert build("monai:unet", {"channel 0": 0}, channels=1, weights=run / WEIGHTS).weights.endswith(", all of it")


def test_what_has_no_classes_does_not_predict(pretrained: Path) -> None:
    with pytest.raises(InputError, match="was pretrained and knows no classes; train from it: patchtree train DATA"):
        load(pretrained)


def test_a_run_goes_on_with_the_command_that_began_it(pretrained: Path, scans: Path) -> None:
    with pytest.raises(InputError, match="is a run of `patchtree pretrain`; resume it with that"):
        train(scans, pretrained, max_epochs=31, resume=True, **HERE)


@pytest.mark.parametrize("kept", [(), ("notes.txt",)])
def test_refused_images_leave_no_run(kept: tuple[str, ...], scans: Path, tmp_path: Path) -> None:
    for path in scans.iterdir():
        (tmp_path / "scans" / path.name).parent.mkdir(exist_ok=True)
        (tmp_path / "scans" / path.name).symlink_to(path)
    write_image(tmp_path / "scans" / "z.png", np.zeros((64, 64, 3), np.uint8))
    for name in kept:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / name).touch()
    with pytest.raises(InputError, match=r"z\.png: its number of channels is 3, that of a\.png is 1"):
        train(tmp_path / "scans", tmp_path / "run", task="pretrain", max_epochs=1, **SMALL)
    left = sorted(path.name for path in (tmp_path / "run").iterdir()) if (tmp_path / "run").exists() else []
    assert left == list(kept)
    assert (tmp_path / "run").exists() == bool(kept)


def test_a_small_budget_that_is_asked_for_is_kept(pretrained: Path) -> None:
    config = load_config(pretrained)
    assert config.patcher_for((64, 48)).budget == 16
