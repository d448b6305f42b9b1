"""Half precision where the machine has instructions for it, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from patchtree.models.precision import half_is_quick, half_where_quick


@pytest.mark.parametrize("quick", [False, True])
def test_it_is_the_machine_that_decides(monkeypatch: pytest.MonkeyPatch, quick: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: quick, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    layer = torch.nn.Linear(4, 4)
    assert half_is_quick("cpu") == quick
    for before in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=before), half_where_quick(torch.device("cpu")):
            assert layer(torch.zeros(1, 4)).dtype == (torch.bfloat16 if quick else torch.float32)


def test_a_machine_that_torch_cannot_ask_computes_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    for ask in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, ask, raising=False)
    assert not half_is_quick("cpu")
