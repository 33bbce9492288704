"""How many tokens are read, and how many at a time: the limits that computing keeps to, and the memory they come to.

What tokens take is counted before there is a tokenizer: a text has at most as many as bytes. The figures are upper
bounds of what `lazymoe.computing` holds at a time, in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lazymoe.checkpoint.source import Source
from lazymoe.planning.plan import Plan
from lazymoe.recipe.schema import PROMPTED, STREAMED, Recipe

LENGTH = 256  # tokens of a packed sequence, at most
ENOUGH = 1024  # tokens for each group of prompts, by repeating them in other orders and as copies
PASSES = 8  # but no more often than this
LIMIT = 8192  # tokens of a group of prompts, at most; of more than that, pieces from all over it are taken
BATCH = 1024  # tokens that go through a layer at a time, with padding; more only where one text is longer
ROUND = 16384  # tokens whose states are kept between layers where prompts are read one by one; as BATCH
ROWS = 1024  # of an embedding matrix that are merged at a time
PART = 100  # of a model may be read twice: one in so many bytes
FEW = 400_000_000  # bytes of embeddings that are kept from a sweep's beginning to its end; of more, rows are read again

RUNTIME = 260_000_000  # bytes: Python with torch, and the buffers of a merge
RANGES = 300_000_000  # bytes: ranges of files on their way, and what isn't looked at yet of those that have arrived
QUANTIZING = 150_000_000  # bytes: blocks of weights on their way into GGUF files, and the gguf package
HARNESS = 1_500_000_000  # bytes: lm-eval with its questions, and their states
MODELS = 150_000_000  # bytes: transformers with its models and a tokenizer
TEXT = 32  # bytes for each of a prompt's: the text, copies of it that tell merges apart, its tokens
SPARE = 1.25  # what the allocator holds, for what it has been asked for


def merge_memory(recipe: Recipe, plan: Plan) -> int:
    """Estimate the most bytes of memory that a merge takes.

    Args:
        recipe: what is wanted, with the texts of its prompts.
        plan: what it comes to.
    """
    texts = [text for expert in recipe.every_expert for text in (*expert.positive, *expert.negative)]
    steps = [0]  # one after the other
    if recipe.gate_mode in PROMPTED and recipe.gate_mode != "fit":
        steps.append(_reading(recipe.gate_mode in STREAMED, texts, plan))
    if sweeps(recipe, plan):
        steps.append(_sweeping(recipe, plan))
    models = MODELS if recipe.gate_mode in PROMPTED or plan.shared == "regmean" or reads_prompts(recipe, plan) else 0
    return RUNTIME + models + TEXT * sum(map(_tokens, texts)) + int(SPARE * max(steps))


def evaluation_memory(plan: Plan) -> int:
    """Estimate the most bytes of memory that an evaluation takes, with little of it for states.

    Args:
        plan: of the mixture.
    """
    vocabulary = 4 * int(plan.sources[0].config["vocab_size"]) * plan.hidden_size
    return RUNTIME + MODELS + HARNESS + int(SPARE * (_layer(plan) + vocabulary))


def _tokens(text: str) -> int:
    """Count a text's tokens, at most: its bytes, and one that begins it or ends its line."""
    return len(text.encode(errors="replace")) + 1


def _packed(texts: Sequence[str]) -> int:
    """Count the tokens, at most, of a group of prompts that are joined into sequences."""
    given = sum(map(_tokens, texts))
    return min(LIMIT, ENOUGH + LENGTH // 2 + given) if given else 0


def kept_states(recipe: Recipe, plan: Plan) -> int:
    """Count the bytes of disk, at most, of the states that a sweep goes on from: those of a layer, and the last ones.

    Args:
        recipe, plan: as in `merge_memory`.
    """
    return 2 * 4 * (_swept(recipe, plan) + sum(_corrected(recipe, plan))) * plan.hidden_size


def reads_states(recipe: Recipe, plan: Plan) -> bool:
    """Tell whether shared weights are merged by what the mixture reads: where every expert has prompts for that.

    Args:
        recipe, plan: as in `merge_memory`.
    """
    return plan.shared == "regmean" and all(expert.positive for expert in recipe.experts)


def reads_prompts(recipe: Recipe, plan: Plan) -> bool:
    """Tell whether prompts go through the mixture while it is made: to fit routers, to merge by, to correct experts, or
    to know how much columns count.

    Args:
        recipe, plan: as in `merge_memory`.
    """
    return recipe.gate_mode == "fit" or bool(plan.corrected) or plan.weighted or reads_states(recipe, plan)


def sweeps(recipe: Recipe, plan: Plan) -> bool:
    """Tell whether the mixture is made layer by layer, as something is worked out of each.

    Args:
        recipe, plan: as in `merge_memory`.
    """
    return reads_prompts(recipe, plan) or plan.shared != "base"


def tells_routing(recipe: Recipe, plan: Plan) -> bool:
    """Tell whether prompts of every expert go through the mixture while it is made.

    Args:
        recipe, plan: as in `merge_memory`.
    """
    return reads_prompts(recipe, plan) and all(expert.positive for expert in recipe.experts)


def _swept(recipe: Recipe, plan: Plan) -> int:
    """Count the tokens, at most, that go through the mixture."""
    if recipe.gate_mode == "fit":
        asked = recipe.every_expert[: plan.gates]
        return sum(_packed(side) for expert in asked for side in (expert.positive, expert.negative))
    if reads_states(recipe, plan) or plan.weighted:
        return sum(_packed(expert.positive) for expert in recipe.experts)
    return sum(_corrected(recipe, plan))


def _corrected(recipe: Recipe, plan: Plan) -> list[int]:
    """Count the tokens, at most, that go through the own model of each expert that is corrected."""
    return [_packed(recipe.experts[expert].positive) for expert in plan.corrected]


def _sweeping(recipe: Recipe, plan: Plan) -> int:
    """Count what a sweep takes: its states, and a layer of the mixture while it is merged, fitted or run."""
    tokens, width = _swept(recipe, plan), 4 * plan.hidden_size
    states = width * (tokens + sum(_corrected(recipe, plan)))
    running = _running(plan, min(tokens, BATCH), LENGTH) + _rounded(plan, min(tokens, BATCH)) if tokens else 0
    # beside the states what attention makes, what the network reads and what comes of it; to fit on, a part of it
    together = 3 * width * tokens + running + _correcting(recipe, plan)
    together += 2 * 4 * plan.weighted * min(tokens, BATCH) * _inner(plan)  # what is looked at of it
    inside = states + max(4 * tokens * _wide(plan) + running, together)
    kept = _in_memory(kept_models(plan), plan.dense.embeddings) if tokens else 0
    begun, kept = kept + 2 * states, kept if late_embeddings(plan) else 0
    if plan.shared == "base":
        return max(begun, kept + _layer(plan) + inside) + _masks(plan, tokens, LENGTH)

    # what is merged of a layer; in maps that read the same: the base's, what two experts changed, what comes of them
    sizes = [4 * math.prod(size) for size in plan.dense.layer_shapes(0, plan.sources[0].config).values()]
    if plan.shared == "average":
        merging, head = 5 * max(*sizes, ROWS * width), 6 * ROWS * width
    else:
        merging = 5 * sum(sizes) + 2 * max(sizes) + 6 * 4 * _wide(plan) ** 2
        known = head_rows(int(plan.sources[0].config["vocab_size"]), plan.hidden_size) + ROWS  # of every model
        head = (plan.experts + 9) * width * plan.hidden_size + (12 * ROWS + (1 + plan.experts) * known) * width
    merging += states + 4 * tokens * _wide(plan)
    layer = sum(sizes) + (_layer(plan) if tokens else 0) + max(merging, inside)
    return max(begun, kept + max(layer, states + head)) + _masks(plan, tokens, LENGTH)


def head_rows(length: int, width: int) -> int:
    """Count the rows of a head that tell how to merge it: twice as many as they are wide tell as much as all
    (benchmarks/router.py).

    Args:
        length: how many it has.
        width: of each.
    """
    return min(length, 2 * width)


def late_embeddings(plan: Plan) -> bool:
    """Tell whether a sweep writes the embeddings when it ends, not when it begins: tied ones, where what the head reads
    says how to merge them, or how much their columns count.

    Args:
        plan: what is wanted.
    """
    return plan.dense.head not in plan.sources[0].tensors and (plan.shared == "regmean" or plan.weighted)


def kept_models(plan: Plan) -> Sequence[Source]:
    """List the models whose embeddings are kept in memory from when rows of them are first read until they are written:
    the base model, among whose tokens others are looked for; all that are merged, if that comes last. None if these
    take more than it is worth.

    Args:
        plan: what is wanted.
    """
    if not late_embeddings(plan):
        return plan.sources[:1]
    size = _in_memory(plan.shared_sources, plan.dense.embeddings)
    return plan.shared_sources if size <= FEW else ()


def rows_twice(plan: Plan, expert: Source) -> int:
    """Count the rows of an expert's embeddings that may be read before all of them are: any number where they stay in
    memory, else what comes to a small part of the model, for they are read again.

    Args:
        plan: what is wanted.
        expert: the model.
    """
    tables = [source.tensor(plan.dense.embeddings) for source in plan.shared_sources]
    table = expert.tensor(plan.dense.embeddings)
    if late_embeddings(plan) and sum(table.nbytes for table in tables) <= FEW:
        return table.shape[0]
    return sum(tensor.nbytes for tensor in expert.tensors.values()) // PART * table.shape[0] // table.nbytes


def _in_memory(sources: Sequence[Source], name: str) -> int:
    """Count what a tensor of several models takes: in their own dtypes, where it lies as it is."""
    found = [source.tensor(name) for source in sources if source.has(name)]
    return sum(tensor.nbytes if tensor.span() else 4 * tensor.elements for tensor in found)


def _correcting(recipe: Recipe, plan: Plan) -> int:
    """Count what it takes to correct an expert: its own layer and states, what the projection reads and what is
    missing, their products, and what comes of them."""
    if not plan.corrected:
        return 0
    tokens, inner, width = max(_corrected(recipe, plan)), _inner(plan), plan.hidden_size
    held = 4 * plan.weighted * len(plan.corrected) * width * inner  # until the layer has run
    products = 2 * min(tokens, inner) ** 2 + 3 * width * inner
    return held + plan.dense_layer_bytes + 4 * (tokens * (inner + 6 * width) + products)


def _inner(plan: Plan) -> int:
    """Give the width inside a feed-forward network."""
    down = plan.dense.roles(plan.sources[0].config).get("down")
    return math.prod(down.shape) // plan.hidden_size if down else 0


def _reading(streamed: bool, texts: Sequence[str], plan: Plan) -> int:
    lengths = [_tokens(text) for text in texts] or [1]
    total, longest, width = sum(lengths), max(lengths), 4 * plan.hidden_size
    embeddings = 2 * width * min(total, int(plan.sources[0].config["vocab_size"]))
    if not streamed:
        return embeddings + width * longest
    kept, batch = min(total, max(ROUND, longest)), min(total, max(BATCH, longest))
    vectors = 2 * plan.layers * plan.gates * width
    running = max(embeddings, _layer(plan) + _running(plan, batch, longest))
    return vectors + width * kept + running + _masks(plan, kept, longest)


def _layer(plan: Plan) -> int:
    """Count the bytes of a layer, and of a tensor of it on its way there."""
    sizes = plan.dense.ffn_shapes(plan.sources[0].config).values()
    return plan.dense_layer_bytes + 4 * max(math.prod(size) for size in sizes)


def _running(plan: Plan, tokens: int, longest: int) -> int:
    """Count what tokens take inside a layer: in attention or in the feed-forward network, whichever is more."""
    inner = max(size[0] for size in plan.dense.ffn_shapes(plan.sources[0].config).values())
    attention = 10 * _wide(plan) + _windowed(plan) * longest
    return 4 * tokens * max(attention, 4 * (plan.hidden_size + inner))


def _rounded(plan: Plan, tokens: int) -> int:
    """Count what copies of a product's factors in 16 bit take, where a processor wants these."""
    sizes = plan.dense.ffn_shapes(plan.sources[0].config).values()
    return 2 * (max(math.prod(size) for size in sizes) + tokens * max(size[0] for size in sizes))


def _masks(plan: Plan, tokens: int, longest: int) -> int:
    return _windowed(plan) * tokens * longest


def _windowed(plan: Plan) -> bool:
    """Whether some layer needs a mask, as attention doesn't reach back to a text's beginning there."""
    return any(window is not None for window in plan.sources[0].config["windows"])


def _wide(plan: Plan) -> int:
    """Give the hidden size, or the width of attention inside if that is larger."""
    config = plan.sources[0].config
    return max(plan.hidden_size, int(config["num_attention_heads"] * config["head_dim"]))
