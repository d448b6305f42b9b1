"""What is trained of a model, and how fast: its weights by depth, frozen parts, layer-wise rates, low-rank adapters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchtree.errors import InputError
from patchtree.models.adapt.base import Adapted
from patchtree.models.mesh import MeshEncoder
from patchtree.models.segmenter import Segmenter
from patchtree.patcher import Patches
from patchtree.tokens import Tokens, collate
from patchtree.tree import Tree

ALL = -1
_SIDE = 4
_LORA_SCALE = 2
# Tables of positions by the names that libraries give them.
_PLACES = re.compile(r"pos(ition)?_emb|relative_position|rel_pos|(^|\.)rope\.")


def trial_tokens(channels: int, patch_size: int, ndim: int = 2) -> Tokens:
    """Make one small uniform image of noise, to see what a model does with it.

    >>> trial_tokens(channels=3, patch_size=8).pixels.shape
    torch.Size([1, 16, 3, 8, 8])
    """
    tree = Tree.uniform((_SIDE * patch_size,) * ndim, patch_size)
    pixels = np.random.default_rng(0).random((len(tree), *(patch_size,) * ndim, channels), np.float32)
    return collate([Patches(pixels, tree)])


def stages(encoder: nn.Module, tokens: Tokens, pooled: bool = False) -> dict[str, int]:
    """Say at which depth each weight of an encoder acts: 0 before the blocks, then 1, 2, ..., and what follows them.

    What a part's output has no gradient to, it does not use: so the depths are those of the computation, whatever the
    names, and weights that no token passes are left out. A weight that acts twice is given the first depth.

    >>> own = stages(MeshEncoder("tiny"), trial_tokens(channels=3, patch_size=16))
    >>> own["way_down.stem.weight"], own["blocks.0.attn.qkv.weight"], own["blocks.1.attn.qkv.weight"]
    (0, 1, 2)

    Args:
        encoder: `adapt`'s or the reference model's; another has no depths.
        tokens: some, see `trial_tokens`.
        pooled: what makes the pooled output of the tokens is wanted too; it follows the blocks.

    Returns:
        Name to depth; empty if the encoder has no depths.
    """
    if isinstance(encoder, MeshEncoder):
        return {
            name: int(name.split(".")[1]) + 1 if name.startswith("blocks.") else 0
            for name, _ in encoder.named_parameters()
        }
    if not isinstance(encoder, Adapted):
        return {}
    found: dict[str, int] = {}
    with evaluating(encoder), torch.enable_grad():
        x, beside = encoder.embed(tokens)
        found |= dict.fromkeys(_used(encoder, [x, *_tensors(beside)]), 0)
        beside = _detached(beside)
        for number in range(encoder.depth + 1):
            x = x.detach()
            x = encoder.block(number, x, None, beside) if number < encoder.depth else encoder.finish(x)
            found = dict.fromkeys(_used(encoder, [x]), number + 1) | found
        out = encoder.pool(x.detach(), None) if pooled else None
        if out is not None:
            found = dict.fromkeys(_used(encoder, [out]), encoder.depth + 1) | found
    return found


def freeze(model: Segmenter, depths: Mapping[str, int], blocks: int) -> None:
    """Keep the first blocks of an encoder, and what comes before them, as they are.

    Args:
        model: whose encoder it is.
        depths: from `stages`.
        blocks: how many; `ALL` for the whole encoder; 0 keeps nothing.

    Raises:
        InputError: the encoder has fewer blocks, or none.
    """
    if blocks == 0:
        return
    if not depths:
        raise InputError("freeze needs a model with blocks in a row, which this one has not; leave freeze out")
    depth = _after(model, depths) - 1
    if not ALL <= blocks <= depth:
        raise InputError(f"freeze {blocks} is not possible, the model has {depth} blocks; give 0 to {depth}, or all")
    for name, weight in model.encoder.named_parameters():
        if blocks == ALL or depths.get(name, 0) <= blocks:
            weight.requires_grad_(False)


def add_lora(model: Segmenter, depths: Mapping[str, int], rank: int) -> None:
    """Put low-rank adapters beside the matrices of an encoder's blocks, and train those and the head alone.

    Args:
        model: whose encoder it is.
        depths: from `stages`.
        rank: of the adapters.

    Raises:
        InputError: peft is not installed, the rank is not possible, or the encoder has no matrices that can be adapted.

    Source: E. J. Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022.
    """
    try:
        peft = import_module("peft")
    except ImportError as error:
        raise InputError('lora needs the package peft; run: pip install "patchtree[lora]"') from error
    if rank < 1:
        raise InputError(f"lora {rank} is not possible; give a rank of 1 or more")
    encoder, blocks = model.encoder, range(1, _after(model, depths))
    matrices = [
        name
        for name, module in encoder.named_modules()
        if type(module) is nn.Linear and depths.get(f"{name}.weight") in blocks
    ]
    if not matrices:
        raise InputError("lora finds no matrices in the model's blocks that it can adapt; leave lora out")
    config = peft.LoraConfig(r=rank, lora_alpha=_LORA_SCALE * rank, target_modules=matrices)
    peft.inject_adapter_in_model(config, encoder)


def freeze_unused(model: Segmenter, tokens: Tokens) -> None:
    """Freeze what the logits do not depend on, such as a pooler: processes that train as one would wait for it."""
    with evaluating(model), torch.enable_grad():
        used = _used(model, [model(tokens)])
    for name, weight in model.named_parameters():
        if name not in used:
            weight.requires_grad_(False)


def weight_groups(
    model: Segmenter, depths: Mapping[str, int], weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Group the weights that are trained for an optimiser, the highest rate first.

    Matrices and kernels decay; norms, biases, class tokens and tables of positions do not. The rate of a weight is
    multiplied by ``lr_scale``: 1 in the head and after the blocks, `layer_decay` times that in the last block, and so
    on down.

    Args:
        model: the model.
        depths: from `stages`.
        weight_decay: of what decays.
        layer_decay: 1 for one rate.

    Source: K. Clark et al., ELECTRA, ICLR 2020, for the rates by depth.
    """
    top = _after(model, depths)
    grouped: dict[tuple[float, float], list[Tensor]] = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        own = name.removeprefix("encoder.").split(".lora_")[0]
        depth = depths.get(own, depths.get(f"{own}.weight", top)) if name.startswith("encoder.") else top
        decays = weight.ndim > 1 and len(weight) > 1 and not _PLACES.search(own)
        grouped.setdefault((layer_decay ** (top - depth), weight_decay if decays else 0.0), []).append(weight)
    return [
        {"params": weights, "weight_decay": decay, "lr_scale": scale}
        for (scale, decay), weights in sorted(grouped.items(), key=lambda item: item[0], reverse=True)
    ]


def kept_weights(model: Segmenter, instead: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give all weights and buffers under the names they have without adapters, those merged into their matrices.

    Args:
        model: the model.
        instead: values to take instead of the parameters' own, by name.
    """
    own = {id(weight): name for name, weight in model.named_parameters()}
    # A weight that has two names is the same object under both.
    values = {
        name: instead.get(own.get(id(value), name), value).detach()
        for name, value in model.state_dict(keep_vars=True).items()
    }
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            down, up = (values.pop(f"{name}.lora_{part}.default.weight") for part in "AB")
            values[f"{name}.base_layer.weight"] = values[f"{name}.base_layer.weight"] + module.scaling["default"] * (
                up @ down
            )
    return {name.replace(".base_layer.", "."): value.clone() for name, value in values.items()}


def _after(model: Segmenter, depths: Mapping[str, int]) -> int:
    """Give the depth of what follows the blocks."""
    return int(model.encoder.depth) + 1 if depths else 0  # type: ignore[arg-type]


class evaluating:
    """A module in evaluation mode for a while; the random numbers of dropout are left as they are."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.before = module, [part.training for part in module.modules()]

    def __enter__(self) -> None:
        self.module.eval()

    def __exit__(self, *_: object) -> None:
        for part, training in zip(self.module.modules(), self.before, strict=True):
            part.training = training


def _used(module: nn.Module, outputs: list[Tensor]) -> list[str]:
    """Name the weights that outputs have a gradient to."""
    outputs = [output for output in outputs if output.requires_grad]
    if not outputs:
        return []
    weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    total = torch.stack([output.float().sum() for output in outputs]).sum()
    found = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    return [name for name, gradient in zip(weights, found, strict=True) if gradient is not None]


def _tensors(beside: Any) -> Iterator[Tensor]:
    if isinstance(beside, Tensor):
        yield beside
    elif isinstance(beside, tuple):
        for part in beside:
            yield from _tensors(part)


def _detached(beside: Any) -> Any:
    if isinstance(beside, tuple):
        return tuple(_detached(part) for part in beside)
    return beside.detach() if isinstance(beside, Tensor) else beside
