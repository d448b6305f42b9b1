"""Inference: the image's own size, the parts of an image as the whole, flips, and what does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from patchtree import inference
from patchtree.cache import cache_data
from patchtree.data import Whole
from patchtree.datasets import find_data
from patchtree.errors import InputError
from patchtree.inference import Predictor, evaluate, load
from patchtree.io.images import write_image, write_mask
from patchtree.metrics import confusion
from patchtree.models.choose import build
from patchtree.models.precision import half_where_quick
from patchtree.patcher import Patcher
from patchtree.runs import RunConfig, save_config, save_weights
from patchtree.samples import collate_samples

SHAPE = (90, 133)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a model of random weights, three classes."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    built = build("patchtree:tiny", 3, patch_size=8)
    model = built.model
    with torch.no_grad():
        # Larger than at the start of a training, so that classes differ from place to place.
        model.head.classify.weight.normal_(std=1)
    config = RunConfig(
        labels={"background": 0, "a": 1, "b": 2},
        ignore=255,
        channels=3,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        patcher=Patcher(patch_size=8, detail="variance").to_dict(),
        density=1 / 200,
        model=built.config,
    )
    save_config(folder, config)
    save_weights(folder, model.state_dict(), {})
    return folder


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (*SHAPE, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return load(run, "cpu")


def test_ids_are_the_likeliest_classes_at_the_images_own_size(predictor: Predictor, image: NDArray[np.uint8]) -> None:
    ids, shares = predictor(image), predictor.probabilities(image)
    assert ids.shape == SHAPE
    assert ids.dtype == np.uint8
    assert shares.shape == (*SHAPE, 3)
    assert shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(ids, shares.argmax(-1))
    assert len(np.unique(ids)) == 3


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("flips", [False, True])
def test_bands_make_no_difference(
    run: Path, image: NDArray[np.uint8], smooth: bool, flips: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = load(run, "cpu", smooth=smooth)
    whole, ids = predictor.probabilities(image, flips=flips), predictor(image, flips=flips)
    monkeypatch.setattr(inference, "_BAND", 7 * SHAPE[1] * 3)
    monkeypatch.setattr("patchtree.ids._BLOCK", 37)
    np.testing.assert_allclose(predictor.probabilities(image, flips=flips), whole, atol=1e-6)
    np.testing.assert_array_equal(predictor(image, flips=flips), ids)


def test_flips_are_the_mean_over_flipped_images(predictor: Predictor, image: NDArray[np.uint8]) -> None:
    views = [np.flip(predictor.probabilities(np.flip(image, axes)), axes) for axes in ((), (0,), (1,), (0, 1))]
    shares = predictor.probabilities(image, flips=True)
    np.testing.assert_allclose(shares, np.mean(views, axis=0), atol=1e-6)
    mirrored = predictor.probabilities(image[:, ::-1], flips=True)
    np.testing.assert_allclose(mirrored[:, ::-1], shares, atol=1e-6)


def test_scores_in_patches_are_those_of_the_painted_image(run: Path, tmp_path: Path, image: NDArray[np.uint8]) -> None:
    rng = np.random.default_rng(1)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "a": 1, "b": 2, "ignore": 255}}')
    write_image(tmp_path / "images" / "x.png", image)
    mask = rng.choice(np.array([0, 1, 2, 255], np.uint8), SHAPE)
    write_mask(tmp_path / "masks" / "x.png", mask)
    predictor = load(run, "cpu", smooth=False)
    config, dataset = predictor.config, find_data(tmp_path)
    [painted] = evaluate(predictor, dataset.pairs)
    whole = Whole(
        cache_data(dataset, tmp_path / "cache"),
        3,
        Patcher.from_dict(config.patcher),
        255,
        config.density,
        most=config.most,
    )
    batch = collate_samples([whole[0]], config.mean, config.std)
    with torch.inference_mode(), half_where_quick("cpu"):
        patches = confusion(predictor.model(batch.tokens).argmax(-1), batch.counts)
    assert torch.equal(painted, patches)
    assert painted.sum() == (mask != 255).sum()


def test_images_of_another_type_are_refused(predictor: Predictor, image: NDArray[np.uint8]) -> None:
    typed = replace(predictor, config=replace(predictor.config, dtype="uint8"))
    assert np.array_equal(typed(image), predictor(image))
    with pytest.raises(InputError, match="the image is float32, the run was trained on uint8"):
        typed(image.astype(np.float32))
    floats = replace(predictor, config=replace(predictor.config, dtype="float32"))
    with pytest.raises(InputError, match="the image is uint16, the run was trained on float32"):
        floats(image.astype(np.uint16))
    floats(image.astype(np.int16))


def test_images_of_other_channels_are_refused(predictor: Predictor, image: NDArray[np.uint8]) -> None:
    with pytest.raises(
        InputError, match=r"has 1 channel \(grey\), the run was trained on images with 3 channels \(RGB"
    ):
        predictor(image[..., 0])
    with pytest.raises(InputError, match="has 4 channels, the run"):
        predictor(np.concatenate([image, image[..., :1]], axis=-1))


def test_grey_images_for_a_grey_run(run: Path, image: NDArray[np.uint8]) -> None:
    three = load(run, "cpu")
    config = replace(three.config, channels=1, mean=(0.5,), std=(0.25,))
    grey = Predictor(config, build("patchtree:tiny", 3, channels=1, patch_size=8).model.eval(), torch.device("cpu"))
    assert grey(image[..., 0]).shape == SHAPE
    assert grey(image[..., :1]).shape == SHAPE


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (8, 8)])
def test_any_shape_is_predicted(predictor: Predictor, shape: tuple[int, int]) -> None:
    assert predictor(np.zeros((*shape, 3), np.uint8)).shape == shape


def test_what_does_not_fit_is_named(predictor: Predictor, tmp_path: Path, image: NDArray[np.uint8]) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    write_image(tmp_path / "images" / "x.png", image)
    write_mask(tmp_path / "masks" / "x.png", np.full(SHAPE, 3, np.uint8))
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "a": 1, "b": 2, "c": 3}}')
    [pair] = find_data(tmp_path).pairs
    with pytest.raises(InputError, match=r"x.png: holds an id that is none of the run's 3 classes"):
        list(evaluate(predictor, [pair]))
    write_mask(tmp_path / "masks" / "x.png", np.zeros((5, 5), np.uint8))
    with pytest.raises(InputError, match=r"x.png: 5 x 5 px, but"):
        list(evaluate(predictor, [pair]))


def test_a_device_that_is_not_there_is_refused(run: Path) -> None:
    for device in ("nonsense", "cuda:99"):
        with pytest.raises(InputError, match=f"device {device} is not here"):
            load(run, device)
