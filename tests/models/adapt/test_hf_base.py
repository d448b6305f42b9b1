"""What the transformers families have in common: attention, checkpointing, dropout, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers

import patchtree as pt
from models.adapt.harness import adaptive, close
from patchtree.errors import InputError
from patchtree.models.adapt import adapt
from patchtree.models.adapt.base import Adapted
from patchtree.tokens import Tokens

_TINY: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "image_size": 64,
    "patch_size": 16,
}


def _vit(**options: Any) -> Any:
    torch.manual_seed(0)
    return transformers.ViTModel(transformers.ViTConfig(**{**_TINY, **options})).eval()


def _pair() -> Tokens:
    """Two images, one of half the leaves of the other."""
    return pt.collate([adaptive(count, 16, 3, seed=seed) for seed, count in enumerate((23, 61))])


def _gradients(adapted: Adapted, tokens: Tokens) -> list[torch.Tensor]:
    adapted.zero_grad()
    (adapted(tokens)[tokens.valid] ** 2).sum().backward()
    return [weight.grad.clone() for weight in adapted.parameters() if weight.grad is not None]


def test_attention_is_what_the_model_is_set_to_when_it_runs() -> None:
    model = _vit(attn_implementation="sdpa")
    adapted, tokens = adapt(model), _pair()
    assert adapted.packs
    with torch.no_grad():
        packed = adapted(tokens)
        model.set_attn_implementation("eager")
        assert not adapted.packs
        close(adapted(tokens)[tokens.valid], packed[tokens.valid], 1e-5)


@pytest.mark.parametrize("name", ["flex_attention", "flash_attention_2"])
def test_attention_without_a_mask_of_tokens_is_refused(name: str) -> None:
    model = _vit()
    model.config._attn_implementation_internal = name
    assert model.config._attn_implementation == name
    with pytest.raises(InputError, match=f"attention is '{name}'.*load it with attn_implementation='sdpa'"):
        adapt(model)


def _checkpoint(model: Any, reentrant: bool) -> None:
    # By its name since 5.24, or by the older one, which warns there.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_models_own_checkpointing_changes_no_gradient(reentrant: bool) -> None:
    model = _vit()
    adapted, tokens = adapt(model).train(), _pair()
    assert adapted.packs
    expected = _gradients(adapted, tokens)
    _checkpoint(model, reentrant)
    assert not adapted.packs
    for own, wanted in zip(_gradients(adapted, tokens), expected, strict=True):
        close(own, wanted, 1e-4)
    assert adapted.eval().packs


def test_the_own_checkpointing_of_beit_runs_its_layers_again() -> None:
    torch.manual_seed(0)
    config = transformers.BeitConfig(**_TINY, vocab_size=20, use_relative_position_bias=True, drop_path_rate=0.0)
    model = transformers.BeitModel(config)
    adapted, tokens = adapt(model).train(), _pair()
    expected = _gradients(adapted, tokens)
    _checkpoint(model, False)
    runs: list[int] = []
    model.layers[0].mlp.register_forward_hook(lambda *_: runs.append(1))
    for own, wanted in zip(_gradients(adapted, tokens), expected, strict=True):
        close(own, wanted, 1e-4)
    assert len(runs) == 2


def test_checkpointing_of_packed_batches_changes_no_gradient() -> None:
    adapted, tokens = adapt(_vit()).train(), _pair()
    expected = _gradients(adapted, tokens)
    adapted.checkpointing = True
    for own, wanted in zip(_gradients(adapted, tokens), expected, strict=True):
        close(own, wanted, 1e-4)


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("which", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
@torch.no_grad()
def test_dropout_acts_in_training_only(kind: str, which: str) -> None:
    adapted, tokens = adapt(_vit(**{which: 0.5, "attn_implementation": kind})), _pair()
    adapted.train()
    first, second = adapted(tokens)[tokens.valid], adapted(tokens)[tokens.valid]
    assert first.isfinite().all()
    assert not torch.allclose(first, second, atol=1e-3)
    adapted.eval()
    close(adapted(tokens), adapted(tokens), 0.0)


@torch.no_grad()
def test_stochastic_depth_drops_each_image_on_its_own() -> None:
    model = transformers.Dinov2Model(transformers.Dinov2Config(**_TINY, drop_path_rate=0.5))
    rows: list[int] = []
    model.encoder.layer[0].drop_path.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    adapted, tokens = adapt(model), _pair()
    adapted.eval()(tokens)
    adapted.train()(tokens)
    assert rows == [1, 1, 2, 2]


@torch.no_grad()
def test_vit_mae_masks_nothing() -> None:
    torch.manual_seed(0)
    model = transformers.ViTMAEModel(transformers.ViTMAEConfig(**_TINY, mask_ratio=0.75)).train()
    adapted, tokens = adapt(model), _pair()
    close(adapted(tokens), adapted(tokens), 0.0)


@torch.no_grad()
def test_a_model_in_bfloat16_runs() -> None:
    torch.manual_seed(0)
    config = transformers.BeitConfig(**_TINY, vocab_size=20, use_relative_position_bias=True)
    for model in (_vit(), transformers.BeitModel(config).eval()):
        adapted, tokens = adapt(model), _pair()
        expected = adapted(tokens)[tokens.valid]
        out = adapted.bfloat16()(tokens)[tokens.valid]
        assert out.dtype == torch.bfloat16
        assert (out.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_patches_that_are_no_squares_are_refused() -> None:
    with pytest.raises(InputError, match="patches of 16 x 8 pixels"):
        adapt(transformers.ViTModel(transformers.ViTConfig(**{**_TINY, "patch_size": (16, 8)})))


def test_models_that_see_no_patches_alone_are_sent_to_the_other_door() -> None:
    swin = transformers.SwinConfig(image_size=32, embed_dim=16, depths=[1], num_heads=[2], window_size=4)
    segformer = transformers.SegformerConfig(
        num_encoder_blocks=1, depths=[1], hidden_sizes=[16], num_attention_heads=[1], sr_ratios=[1]
    )
    for model in (transformers.SwinModel(swin), transformers.SegformerModel(segformer)):
        with pytest.raises(InputError, match=r"through_mosaic\(model\)"):
            adapt(model)


def test_adapt_imports_no_transformers() -> None:
    code = "import sys, patchtree.models.adapt; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
