"""transformers' BEiT and Data2Vec vision: relative position bias, with or without absolute positions."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from patchtree.models.adapt.base import masked_mean
from patchtree.models.adapt.hf_vit import HfVit
from patchtree.models.adapt.places import displacements, relative_bias
from patchtree.tokens import Tokens


class HfBeit(HfVit):
    """BEiT on tokens: the bias between two leaves is read at their displacement, in cells of the native grid."""

    exact = "at the model's own grid"
    approximate = "other grids: relative bias is read at true displacements, where the library stretches its table"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        config = self.backbone.config
        self._biased = bool(config.use_relative_position_bias or config.use_shared_relative_position_bias)
        self._packs = not self._biased

    @property
    def _shared(self) -> Any:
        return self.backbone.shared_position_bias

    def embed(self, tokens: Tokens) -> tuple[Tensor, Any]:
        """Give the sequence, and the displacements and the shared bias between its tokens."""
        x, _ = super().embed(tokens)
        if not self._biased:
            return x, None
        shape = [side // self.patch_size for side in self.backbone.embeddings.patch_embeddings.image_size]
        apart = displacements(tokens.centre, tokens.extent, shape)
        shared = self._shared
        return x, (apart, None if shared is None else self._bias(shared, apart))

    def block(self, number: int, x: Tensor, mask: Tensor | None, beside: Any) -> Tensor:
        """Run one of the backbone's layers."""
        layer: Any = self.layers[number]
        bias = None
        if beside is not None:
            apart, bias = beside
            own = self._own_bias(layer)
            if own is not None:
                bias = self._bias(own, apart) if bias is None else bias + self._bias(own, apart)
            bias = bias.to(x.dtype)
            mask = bias if mask is None else bias.masked_fill(~mask, torch.finfo(x.dtype).min)
        else:
            mask = self.to_mask(mask, x)
        run = partial(self._layer, layer, mask)
        if layer.gradient_checkpointing and layer.training and torch.is_grad_enabled():
            return layer._gradient_checkpointing_func(run, x)  # type: ignore[no-any-return]
        return run(x)

    def pool(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        """Give the pooler output, leaving padding out, or the class token if there is no pooler."""
        pooler = self.backbone.pooler
        if pooler is None or pooler.layernorm is None:
            return x[:, 0]
        out: Tensor = pooler.layernorm(masked_mean(x[:, 1:], valid))
        return out

    def _bias(self, part: Any, apart: Tensor) -> Tensor:
        table, (high, wide) = part.relative_position_bias_table, part.window_size
        if high != wide:
            # The library takes the table for one of the turned grid and stretches it to the grid; weights mean that.
            own = table[:-3].view(1, 2 * wide - 1, 2 * high - 1, -1).movedim(-1, 1)
            own = F.interpolate(own, size=(2 * high - 1, 2 * wide - 1), mode="bilinear")
            table = torch.cat([own[0].flatten(1).T, table[-3:]])
        return relative_bias(table, (high, wide), apart)

    def _own_bias(self, layer: Any) -> Any:
        return layer.relative_position_bias

    def _layer(self, layer: Any, mask: Tensor | None, x: Tensor) -> Tensor:
        x = x + layer.drop_path(self._scaled(layer.lambda_1, self._attend(layer, layer.layernorm_before(x), mask)))
        out: Tensor = x + layer.drop_path(self._scaled(layer.lambda_2, self._mlp(layer, layer.layernorm_after(x))))
        return out

    def _attend(self, layer: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        return layer.dropout(layer.attention(x, attention_mask=mask)[0])  # type: ignore[no-any-return]

    def _mlp(self, layer: Any, x: Tensor) -> Tensor:
        return layer.dropout(layer.mlp(x))  # type: ignore[no-any-return]

    @staticmethod
    def _scaled(scale: Tensor | float | None, x: Tensor) -> Tensor:
        return x if scale is None else scale * x


class HfData2Vec(HfBeit):
    """Data2Vec vision on tokens, as `HfBeit`; its attention is computed here, for the original's takes no mask."""

    @property
    def _shared(self) -> Any:
        encoder = self.backbone.encoder
        return encoder.relative_position_bias if encoder.has_relative_position_bias else None

    def _own_bias(self, layer: Any) -> Any:
        own = layer.attention.attention
        return own.relative_position_bias if own.has_relative_position_bias else None

    def _attend(self, layer: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        own = layer.attention.attention
        heads = (own.num_attention_heads, own.attention_head_size)
        query, key, value = (part(x).unflatten(-1, heads).transpose(1, 2) for part in (own.query, own.key, own.value))
        dropped = own.dropout.p if own.training else 0.0
        out = F.scaled_dot_product_attention(query, key, value, mask, dropped)
        out = out.transpose(1, 2).flatten(2)
        return layer.attention.output(out, x)  # type: ignore[no-any-return]

    def _mlp(self, layer: Any, x: Tensor) -> Tensor:
        return layer.output(layer.intermediate(x))  # type: ignore[no-any-return]
