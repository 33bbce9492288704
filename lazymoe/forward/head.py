"""What a model says comes next: the probabilities of tokens, from the states that its head reads."""

from __future__ import annotations

import torch
from torch import Tensor

from lazymoe.checkpoint.source import EMBEDDINGS, HEAD
from lazymoe.forward.stream import Weights

BIAS = "lm_head.bias"
AT_ONCE = 2048  # tokens that go through the head at a time, and tokens of the vocabulary


@torch.no_grad()
def predict(source: Weights, states: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Hold the tokens that come next against what a model says comes next.

    The vocabulary is gone through in blocks, so what is in memory of the logits doesn't depend on its size.

    Args:
        source: the model.
        states: what its head reads ``[n, H]``, float32.
        target: the tokens that come next ``[n]``, int64, on the states' device.

    Returns:
        The log-probability of each, in nats, float32 ``[n]``; and whether it is the likeliest token, bool ``[n]``.
    """
    head = source.load(HEAD if HEAD in source.tensors else EMBEDDINGS)  # [V, H]
    bias = source.load(BIAS) if BIAS in source.tensors else torch.zeros(len(head))  # [V]
    config, n = source.config, len(states)
    scale = config.get("logit_scale", 1.0) / config.get("logits_scaling", 1.0)  # Cohere's and Granite's
    cap = config.get("final_logit_softcapping")  # Gemma's
    totals = torch.empty(-(-len(head) // AT_ONCE), n, device=states.device)  # of each block [blocks, n]
    best = torch.full((n,), -torch.inf, device=states.device)  # [n]
    own, likeliest = torch.zeros(n, device=states.device), torch.zeros_like(target)  # [n]
    for block, start in enumerate(range(0, len(head), AT_ONCE)):
        weight, offset = (t[start : start + AT_ONCE].float().to(states.device) for t in (head, bias))  # [v, H], [v]
        for some in torch.arange(n, device=states.device).split(AT_ONCE):
            logits = scale * (states[some] @ weight.T + offset)  # [s, v]
            logits = cap * (logits / cap).tanh() if cap else logits
            # the sum of the block's probabilities, the largest logit so far, and the target's if it is in this block
            totals[block, some] = logits.logsumexp(-1)
            largest, where = logits.max(-1)
            larger = largest > best[some]
            best[some] = largest.where(larger, best[some])
            likeliest[some] = (where + start).where(larger, likeliest[some])
            inside = (target[some] >= start) & (target[some] < start + len(weight))
            at = (target[some] - start).clamp(0, len(weight) - 1)
            own[some] = logits.gather(1, at[:, None])[:, 0].where(inside, own[some])
    return own - totals.logsumexp(0), likeliest == target
