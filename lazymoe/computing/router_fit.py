"""`fit`: routers that tell the experts' prompts apart, as well as a linear map of what they will really read can.

Per layer, multinomial logistic regression from the router's true input (the norm after attention, every token) to the
expert whose prompt the token is from, with an L2 penalty and no bias, so that the softmax over the chosen experts is
calibrated by construction. A token of a negative prompt should reach any expert but its own. Layers are fitted in
order, each on the states that the mixture itself produces with the routers below it. A shared expert's gate is fitted
in the same way, to tell its own prompts from the experts'.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lazymoe.checkpoint.source import Source
from lazymoe.computing.order import canonical
from lazymoe.forward.mixture import fill, mix, module_name, route, shared
from lazymoe.forward.stream import Stream
from lazymoe.forward.tokens import batches, load_tokenizer, pack
from lazymoe.planning.plan import Plan
from lazymoe.progress import Progress
from lazymoe.recipe.schema import Recipe

PENALTY = 1e-2  # on the squared weights, for inputs of unit mean square


def fit_gates(recipe: Recipe, plan: Plan, backbone: Source, device: str, progress: Progress) -> Tensor:
    """Fit the routers and, where a shared expert has one, its gate.

    Args:
        recipe, plan: what is wanted; the sources must be on the disk.
        backbone: the checkpoint that gives attention, norms and embeddings.
        device: where to compute.
        progress: told of the layers done, stage ``route``.

    Returns:
        The rows of each layer ``[L, gates, H]``, float32; see `Plan.gates`.

    Raises:
        SourceError: if the base model's tokenizer can't be loaded, or a state becomes NaN or infinite.
    """
    # every prompt as tokens, labelled with its expert's place in the canonical order
    order = canonical(recipe, plan)
    gated = [plan.experts] if plan.gates > plan.experts else []  # the shared expert, by its number
    tokenizer = load_tokenizer(plan.sources[0])
    sequences, labels, signs = [], [], []
    for place, expert in enumerate([*order, *gated]):
        asked = recipe.every_expert[expert]
        for side, prompts in ((1, asked.positive), (-1, asked.negative)):
            packed = pack(tokenizer, prompts)
            sequences += packed
            labels += [place] * len(packed)
            signs += [side] * len(packed)

    # which tokens are learned from, and what each of them counts
    texts = batches(sequences)
    for _, real in texts:
        real[:, 0] = False  # the first token of a text has no context: its states are alike in all texts
    learned = torch.cat([real.flatten() for _, real in texts]).to(device)  # [N], n of them
    counts = [len(s) - 1 for s in sequences]
    label, sign, weights = (
        torch.as_tensor(values).repeat_interleave(torch.tensor(counts)).to(device)  # [n]
        for values in (labels, signs, _weights(counts, labels, signs))
    )
    routed = label < plan.experts

    # layer by layer: fit the router on what it will read, then run the mixture's own feed-forward network
    stream = Stream(backbone, [ids for ids, _ in texts], device)
    gates: list[Tensor] = []

    def load(expert: int, module: nn.Module) -> None:
        fill(plan, module, plan.sources[expert + 1], stream.next, recipe.every_expert[expert].residual_scale)

    def feed_forward(module: nn.Module, x: Tensor) -> Tensor:
        seen = x[learned]  # [N, H] to [n, H]
        rows = fit(seen[routed], label[routed], sign[routed], weights[routed], plan.experts)  # [E, H], canonical order
        own = _shared_gate(seen, routed, sign, weights) if gated else rows[:0]  # [1, H], or of no rows
        reordered = torch.empty_like(rows).index_copy_(0, torch.tensor(order, device=device), rows)
        gates.append(torch.cat([reordered, own]))
        del seen  # which is as large as x
        chosen, share = route(rows, x, plan.top_k, plan.host.scores)
        chosen = torch.tensor(order, device=device)[chosen]
        return mix(load, module, x, chosen, share, order).add_(shared(plan, load, module, x, own))

    for layer in range(plan.layers):
        stream.step(feed_forward=(module_name(plan), feed_forward))
        progress("route", layer + 1, plan.layers)
    return torch.stack(gates).cpu()


def _shared_gate(x: Tensor, routed: Tensor, sign: Tensor, weights: Tensor) -> Tensor:
    """Fit the shared expert's gate ``[1, H]``: open for its prompts, closed for its negative ones and the experts'."""
    used = ~routed | (sign > 0)
    closed = routed | (sign < 0)
    share = weights.clone()
    for side in (closed, ~closed):  # the two sides count equally
        share[used & side] /= 2 * weights[used & side].sum()
    rows = fit(x[used], closed[used].long(), torch.ones_like(sign[used]), share[used], 2)
    return rows[:1] - rows[1:]


def _weights(counts: Sequence[int], labels: Sequence[int], signs: Sequence[int]) -> Tensor:
    """Weigh a learned token of each sequence ``[sequences]``: experts count equally, within an expert its sequences,
    within those tokens."""
    groups = Counter(zip(labels, signs, strict=True))
    per_sequence = torch.tensor([1 / groups[group] for group in zip(labels, signs, strict=True)])
    return per_sequence / torch.tensor(counts).clamp(min=1)


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
    # inputs of unit mean square, so that the penalty means the same in every layer
    weights = weights / weights.sum()
    scale = (x.square().mean(1) * weights).sum().sqrt()
    x = x / scale
    w = torch.zeros(experts, x.shape[1], device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [w], max_iter=100, tolerance_grad=1e-6, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )
    wanted, avoided = sign > 0, sign < 0

    def loss() -> Tensor:
        with torch.enable_grad():
            optimizer.zero_grad()
            log_p = (x @ w.T).log_softmax(-1).gather(1, label[:, None])[:, 0]  # of the labelled expert
            terms = torch.zeros_like(log_p)
            terms[wanted] = -log_p[wanted]  # cross entropy; of an expert to avoid, that of all the others together
            terms[avoided] = -torch.log1p(-log_p[avoided].exp().clamp(max=1 - 1e-6))
            total = (weights * terms).sum() + PENALTY / 2 * w.square().sum()
            total.backward()
        return total

    optimizer.step(loss)
    return w.detach() / scale
