"""The plan of a recipe: which tensors the output has, in which order, and where each part of them comes from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from lazymoe.architectures.records import Dense, Host, MoE, Place, shape
from lazymoe.checkpoint.source import Source
from lazymoe.checkpoint.tensors import CODES, FLOATS
from lazymoe.planning.plan import SHARD_SIZE, Computed, Constant, Output, Part, Piece, Plan
from lazymoe.recipe.schema import Recipe, SharedWeights


def make_plan(
    recipe: Recipe,
    sources: Sequence[Source],
    dense: Dense,
    host: Host,
    shared: SharedWeights = "base",
    shard_size: int = SHARD_SIZE,
) -> Plan:
    """Lay out the output of a recipe.

    Args:
        recipe: what is wanted.
        sources: the base model, then one for each expert and shared expert, as the recipe lists them. They must fit
            each other.
        dense, host: the records from `registry.find_host`.
        shared: where shared weights come from: `base`, `average` or `regmean`.
        shard_size: the most bytes of tensors in one file.
    """
    base, experts = sources[0], recipe.every_expert
    routed, together = len(recipe.experts), len(recipe.shared_experts or [])
    config = base.config | {"experts": routed}
    dtype = CODES[recipe.dtype] if recipe.dtype else base.dtype
    top_k = min(recipe.experts_per_token, routed)
    roles = dense.roles(config)

    # attention, norms, embeddings, head: one output for each, the base model's or merged before the writing
    def backbone(name: str, prefix: str, place: Place, scale: float = 1.0) -> Iterator[Output]:
        tensor = base.tensors.get(prefix + place.name)  # a tied lm_head has no tensor of its own
        if tensor:
            n = math.prod(place.shape)
            whole: Part = Piece(0, tensor, place.start, n, scale=scale)
            if shared != "base":
                whole = Computed(tensor.name, place.start, n, scale)
            yield Output(prefix + name, dtype, place.shape, (whole,))

    # one role (gate, up, down ...) of an expert's feed-forward network, by the expert's number
    def taken(number: int, prefix: str, role: str) -> Part:
        expert, place = experts[number], roles[role]
        if role == "down" and number < routed and recipe.expert_weights == "corrected" and expert.positive:
            return Computed(prefix + place.name, place.start, math.prod(place.shape), source=number + 1)
        tensor = sources[number + 1].tensors[prefix + place.name]
        scale = expert.residual_scale if role.startswith("down") and expert.residual_scale is not None else 1.0
        return Piece(number + 1, tensor, place.start, math.prod(place.shape), expert.noise_scale or 0.0, scale)

    # the shape of roles that lie one below the other in one tensor
    def stacked(words: str) -> tuple[int, ...]:
        shapes = [roles[role].shape for role in words.split()]
        return shapes[0] if len(shapes) == 1 else (sum(rows for rows, *_ in shapes), *shapes[0][1:])

    # what a layer has instead of its dense feed-forward network
    def feed_forward(prefix: str, places: dict[str, Place]) -> Iterator[Output]:
        def computed(name: str, rows: int) -> Output:
            size = (rows, config["hidden_size"])
            return Output(prefix + name, dtype, size, (Computed(prefix + name, 0, math.prod(size)),))

        # what the host wants and the dense model doesn't have
        for name, (words, value) in host.constants(config).items():
            if not (together and name in (*host.shared, host.shared_gate)):
                size = shape(words, config)
                yield Output(prefix + name, dtype, size, (Constant(value, math.prod(size)),))
        for name, (own, factor) in host.copies.items():
            yield from backbone(name, prefix, places[own], factor(config))
        yield computed(host.router, routed)

        # experts with tensors of their own, expert by expert; then tensors that hold all of them
        for expert in range(routed):
            for name, words in host.experts.items():
                if "{expert}" in name:
                    parts = tuple(taken(expert, prefix, role) for role in words.split())
                    yield Output(prefix + name.format(expert=expert), dtype, stacked(words), parts)
        for name, words in host.experts.items():
            if "{expert}" not in name:
                parts = tuple(taken(expert, prefix, role) for expert in range(routed) for role in words.split())
                yield Output(prefix + name, dtype, (routed, *stacked(words)), parts)

        for number in range(together):
            for name, words in host.shared.items():
                parts = tuple(taken(routed + number, prefix, role) for role in words.split())
                yield Output(prefix + name.format(shared=number), dtype, stacked(words), parts)
        if together and host.shared_gate:
            yield computed(host.shared_gate, 1)

    # in the order of a forward pass: embeddings, layer after layer, final norm and head; embeddings that are the head
    # too are merged as that, at the end
    first, *last = (Place(name, 0, size) for name, size in dense.outer_shapes(config).items())
    if shared == "regmean" and dense.head not in base.tensors:
        outputs, last = [], [*last, first]
    else:
        outputs = list(backbone(first.name, "", first))
    for layer in range(config["num_hidden_layers"]):
        prefix = dense.within(layer)
        places = dense.backbone(layer, config)
        for name, place in places.items():
            outputs += backbone(name, prefix, place)
        outputs += feed_forward(prefix, places)
    for place in last:
        outputs += backbone(place.name, "", place)

    written = host.config(MoE(config, routed, top_k, together))
    written |= {"dtype": FLOATS[dtype], "torch_dtype": FLOATS[dtype]}
    return Plan(host, dense, tuple(sources), routed, top_k, written, tuple(outputs), shared, shard_size)
