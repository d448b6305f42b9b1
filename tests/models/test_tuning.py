"""What is trained and how fast: depths by computation, frozen blocks, rates by depth, adapters, what is kept."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import patchtree as pt
from patchtree.errors import InputError
from patchtree.models.choose import build_model
from patchtree.models.heads import build_head
from patchtree.models.segmenter import Segmenter
from patchtree.models.tuning import (
    ALL,
    add_lora,
    freeze,
    freeze_unused,
    kept_weights,
    stages,
    trial_tokens,
    weight_groups,
)

TOKENS = trial_tokens(channels=3, patch_size=8)


def vit(**options: Any) -> Segmenter:
    torch.manual_seed(0)
    net = timm.create_model(
        "vit_tiny_patch16_224", patch_size=8, img_size=32, embed_dim=48, depth=3, num_heads=3, num_classes=5, **options
    )
    encoder = pt.adapt(net)
    return Segmenter(encoder, build_head("linear", encoder, 2, 8), 2)


def trained(model: nn.Module) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def step(model: Segmenter) -> dict[str, Tensor]:
    """The weights that one step of training changes, by how much."""
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimiser = torch.optim.SGD(weight_groups(model, {}, weight_decay=0.0, layer_decay=1.0), lr=1.0)
    model(TOKENS)[..., 0].mean().backward()
    optimiser.step()
    changes = {name: weight.detach() - before[name] for name, weight in model.named_parameters()}
    return {name: change for name, change in changes.items() if change.any()}


def test_depths_are_those_of_the_computation() -> None:
    model = vit()
    depths = stages(model.encoder, TOKENS)
    assert {name for name, depth in depths.items() if depth == 0} == {
        f"model.{name}" for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    }
    assert all(depths[f"model.blocks.{number}.mlp.fc2.bias"] == number + 1 for number in range(3))
    assert {name for name, depth in depths.items() if depth == 4} == {"model.norm.weight", "model.norm.bias"}
    assert "model.head.weight" not in depths
    assert depths.keys() | {"model.head.weight", "model.head.bias"} == dict(model.encoder.named_parameters()).keys()
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())


def test_a_weight_that_acts_twice_has_the_first_depth() -> None:
    model = vit()
    blocks: Any = model.encoder.model.blocks  # type: ignore[union-attr]
    blocks[2].mlp.fc1.weight = blocks[0].mlp.fc1.weight
    assert stages(model.encoder, TOKENS)["model.blocks.0.mlp.fc1.weight"] == 1


@pytest.mark.parametrize("name", ["patchtree:tiny", "timm"])
@pytest.mark.parametrize("blocks", [0, 1, ALL])
def test_frozen_blocks_stay_as_they_are(name: str, blocks: int) -> None:
    model = vit() if name == "timm" else build_model(name, 2, patch_size=8)
    depths = stages(model.encoder, TOKENS)
    freeze(model, depths, blocks)
    freeze_unused(model, TOKENS)
    changed = step(model)
    frozen = {f"encoder.{own}" for own, depth in depths.items() if blocks and (blocks == ALL or depth <= blocks)}
    assert not frozen & changed.keys()
    assert trained(model) == dict(model.named_parameters()).keys() - frozen - {
        "encoder.model.head.weight",
        "encoder.model.head.bias",
    }
    assert any(own.startswith("head.") for own in changed)
    assert any(own.startswith("encoder.") for own in changed) == (blocks != ALL)


def test_what_cannot_be_frozen_is_told() -> None:
    model = vit()
    for blocks in (4, -2):
        with pytest.raises(InputError, match=f"freeze {blocks} is not possible, the model has 3 blocks"):
            freeze(model, stages(model.encoder, TOKENS), blocks)
    with pytest.raises(InputError, match="freeze needs a model with blocks in a row"):
        freeze(Segmenter(pt.through_mosaic(nn.Conv2d(3, 2, 1)), None, 2), {}, 1)


def test_unused_weights_are_frozen() -> None:
    model = vit()
    freeze_unused(model, TOKENS)
    assert dict(model.named_parameters()).keys() - trained(model) == {
        "encoder.model.head.weight",
        "encoder.model.head.bias",
    }


def test_rates_fall_with_depth() -> None:
    model = vit()
    freeze_unused(model, TOKENS)
    groups = weight_groups(model, stages(model.encoder, TOKENS), weight_decay=0.1, layer_decay=0.5)
    names = {id(weight): name for name, weight in model.named_parameters()}
    found = {names[id(weight)]: group for group in groups for weight in group["params"]}
    assert found.keys() == trained(model)
    for name, scale, decay in (
        ("head.classify.weight", 1.0, 0.1),
        ("head.classify.bias", 1.0, 0.0),
        ("encoder.model.norm.weight", 1.0, 0.0),
        ("encoder.model.blocks.2.attn.qkv.weight", 0.5, 0.1),
        ("encoder.model.blocks.0.attn.qkv.weight", 0.125, 0.1),
        ("encoder.model.blocks.0.norm1.bias", 0.125, 0.0),
        ("encoder.model.patch_embed.proj.weight", 0.0625, 0.1),
        ("encoder.model.pos_embed", 0.0625, 0.0),
        ("encoder.model.cls_token", 0.0625, 0.0),
    ):
        assert (found[name]["lr_scale"], found[name]["weight_decay"]) == (scale, decay), name
    assert [group["lr_scale"] for group in groups] == sorted((group["lr_scale"] for group in groups), reverse=True)


def test_lora_trains_the_adapters_and_the_head() -> None:
    pytest.importorskip("peft")
    model = vit()
    plain = vit().eval()
    depths = stages(model.encoder, TOKENS)
    torch.manual_seed(1)
    add_lora(model, depths, rank=2)
    freeze_unused(model, TOKENS)
    torch.testing.assert_close(model.eval()(TOKENS), plain(TOKENS))
    own = trained(model)
    assert all("lora_" in name or name.startswith("head.") for name in own)
    adapted = {name.split(".lora_")[0] for name in own if "lora_" in name}
    assert len(adapted) == 3 * 4
    assert all(name.startswith("encoder.model.blocks.") for name in adapted)
    step(model)
    changed = step(model)
    assert changed.keys() <= own
    assert any("lora_B" in name for name in changed)
    scales = {group["lr_scale"] for group in weight_groups(model, depths, 0.0, layer_decay=0.5)}
    assert scales == {1.0, 0.5, 0.25, 0.125}
    # Merged, they are the plain model.
    kept = kept_weights(model, {})
    assert kept.keys() == plain.state_dict().keys()
    plain.load_state_dict(kept)
    torch.testing.assert_close(plain(TOKENS), model.eval()(TOKENS))


def test_lora_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vit()
    depths = stages(model.encoder, TOKENS)
    with pytest.raises(InputError, match="lora -1 is not possible"):
        add_lora(model, depths, -1)
    with pytest.raises(InputError, match="lora finds no matrices"):
        add_lora(Segmenter(pt.through_mosaic(nn.Conv2d(3, 2, 1)), None, 2), {}, 1)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r'run: pip install "patchtree\[lora\]"'):
        add_lora(model, depths, 2)


def test_kept_weights_hold_buffers_and_both_names_of_one_weight() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    net[2].weight = net[0].weight
    model = Segmenter(pt.through_mosaic(net), None, 3)
    average = {name: weight.detach() + 1 for name, weight in model.named_parameters()}
    kept = kept_weights(model, average)
    assert kept.keys() == model.state_dict().keys()
    for name in ("encoder.model.0.weight", "encoder.model.2.weight"):
        assert torch.equal(kept[name], average["encoder.model.0.weight"])
    assert torch.equal(kept["encoder.model.1.running_var"], torch.ones(3))


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("timm:beit_base_patch16_224", "blocks.0.attn.relative_position_bias_table"),
        ("timm:vit_tiny_patch16_224", "pos_embed"),
        ("timm:vit_small_patch16_rope_mixed_224", "rope.freqs"),
    ],
)
def test_tables_of_positions_do_not_decay(name: str, table: str) -> None:
    model = pt.build_model(name, 2, head="linear", config={"embed_dim": 48, "depth": 2, "num_heads": 2})
    depths = stages(model.encoder, trial_tokens(3, 16, 2))
    groups = weight_groups(model, depths, weight_decay=0.1, layer_decay=1.0)
    weight = model.encoder.get_parameter(f"model.{table}")
    [decay] = [group["weight_decay"] for group in groups if any(one is weight for one in group["params"])]
    assert decay == 0
