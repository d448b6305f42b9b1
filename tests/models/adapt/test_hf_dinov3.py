"""transformers' DINOv3 ViT on tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from models.adapt.harness import CHECKS, Case, batch, close
from patchtree.models.adapt import adapt

_TINY: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "image_size": 64,
    "patch_size": 16,
}


def _case(model: str = "DINOv3ViTModel", pooled: bool = True, **options: Any) -> Case:
    config = transformers.DINOv3ViTConfig(**{**_TINY, "num_register_tokens": 4, **options})
    prefix = 1 + config.num_register_tokens

    def features(original: Any, image: torch.Tensor) -> torch.Tensor:
        if model == "DINOv3ViTBackbone":
            return original(image).feature_maps[-1].flatten(2).transpose(1, 2)
        return original(image).last_hidden_state[:, prefix:]

    return Case(
        "-".join([model, *(f"{name}={value}" for name, value in options.items())]),
        lambda: getattr(transformers, model)(config),
        features,
        native=(64, 64),
        other=(48, 112),
        pooled=(lambda original, image: original(image).pooler_output) if pooled else None,
    )


CASES = (
    _case(),
    _case(num_register_tokens=0),
    _case(use_gated_mlp=True, key_bias=True),
    _case(attn_implementation="eager", num_hidden_layers=1),
    _case("DINOv3ViTBackbone", pooled=False),
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_adapted(case: Case, check: Any, tmp_path: Path) -> None:
    check(case, tmp_path) if check.__name__ == "check_saved" else check(case)


@torch.no_grad()
def test_positions_are_rescaled_in_training_as_in_the_original() -> None:
    case = _case(pos_embed_rescale=2.0)
    _, adapted = case.make()
    tokens = batch(case, adapted, 23, 61)
    still = adapted(tokens)
    adapted.train()
    torch.manual_seed(0)
    first, second = adapted(tokens), adapted(tokens)
    torch.manual_seed(0)
    again = adapted(tokens)
    assert not torch.allclose(first[0], second[0], atol=1e-4)
    close(first, again, 0.0)
    adapted.eval()
    close(adapted(tokens), still, 0.0)


def test_the_encoder_alone_is_refused() -> None:
    model = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**_TINY))
    with pytest.raises(ValueError, match="DINOv3ViTEncoder embeds no patches"):
        adapt(model.model)
