"""Models by name and their weights: every library, without the network, and what cannot be is one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from patchtree.errors import InputError
from patchtree.models import originals
from patchtree.models.choose import Built, build, build_model, pretrained
from patchtree.models.heads import build_head
from patchtree.models.mosaic import through_mosaic
from patchtree.models.tuning import trial_tokens
from patchtree.models.weights import read_weights
from patchtree.patcher import Patches
from patchtree.tokens import collate
from patchtree.tree import Tree

DEEP = {"depth": 2, "embed_dim": 48, "num_heads": 3}
VIT = "timm:test_vit"


def vit(**options: Any) -> nn.Module:
    """timm's smallest, as it is built by name, with random positions too."""
    model = timm.create_model("test_vit", **options)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.1)
    return model


def assert_rebuilds(built: Built, **options: Any) -> None:
    """The description alone, through JSON, makes a model that takes the weights and gives the same logits."""
    config = json.loads(json.dumps(built.config))
    again = build(labels=built.model.labels, **config)
    assert again.config == built.config
    again.model.load_state_dict(built.model.state_dict())
    tokens = trial_tokens(config["channels"], config["patch_size"], config["ndim"])
    with torch.no_grad():
        found = built.model.eval()(tokens)
        assert found.shape == (*tokens.valid.shape, *(config["patch_size"],) * config["ndim"], len(built.model.labels))
        assert torch.equal(again.model.eval()(tokens), found)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("patchtree:tiny", {"patch_size": 8, "channels": 2}),
        ("patchtree:tiny", {"patch_size": 4, "channels": 1, "ndim": 3}),
        ("patchtree:tiny", {"head": "linear"}),
        ("patchtree:tiny", {"head": "depths"}),
        (VIT, {}),
        (VIT, {"head": "linear", "channels": 5}),
        ("smp:unet/resnet18", {"channels": 1}),
        ("monai:unet", {"channels": 4}),
    ],
)
def test_a_model_is_built_again_from_its_description(name: str, options: dict[str, Any]) -> None:
    if name.startswith("smp"):
        pytest.importorskip("segmentation_models_pytorch")
    built = build(name, {"background": 0, "a": 1, "b": 2}, **options)
    assert built.weights == ""
    assert_rebuilds(built)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("patchtree:small", {}),
        ("monai:vit", {"ndim": 3, "channels": 1}),
        ("monai:unetr", {"head": "depths"}),
        ("monai:vitautoenc", {}),
        ("monai:swinunetr", {"channels": 1}),
        ("monai:segresnet", {}),
        ("torchvision:vit_b_16", {"channels": 4}),
        ("torchvision:lraspp_mobilenet_v3_large", {"channels": 1}),
        ("timm:vit_small_patch16_224", {}),
        ("timm:vit_small_patch14_dinov2", {"patch_size": 14, "head": "linear"}),
    ],
)
def test_every_library_is_built(name: str, options: dict[str, Any]) -> None:
    assert_rebuilds(build(name, 3, **options))


def hf_folder(folder: Path, weights: bool = True, **options: Any) -> Path:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96, image_size=64, **options
    )
    torch.manual_seed(1)
    (transformers.ViTModel(config) if weights else config).save_pretrained(folder)
    return folder


def test_a_folder_of_transformers_brings_its_weights_and_normalisation(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = hf_folder(tmp_path / "vit")
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}')
    assert pretrained(f"hf:{folder}", None)
    built = build(f"hf:{folder}", 2)
    original = transformers.ViTModel.from_pretrained(folder).state_dict()
    state = built.model.encoder.model.state_dict()  # type: ignore[union-attr, operator]
    assert all(torch.equal(state[name], value) for name, value in original.items())
    assert built.norm == ((0.1, 0.2, 0.3), (1, 2, 3))
    assert built.weights == str(folder)
    assert all(module.training for module in built.model.modules())
    (folder / "config.json").unlink()
    assert_rebuilds(built)
    with pytest.raises(InputError, match="cannot be had"):
        build(f"hf:{folder}", 2)


def test_a_folder_without_weights_is_told(tmp_path: Path) -> None:
    bare, whole = hf_folder(tmp_path / "bare", weights=False), hf_folder(tmp_path / "whole")
    assert not pretrained(f"hf:{bare}", None)
    with pytest.warns(UserWarning, match="bare: holds no weights; the model starts from random ones"):
        built = build(f"hf:{bare}", 2)
    assert built.weights == ""
    assert built.norm is None
    # With a file, there is nothing to tell; it has the names of the hub, not those of the module.
    file = whole / "model.safetensors"
    built = build(f"hf:{bare}", 2, weights=file)
    expected = build(f"hf:{whole}", 2).model.encoder.state_dict()  # type: ignore[union-attr]
    found = built.model.encoder.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items() if "pooler" not in name)
    with pytest.warns(UserWarning, match="made for 3 channels and is used for 1"):
        assert_rebuilds(build(f"hf:{whole}", 2, channels=1))


def test_what_no_family_knows_goes_as_a_mosaic(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        depths=[1] * 4, hidden_sizes=[16] * 4, decoder_hidden_size=16, num_attention_heads=[1] * 4, num_labels=7
    )
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"decode_head.classifier.bias and 1 more is not for these classes"):
        built = build(f"hf:{tmp_path}", 2)
    assert built.model.head is None
    assert_rebuilds(built)


def test_a_folder_of_timm(tmp_path: Path) -> None:
    original = timm.create_model("test_vit", num_classes=0, **DEEP)
    timm.models._hub.save_for_hf(original, tmp_path, model_args=DEEP, safe_serialization=True)
    built = build(f"timm:local-dir:{tmp_path}", 2, weights="pretrained")
    found = built.model.encoder.model.state_dict()  # type: ignore[union-attr, operator]
    assert all(torch.equal(found[name], value) for name, value in original.state_dict().items())
    assert built.weights == f"timm ({tmp_path})"
    (tmp_path / "config.json").unlink()
    assert_rebuilds(built)
    with pytest.raises(InputError, match="cannot be had"):
        build(f"timm:local-dir:{tmp_path}", 2)
    with pytest.raises(InputError, match="is unknown; give timm:NAME, timm:hf-hub:OWNER/NAME"):
        build("timm:hub:a/b", 2)


def checkpoint(path: Path, state: dict[str, Tensor], form: str) -> Path:
    if form == "safetensors":
        save_file(state, path := path.with_suffix(".safetensors"))
        return path
    nested: dict[str, Any] = {
        "plain": state,
        "state_dict": {"state_dict": state, "epoch": 3},
        "model": {"model": state, "optimizer": {"lr": 1}},
        "module": {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        "run": {f"encoder.model.{name}": value for name, value in state.items()} | {"head.norm.bias": torch.ones(3)},
    }
    torch.save(nested[form], path)
    return path


@pytest.mark.parametrize("form", ["safetensors", "plain", "state_dict", "model", "module", "run"])
def test_files_of_weights(form: str, tmp_path: Path) -> None:
    original = vit()
    state = original.state_dict()
    assert "head.weight" in state
    built = build(VIT, 2, weights=checkpoint(tmp_path / "vit.pt", state, form))
    found = built.model.encoder.model.state_dict()  # type: ignore[union-attr, operator]
    assert all(torch.equal(found[name], state[name]) for name in found)
    assert built.weights == str(tmp_path / "vit.pt") or form == "safetensors"
    cfg = original.pretrained_cfg
    assert built.norm == (tuple(cfg["mean"]), tuple(cfg["std"]))


def test_positions_of_another_grid_are_resampled_by_the_library(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "vit.pt", vit(img_size=64).state_dict(), "plain")
    built = build(VIT, 2, weights=path)
    assert built.model.encoder.model.pos_embed.shape != torch.load(path)["pos_embed"].shape  # type: ignore[union-attr]


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_kernels_for_other_channels(channels: int, tmp_path: Path) -> None:
    state = vit().state_dict()
    path = checkpoint(tmp_path / "vit.pt", state, "plain")
    with pytest.warns(UserWarning, match=f"patch_embed.proj.weight is made for 3 channels and is used for {channels}"):
        built = build(VIT, 2, channels=channels, weights=path)
    weight = built.model.encoder.model.patch_embed.proj.weight  # type: ignore[union-attr]
    kernel = state["patch_embed.proj.weight"]
    if channels == 1:
        torch.testing.assert_close(weight, kernel.sum(1, keepdim=True))
    else:
        torch.testing.assert_close(weight[:, 1], kernel[:, 1] * 3 / channels)
    assert built.norm is None


def lacking(state: dict[str, Tensor]) -> None:
    del state["blocks.1.mlp.fc1.weight"], state["blocks.1.mlp.fc1.bias"]


def of_another_shape(state: dict[str, Tensor]) -> None:
    state["blocks.1.mlp.fc1.weight"] = torch.zeros(3, 5)


def of_nothing_known(state: dict[str, Tensor]) -> None:
    for name in list(state):
        state[f"{name}_"] = state.pop(name)


def of_more_blocks(state: dict[str, Tensor]) -> None:
    for name in [name for name in state if name.startswith("blocks.1.")]:
        state[name.replace("blocks.1.", "blocks.99.")] = state[name]


def with_layer_scale(state: dict[str, Tensor]) -> None:
    state["blocks.0.ls1.gamma"] = torch.ones(64)


def with_a_norm(state: dict[str, Tensor]) -> None:
    state["norm_pre.weight"] = torch.ones(64)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lacking, r"lacks blocks.1.mlp.fc1.bias and 1 more of \d+ weights"),
        (of_another_shape, r"blocks.1.mlp.fc1.weight is \(3, 5\), the model's is \("),
        (of_nothing_known, "lacks blocks.0"),
        (of_more_blocks, r"the model lacks blocks.99.attn.proj.bias and \d+ more; give its own weights, or name the"),
        (with_layer_scale, "the model lacks blocks.0.ls1.gamma; give its own weights, or name the model of these"),
        (with_a_norm, "the model lacks norm_pre.weight;"),
    ],
)
def test_weights_of_another_model_are_refused(spoil: Any, words: str, tmp_path: Path) -> None:
    state = vit().state_dict()
    spoil(state)
    with pytest.raises(InputError, match=words):
        build(VIT, 2, weights=checkpoint(tmp_path / "vit.pt", state, "plain"))


def test_weights_that_the_model_has_no_use_for_are_told(tmp_path: Path) -> None:
    beside = ("decoder.bias", "decoder_blocks.0.norm1.weight", "mask_token", "aux_classifier.0.weight")
    state = vit().state_dict() | dict.fromkeys(beside, torch.ones(3)) | {"head.bias": torch.ones(9)}
    state["blocks.0.attn.relative_position_index"] = torch.arange(3)
    with pytest.warns(UserWarning, match="aux_classifier.0.weight and 4 more is of no use to the model and left out"):
        build(VIT, 2, weights=checkpoint(tmp_path / "vit.pt", state, "plain"))


def test_classes_of_a_mosaic_model_begin_anew(tmp_path: Path) -> None:
    torch.save(build_model("monai:unet", 5).encoder.model.state_dict(), tmp_path / "unet.pt")  # type: ignore
    with pytest.warns(UserWarning, match="begins anew"):
        build("monai:unet", 2, weights=tmp_path / "unet.pt")


def test_damaged_files_of_weights_are_told(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return print, ("executed",)

    (tmp_path / "a.pt").write_bytes(b"no weights")
    (tmp_path / "a.safetensors").write_bytes(b"no weights")
    torch.save(Evil(), tmp_path / "evil.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    unread, code = "cannot be read as weights", r"holds pickled code, which is not run; save the model's state_dict\(\)"
    for name, words in (("a.pt", unread), ("a.safetensors", unread), ("evil.pt", code), ("whole.pt", code)):
        with pytest.raises(InputError, match=f"{name}: {words}") as caught:
            read_weights(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="is a folder; give --weights a file in it"):
        read_weights(tmp_path)
    torch.save({"epoch": 1}, tmp_path / "b.pt")
    with pytest.raises(InputError, match="holds no weights by name"):
        read_weights(tmp_path / "b.pt")
    with pytest.raises(InputError, match="no such file of weights"):
        read_weights(tmp_path / "c.pt")


def test_the_librarys_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    real = timm.create_model

    def create(name: str, pretrained: bool, **options: Any) -> nn.Module:
        asked.update(options, pretrained=pretrained)
        return real(name, **options)

    monkeypatch.setattr(timm, "create_model", create)
    assert build(VIT, 2, weights="pretrained").weights.startswith("timm (")
    assert asked == {"pretrained": True, "num_classes": 0, "in_chans": 3}

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("Cannot reach the hub. Retry later.\nTry to be online.")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match=r"test_vit cannot be had \(Cannot reach the hub\); give --weights FILE"):
        build(VIT, 2, weights="pretrained")
    for name in ("patchtree:tiny", "monai:vit"):
        with pytest.raises(InputError, match=f"{name} comes without trained weights"):
            build(name, 2, weights="pretrained")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_small_patch16_224", "is unknown; did you mean timm:vit_small_patch16_224?"),
        ("tim:vit_small_patch16_224", "did you mean timm:vit_small_patch16_224?"),
        ("timm:vit_smal_patch16_224", "near it: timm:vit_small_patch16_224"),
        ("timm:", "give patchtree:SIZE"),
        ("patchtree:large", "near it: patchtree:"),
        ("monai:unnet", "near it: monai:unet"),
        ("torchvision:vit_b_61", "near it: torchvision:vit_b_16"),
        ("smp:unett", "near it: smp:unet"),
        ("smp:Unet/resnet18", "near it: smp:unet"),
        ("monai:UNETR", "near it: monai:unetr"),
        ("smp:unet/resnet81", "near it: smp:unet/resnet18"),
        ("hf:/no/such/folder", "no such folder"),
        ("timm:resnet18", "of no family that adapt knows; choose a transformer of plain patches, or a model of segm"),
        ("timm:vit_tiny_r_s16_p8_224", "looks beyond the patch; choose a transformer of plain patches, or a model of"),
    ],
)
def test_unknown_models_are_told_with_what_is_near(name: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        build(name, 2)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "through_mosaic" not in str(caught.value)


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai", None)
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name, package in (
        ("monai:unet", "monai"),
        ("smp:unet", "segmentation-models-pytorch"),
        ("hf:a", "transformers"),
    ):
        with pytest.raises(InputError, match=f"run: pip install {package}$"):
            build(name, 2)


def test_what_does_not_suit_the_model_is_told() -> None:
    with pytest.raises(InputError, match="test_vit is made for ndim 2, not 3"):
        build(VIT, 2, ndim=3, head="linear")
    with pytest.raises(InputError, match="patch size 10 does not suit the mesh"):
        build(VIT, 2, patch_size=10)
    with pytest.raises(InputError, match="gives every pixel's classes itself; leave the head out"):
        build("monai:unet", 2, head="linear")
    with pytest.raises(InputError, match="monai:unet is given patches as a flat mosaic; for volumes"):
        build("monai:unet", 2, ndim=3)
    with pytest.raises(InputError, match="ndim 4"):
        build(VIT, 2, ndim=4)
    with pytest.raises(InputError, match="ThroughMosaic gives no features of tokens; give adapt"):
        build_head("linear", through_mosaic(nn.Conv2d(3, 2, 1)), 2, 16)  # type: ignore[arg-type]
    assert originals._BUILDERS.keys() >= originals._PACKAGES.keys()


@pytest.mark.parametrize("name", ["monai:vit", "monai:unetr", "monai:vitautoenc"])
def test_models_made_by_name_know_their_grid(name: str) -> None:
    """No warning of a guess, which is an error here, for an image that is not square."""
    tree = Tree.uniform((32, 48), patch_size=16)
    tokens = collate([Patches(np.zeros((6, 16, 16, 3), np.uint8), tree)])
    assert build_model(name, labels=2)(tokens).shape == (1, 6, 16, 16, 2)
