"""timm's Eva: EVA, EVA02, DINOv3, Perception Encoder and rotary ViTs, learned and rotary positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from patchtree.models.adapt.timm_common import Timm, scores
from patchtree.models.adapt.timm_rotary import Rotary
from patchtree.tokens import Tokens


class TimmEva(Timm):
    """timm's ``Eva`` on tokens: rotary positions (axial, DINOv3's, learned, multimodal) at the leaves' centres.

    Axial positions count patches. They are given in cells of the uniform grid with as many leaves, so that they stay in
    the range that a grid of as many patches has, however large the image.
    """

    exact = "every uniform tree that fills the image, as with dynamic_img_size"
    approximate = "rotary positions that count patches count cells of the uniform grid with as many leaves"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._rotary = None if model.rope is None else Rotary(model.rope)

    def embed(self, tokens: Tokens) -> tuple[Tensor, Any]:
        """Give patches after the class token and registers, and the leaves' places for the rotation."""
        x = self.model.norm_pre(self.sequence(tokens))  # type: ignore[operator]
        return x, None if self._rotary is None else self._rotary.places(tokens, self.prefix)

    def block(self, number: int, x: Tensor, mask: Tensor | None, beside: Any) -> Tensor:
        """Run one of timm's blocks."""
        block: Any = self.model.blocks[number]  # type: ignore[index]
        rope = None if self._rotary is None else self._rotary.turns(beside, number, self.prefix)
        out: Tensor = block(x, rope=rope, attn_mask=scores(mask, x))
        return out

    @property
    def pools_prefix(self) -> bool:
        """Whether class token and registers are pooled with the leaves."""
        return self.model.attn_pool is not None
