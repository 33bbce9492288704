"""`fit`: routers that tell the experts' prompts apart, as well as a linear map of what they will really read can.

Per layer, multinomial logistic regression from the router's true input (the norm after attention, every token) to the
expert whose prompt the token is from, with an L2 penalty and no bias. Its softmax is how likely each expert is; the
likelier one is given more weight than that, for mixing is no vote: an expert does best by itself. A token of a negative
prompt should reach any expert but its own. Layers are fitted in order, each on the states that the mixture itself
produces with the routers below it. A shared expert's gate is fitted in the same way, to tell its own prompts from the
experts', and left as likely as that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lazymoe.computing.groups import Group

PENALTY = 1e-2  # on the squared weights, for inputs of unit mean square
SHARPER = 2.0  # what logits are multiplied by at the end: 0.2 to 0.4 points more are recovered by 2 to 4 than by 1
TOLERANCE = 3e-5  # of the gradient: no probability is then off by more than a few thousandths
LEAST = 1e-6  # of a probability that a token doesn't go where it should not


@dataclass(frozen=True)
class Lesson:
    """What routers learn from the tokens of all batches, of which n count.

    Attributes:
        counts: which of them count, of each batch bool ``[B * T]``.
        label: the place of the expert that each belongs to, int64 ``[n]``.
        sign: whether it should reach that expert (1) or any other (-1), ``[n]``.
        weights: what it counts, float32 ``[n]``: experts equally, within an expert its sequences, within those tokens.
    """

    counts: list[Tensor]
    label: Tensor
    sign: Tensor
    weights: Tensor


def lesson(groups: Sequence[Group], device: str) -> Lesson:
    """Label the tokens of groups of prompts.

    Args:
        groups: the prompts, in the order in which they are read.
        device: where routers are fitted.
    """
    sequences = Counter[tuple[int, int]]()
    for group in groups:
        sequences[group.place, group.sign] += sum(len(real) for _, real in group.batches)
    counted, labels, signs, weights = [], [], [], []
    for group in groups:
        for _, real in group.batches:
            learned = real.clone()
            learned[:, 0] = False  # the first token of a text has no context: its states are alike in all texts
            tokens = learned.sum(1)  # [B]
            each = 1 / (sequences[group.place, group.sign] * tokens.clamp(min=1))
            counted.append(learned.flatten().to(device))
            weights.append(each.repeat_interleave(tokens))
            labels.append(torch.full((int(tokens.sum()),), group.place))
            signs.append(torch.full((int(tokens.sum()),), group.sign))
    return Lesson(counted, *(torch.cat(parts).to(device) for parts in (labels, signs, weights)))


def fit_router(given: Lesson, x: Sequence[Tensor], experts: int, gated: bool) -> tuple[Tensor, Tensor]:
    """Fit one layer's router, and its shared expert's gate.

    Args:
        given: what is to be learned.
        x: what the router reads, of each batch ``[B * T, H]``.
        experts: how many there are.
        gated: whether there is a shared expert that has a gate.

    Returns:
        The router ``[E, H]``, a row for each expert by its place, and the gate ``[1, H]``, or of no rows; float32.
    """
    seen = torch.cat([rows[counted] for rows, counted in zip(x, given.counts, strict=True)])  # [n, H]
    label, sign, weights, gate = given.label, given.sign, given.weights, seen[:0]
    if gated:
        routed = label < experts
        gate = _shared_gate(seen, routed, sign, weights)
        seen, label, sign, weights = (part[routed] for part in (seen, label, sign, weights))
    return SHARPER * fit(seen, label, sign, weights, experts), gate


def _shared_gate(x: Tensor, routed: Tensor, sign: Tensor, weights: Tensor) -> Tensor:
    """Fit the shared expert's gate ``[1, H]``: open for its prompts, closed for its negative ones and the experts'."""
    used = ~routed | (sign > 0)
    closed = routed | (sign < 0)
    share = weights.clone()
    for side in (closed, ~closed):  # the two sides count equally
        share[used & side] /= 2 * weights[used & side].sum()
    rows = fit(x[used], closed[used].long(), torch.ones_like(sign[used]), share[used], 2)
    return rows[:1] - rows[1:]


def fit(x: Tensor, label: Tensor, sign: Tensor, weights: Tensor, experts: int) -> Tensor:
    """Fit a multinomial logistic regression by L-BFGS (https://doi.org/10.1007/BF01589116).

    Where no sign is negative the problem is convex, so its solution is unique.

    Args:
        x: inputs ``[n, H]``, float32.
        label: an expert for each ``[n]``, int64.
        sign: whether it should reach that expert (1) or any other (-1), ``[n]``.
        weights: what each counts ``[n]``, float32, relative to the others.
        experts: how many there are.

    Returns:
        A row for each expert ``[experts, H]``, float32.
    """
    # as if inputs were of unit mean square, so that the penalty means the same in every layer
    weights = weights / weights.sum()
    scale = (torch.linalg.vector_norm(x, dim=1).square() @ weights / x.shape[1]).sqrt()
    w = torch.zeros(experts, x.shape[1], device=x.device)
    if scale == 0:  # there is nothing to tell the experts apart by
        return w
    optimizer = torch.optim.LBFGS(
        [w], max_iter=100, tolerance_grad=TOLERANCE, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )
    label, avoided, weights = label[:, None], (sign < 0)[:, None], weights[:, None]  # [n, 1]

    def loss() -> Tensor:
        log_p = (x @ (w / scale).T).log_softmax(-1)  # [n, E]
        p, own = log_p.exp(), log_p.gather(1, label)  # [n, 1]
        others = (1 - own.exp()).clamp(min=LEAST)  # what all but the labelled expert get together
        # cross entropy; where the expert is to be avoided, that of all the others together
        terms = -torch.where(avoided, others.log(), own)
        # its gradient by the logits: p less all for the expert, or less the shares that the others have among them
        wanted = torch.where(avoided, (p / others).scatter(1, label, 0.0), torch.zeros_like(p).scatter(1, label, 1.0))
        w.grad = ((p - wanted) * weights).T @ x / scale + PENALTY * w
        # in float32 two losses soon are the same, and it would end before the gradient is within the tolerance
        return (weights * terms).cpu().double().sum() + PENALTY / 2 * w.cpu().double().square().sum()

    optimizer.step(loss)
    rows: Tensor = w / scale
    return rows
