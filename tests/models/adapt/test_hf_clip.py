"""The vision models of transformers' CLIP, SigLIP and SigLIP 2 on tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from models.adapt.harness import CHECKS, Case
from patchtree.errors import InputError
from patchtree.models.adapt import adapt

_TINY: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "patch_size": 16,
}
_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


def _naflex(original: Any, image: Tensor) -> Any:
    """SigLIP 2 takes patches, channels last, and the shape of their grid."""
    side = original.config.patch_size
    grid = [length // side for length in image.shape[2:]]
    patches = image.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    mask = torch.ones(patches.shape[:2], dtype=torch.long)
    return original(patches, pixel_attention_mask=mask, spatial_shapes=torch.tensor([grid] * len(image)))


def _case(kind: str, model: str = "VisionModel", whole: bool = False, pooled: bool = True, **options: Any) -> Case:
    """A vision model on its own, or the `whole` model of images and text that holds it."""
    naflex = kind == "Siglip2"
    values = {**_TINY, **({"num_patches": 16} if naflex else {"image_size": 64}), **options}
    config = getattr(transformers, f"{kind}VisionConfig")(**values)
    if whole:
        text = getattr(transformers, f"{kind}TextConfig")(**_TEXT)
        config = getattr(transformers, f"{kind}Config")(text_config=text.to_dict(), vision_config=config.to_dict())
    prefix = int("CLIP" in kind or "MetaClip" in kind)

    def encode(original: Any, image: Tensor, **how: Any) -> Any:
        vision = getattr(original, "vision_model", original)
        return _naflex(vision, image) if naflex else vision(image, **how)

    return Case(
        "-".join([kind + model, *(f"{name}={value}" for name, value in options.items())]),
        lambda: getattr(transformers, kind + model)(config),
        lambda original, image: encode(original, image).last_hidden_state[:, prefix:],
        native=(64, 64),
        other=(48, 112),
        resized=lambda original, image: encode(original, image, interpolate_pos_encoding=True).last_hidden_state[
            :, prefix:
        ],
        pooled=(lambda original, image: encode(original, image).pooler_output) if pooled else None,
    )


CASES = (
    _case("CLIP"),
    _case("CLIP", attn_implementation="eager", num_hidden_layers=1),
    _case("CLIP", "VisionModelWithProjection"),
    _case("CLIP", "Model", whole=True),
    _case("MetaClip2"),
    _case("Siglip"),
    _case("Siglip", vision_use_head=False, pooled=False),
    _case("Siglip", "ForImageClassification", whole=True),
    _case("Siglip2"),
    _case("Siglip2", "Model", whole=True),
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_adapted(case: Case, check: Any, tmp_path: Path) -> None:
    check(case, tmp_path) if check.__name__ == "check_saved" else check(case)


def test_a_model_of_text_is_refused() -> None:
    with pytest.raises(InputError, match="CLIPTextModel embeds no patches"):
        adapt(transformers.CLIPTextModel(transformers.CLIPTextConfig(**_TEXT)))
