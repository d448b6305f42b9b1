"""transformers' BEiT and Data2Vec vision on tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from torch import Tensor

from models.adapt.harness import CHECKS, Case

_TINY: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "image_size": 64,
    "patch_size": 16,
    "vocab_size": 20,
}


def _case(
    kind: str,
    model: str = "Model",
    inner: str | None = None,
    pooled: bool = True,
    resizes: bool = False,
    **options: Any,
) -> Case:
    config = getattr(transformers, f"{kind}Config")(**{**_TINY, **options})

    def build() -> Any:
        return getattr(transformers, kind + model)(config, **({"add_pooling_layer": True} if model == "Model" else {}))

    def encode(original: Any, image: Tensor) -> Any:
        return (getattr(original, inner) if inner else original)(image)

    size = config.image_size
    return Case(
        "-".join([kind + model, *(f"{name}={value}" for name, value in options.items())]),
        build,
        lambda original, image: encode(original, image).last_hidden_state[:, 1:],
        native=(size, size) if isinstance(size, int) else tuple(size),
        other=(48, 112) if resizes else None,
        pooled=(lambda original, image: encode(original, image).pooler_output) if pooled else None,
    )


CASES = (
    _case("Beit", use_relative_position_bias=True),
    _case("Beit", use_shared_relative_position_bias=True, use_mean_pooling=False),
    _case("Beit", use_relative_position_bias=True, use_shared_relative_position_bias=True, layer_scale_init_value=0.0),
    _case("Beit", use_relative_position_bias=True, image_size=(32, 96)),
    _case("Beit", use_relative_position_bias=True, attn_implementation="eager", num_hidden_layers=1),
    _case("Beit", use_absolute_position_embeddings=True, resizes=True),
    _case("Beit", "ForImageClassification", inner="beit", use_relative_position_bias=True),
    _case("Data2VecVision", use_relative_position_bias=True),
    _case("Data2VecVision", use_shared_relative_position_bias=True, use_mean_pooling=False),
    _case(
        "Data2VecVision",
        use_relative_position_bias=True,
        use_shared_relative_position_bias=True,
        attn_implementation="eager",
        num_hidden_layers=1,
    ),
    _case("Data2VecVision", use_absolute_position_embeddings=True, resizes=True),
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_adapted(case: Case, check: Any, tmp_path: Path) -> None:
    check(case, tmp_path) if check.__name__ == "check_saved" else check(case)
