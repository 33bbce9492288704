"""What a model says comes next: the probabilities of tokens, from the states that its head reads."""

from __future__ import annotations

import torch
from torch import Tensor

from lazymoe.forward.stream import Stream

AT_ONCE = 256  # tokens whose logits are in memory at a time


@torch.no_grad()
def predict(stream: Stream, states: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Hold the tokens that come next against what a model says comes next.

    Args:
        stream: the pass through the model, finished.
        states: what its head reads ``[n, H]``, float32.
        target: the tokens that come next ``[n]``, int64, on the states' device.

    Returns:
        The log-probability of each, in nats, float32 ``[n]``; and the likeliest token, int64 ``[n]``.
    """
    said, likeliest = torch.empty(len(states), device=states.device), torch.empty_like(target)
    parts = (part.split(AT_ONCE) for part in (states, target, said, likeliest))
    for x, wanted, known, best in zip(*parts, strict=True):
        logits = stream.logits(x)  # [AT_ONCE, V]
        best.copy_(logits.argmax(-1))
        known.copy_(logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(-1))
    return said, likeliest
