"""Who is chosen, and with which weights."""

from __future__ import annotations

import pytest
import torch

from lazymoe.forward.routing import route


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_best_are_chosen_and_their_weights_sum_up_to_one(top_k: int, scores: str) -> None:
    generator = torch.Generator().manual_seed(0)
    gates, x = (torch.randn(n, 8, generator=generator) for n in (3, 50))
    chosen, weights = route(gates, x, top_k, scores)
    logits = x @ gates.T
    assert torch.equal(chosen, logits.argsort(-1, descending=True)[:, :top_k])
    assert torch.allclose(weights.sum(-1), torch.ones(50))
    best = logits.gather(1, chosen)
    whole = best.sigmoid() if scores == "sigmoid" else best.exp()
    assert torch.allclose(weights, whole / whole.sum(-1, keepdim=True))
