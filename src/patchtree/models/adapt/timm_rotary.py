"""timm's rotary positions at the leaves' centres."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import pos_embed_sincos
from torch import Tensor

from patchtree.errors import InputError
from patchtree.models.adapt.base import spacing
from patchtree.tokens import Tokens


class Rotary:
    """Turns of queries and keys by timm's own rotary module, for leaves instead of a grid.

    A module that counts patches gets the leaf's centre in cells of the uniform grid with as many leaves (`spacing`),
    one that knows shares of the image gets the centre itself.

    Args:
        rope: of ``timm.layers``; anything that it learns or was set up with stays there.

    Raises:
        InputError: the module is of a kind that is not known.
    """

    def __init__(self, rope: Any) -> None:
        self.rope = rope
        kinds = {
            "RotaryEmbeddingCat": _axial,
            "RotaryEmbeddingDinoV3": _dinov3,
            "RotaryEmbeddingMRope": _multimodal,
            "RotaryEmbeddingMixed": None,
        }
        for name, turns in kinds.items():
            kind = getattr(pos_embed_sincos, name, None)  # older releases have not all
            if kind is not None and isinstance(rope, kind):
                self._turns = turns
                return
        raise InputError(f"rotary positions of {type(rope).__name__} are not known; use through_mosaic(model)")

    def places(self, tokens: Tokens, prefix: int) -> Tensor:
        """Give what all blocks share, ``(B, prefix + N, ...)``; the prefix is turned by nothing."""
        rope = self.rope
        unit = spacing(tokens)[:, None, None]
        place, grid = tokens.centre / unit, tokens.extent[:, None] / unit  # in cells, the first from 0 to 1
        place = _normal(rope, place, grid)
        if getattr(rope, "grid_indexing", "ij") == "xy":
            place = place.flip(-1)
        if rope.training:
            place = _jitter(rope, place)
        if self._turns is None:
            return _behind(place, prefix)
        angle = _behind(self._turns(rope, place), prefix)
        return _sine_cosine(angle, _halves(rope))

    def turns(self, places: Tensor, number: int, prefix: int) -> Tensor:
        """Give what a block of timm's takes as ``rope``, ``(B, 1 or heads, N, 2 d)``.

        It leaves the first `prefix` tokens alone by itself.
        """
        places = places[:, None, prefix:]
        if self._turns is not None:
            return places
        first, second = self.rope.freqs[:, number, :, None].float()  # (heads, 1, d / 2)
        return _sine_cosine(places[..., :1] * first + places[..., 1:] * second, False)


def _normal(rope: Any, place: Tensor, grid: Tensor) -> Tensor:
    """Bring places in cells to the module's own units, as timm's ``_build_grid`` does."""
    kind = getattr(rope, "grid_type", "pixel" if getattr(rope, "in_pixels", False) else "index")
    offset = getattr(rope, "grid_offset", 0.0)
    if isinstance(rope, pos_embed_sincos.RotaryEmbeddingDinoV3) or kind == "centered":
        sides = {"separate": grid, "min": grid.amin(-1, keepdim=True), "max": grid.amax(-1, keepdim=True)}
        return 2 * (place + offset) / sides[rope.normalize_coords] - 1
    place = 2 * (place - 0.5) / (grid - 1).clamp(min=1) - 1 if kind == "pixel" else place - 0.5 + offset
    native = getattr(rope, "ref_feat_shape", None)
    return place if native is None else place / grid * torch.tensor(native, device=place.device)


def _jitter(rope: Any, place: Tensor) -> Tensor:
    """Shift, stretch and rescale the places of a whole batch by chance, as timm's modules do in training."""
    # Drawn in timm's order and where it draws, so that one seed gives one run.
    where = "cpu" if isinstance(rope, pos_embed_sincos.RotaryEmbeddingDinoV3) else place.device

    def draw(count: int, most: float) -> Tensor:
        return torch.empty(count, device=where).uniform_(-most, most).to(place.device)

    if (shift := getattr(rope, "shift_coords", None)) is not None:
        place = place + draw(2, shift)
    for name, count in (("jitter_coords", 2), ("rescale_coords", 1)):
        if (factor := getattr(rope, name, None)) is not None:
            place = place * draw(count, math.log(factor)).exp()
    return place


def _axial(rope: Any, place: Tensor) -> Tensor:
    bands = rope.bands
    if bands is None:  # older releases keep them for grids of any shape only
        count = rope.dim // 4
        if rope.in_pixels:
            bands = pos_embed_sincos.pixel_freq_bands(count, float(rope.max_res), linear_bands=rope.linear_bands)
        else:
            bands = pos_embed_sincos.freq_bands(count, temperature=rope.temperature, step=1)
    out: Tensor = (place[..., None] * bands.to(place.device)).flatten(-2)
    return out


def _dinov3(rope: Any, place: Tensor) -> Tensor:
    out: Tensor = (2 * math.pi * place[..., None] / rope.periods).flatten(-2)
    return out


def _multimodal(rope: Any, place: Tensor) -> Tensor:
    time = torch.zeros_like(place[..., :1])
    out: Tensor = torch.cat([time, place], dim=-1).index_select(-1, rope.axis) * rope.inv_freq
    return out


def _halves(rope: Any) -> bool:
    """Tell whether a pair that is turned together lies half a head apart, not side by side."""
    return bool(getattr(rope, "rotate_half", hasattr(rope, "axis")))


def _behind(x: Tensor, prefix: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, 0, prefix, 0))


def _sine_cosine(angle: Tensor, halves: bool) -> Tensor:
    """Give sines and then cosines in the layout that timm's ``apply_rot_embed_cat`` takes."""
    parts = [torch.cat([x, x], -1) if halves else x.repeat_interleave(2, -1) for x in (angle.sin(), angle.cos())]
    return torch.cat(parts, dim=-1)
