"""The reference model's block is timm's, to the names and first values of its weights, and comes without timm."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from patchtree.models import transformer
from patchtree.models.transformer import Block, attend


@pytest.mark.parametrize("masked", [False, True])
def test_it_is_the_block_of_timm(masked: bool) -> None:
    from timm.models.vision_transformer import Block as Theirs

    made = []
    for make in (lambda: Block(64, 4, scale=0.5), lambda: Theirs(64, 4, qkv_bias=True, init_values=0.5)):
        torch.manual_seed(3)
        made.append(make())
    ours, theirs = made
    states = [block.state_dict() for block in made]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    x = torch.randn(2, 7, 64)
    mask = (torch.arange(7) < torch.tensor([[7], [4]]))[:, None, None, :] if masked else None
    assert torch.equal(ours(x, mask), theirs(x, attn_mask=mask))


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_half_precision_is_attention(short: bool, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer, "_SHORT", 9 if short else 8)
    torch.manual_seed(0)
    exact = torch.randn(3, 2, 4, 9, 16, requires_grad=True)
    mask = (torch.arange(9) < torch.tensor([[9], [4]]))[:, None, None, :] if masked else None
    wanted = torch.randn(2, 4, 9, 16)
    slow = torch.nn.functional.scaled_dot_product_attention(*exact, attn_mask=mask)
    half = attend(*exact.bfloat16(), mask)
    torch.testing.assert_close(half.float(), slow, atol=0.03, rtol=0.03)
    gradients = (torch.autograd.grad(out.float(), exact, wanted)[0] for out in (half, slow))
    torch.testing.assert_close(*gradients, atol=0.05, rtol=0.05)


def test_prediction_with_the_reference_model_does_not_import_timm() -> None:
    program = """
import sys
import patchtree.inference
from patchtree import build_model
build_model("patchtree:nano", 2)
print([name for name in ("timm", "torchvision") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
