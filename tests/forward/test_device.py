"""How exactly products are computed, on whatever processor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lazymoe.forward.device import coarsely, exactly, halved
from lazymoe.forward.inputs import run_network


@pytest.mark.parametrize(
    ("bfloat16", "tiles", "faster"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_a_network_is_halved_where_that_alone_is_faster(
    bfloat16: bool, tiles: bool, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    generator = torch.Generator().manual_seed(0)
    network, x = nn.Linear(64, 32), torch.randn(5, 64, generator=generator)
    weight = torch.randn(32, 64, generator=generator)

    def dtype_and_result() -> tuple[torch.dtype, torch.Tensor]:
        with halved(network), torch.no_grad():
            network.weight.copy_(weight)
            network.bias.zero_()
            return network.weight.dtype, run_network(network, x)

    dtype, exact = dtype_and_result()
    assert dtype == torch.float32 and torch.allclose(exact, x @ weight.T, atol=1e-4)
    with coarsely():
        dtype, coarse = dtype_and_result()
        with exactly():
            assert dtype_and_result()[0] == torch.float32
    assert dtype == (torch.bfloat16 if faster else torch.float32)
    assert coarse.dtype == network.weight.dtype == torch.float32
    assert 0 < float((coarse - exact).norm() / exact.norm()) < 0.01 or not faster


def test_a_torch_that_cannot_tell_halves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    network = nn.Linear(2, 2)
    with coarsely(), halved(network):
        assert network.weight.dtype == torch.float32
