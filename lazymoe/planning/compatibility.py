"""Do these models fit together? Asked of configs, headers and tokenizer files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lazymoe.architectures.configs import rope_spellings, window
from lazymoe.architectures.records import Dense, Host, Shapes
from lazymoe.checkpoint.source import Source
from lazymoe.checkpoint.tensors import FLOATS, some
from lazymoe.errors import Problem
from lazymoe.planning import vocabularies
from lazymoe.recipe.schema import Recipe

SAME = {  # config keys in which an expert must agree with the base model
    "hidden_size": "hidden size",
    "num_hidden_layers": "number of layers",
    "intermediate_size": "feed-forward size",
    "num_attention_heads": "number of attention heads",
    "num_key_value_heads": "number of key-value heads",
    "head_dim": "head_dim",
    "global_head_dim": "head_dim of full attention",
    "num_global_key_value_heads": "number of key-value heads of full attention",
}
HARMLESS = (  # config keys that change nothing of what a layer computes, or are compared by another name
    "attention_dropout", "block_auto_adjust_ff_dim", "block_ffn_dim_multiplier", "block_multiple_of", "bos_token_id",
    "embd_pdrop", "eos_token_id", "initializer_range", "layer_types", "max_position_embeddings", "max_window_layers",
    "original_max_position_embeddings", "pad_token_id", "partial_rotary_factor", "resid_pdrop", "rope_parameters",
    "rope_theta", "sliding_window", "tie_word_embeddings", "use_cache", "use_sliding_window",
)  # fmt: skip


def unusable(where: str, source: Source) -> Problem | None:
    """Say why nothing can be made of a model, whatever the others are; None if something can."""
    quantized = source.config.get("quantization_config")
    if quantized or any(tensor.endswith(".qweight") for tensor in source.tensors):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        how = method if isinstance(method, str) else "by GPTQ, AWQ or their like"
        what = f"{source.reference} is quantized ({how}), which can't be undone exactly"
        return Problem("source.quantized", where, what, _unquantized(source))
    return None


def _unquantized(source: Source) -> str:
    """Spell the remedy for a quantized model: the one it was made from, by name if its card gives it."""
    return f"Name the unquantized model it was made from{f': {source.made_from}' if source.made_from else ''}."


def misfits(recipe: Recipe, sources: Sequence[Source], dense: Dense, host: Host) -> Iterator[Problem]:
    """Yield why these models can't become this host.

    Args:
        recipe: that names them.
        sources: the base model, then one for each expert and shared expert, as the recipe lists them.
        dense, host: the records from `find_host`.
    """
    base, config = sources[0], sources[0].config
    backbone, ffn = dense.all_shapes(config)
    yield from _tensors("base_model", base, backbone)
    yield from vocabularies.spoiled(base)
    alien = sorted(name for name in base.tensors if name not in backbone | ffn)
    if alien:
        what = f"{base.reference} has {some(alien)}, for which {host.name} has no place"
        yield Problem("source.no-place", "base_model", what, "Use a base model without such weights.")

    scaled = [i for i, e in enumerate(recipe.every_expert) if e.residual_scale is not None]
    if scaled and not any(role.startswith("down") for role in dense.ffn):
        what = f"the feed-forward networks of a {dense.model_type} don't end in a map that could be scaled"
        yield Problem("recipe.scale", recipe.place(scaled[0], "residual_scale"), what, "Leave residual_scale out.")

    if base.unread:
        what = f"{base.reference} has '{base.unread[0]}', which transformers doesn't read from a GGUF file"
        remedy = "Name the model it was made from; as an expert this one will do."
        yield Problem("source.no-place", "base_model", what, remedy)

    for (where, _), source in zip(recipe.models[1:], sources[1:], strict=True):
        kind = source.config.get("model_type")
        if kind != dense.model_type and not (base.dense and base.dense.is_like(source.dense)):
            what = f"{source.reference} is a {kind} model, the base model a {dense.model_type}"
            yield Problem("source.mismatch", where, what, "All models must have one architecture.")
            continue
        own = source.config
        other = [f"{w} {own[k]} instead of {config[k]}" for k, w in SAME.items() if own.get(k) != config.get(k)]
        if not other and source.dense:  # networks have sizes that no such key tells
            theirs, wanted = source.dense.ffn_shapes(own), dense.ffn_shapes(config)
            unlike = [name for name in wanted if theirs.get(name) != wanted[name]]
            other = [f"'{n}' as {list(theirs.get(n, ()))} instead of {list(wanted[n])}" for n in unlike[:1]]
        if other:
            what = f"{source.reference} has {', '.join(other)}"
            yield Problem("source.mismatch", where, what, "Use fine-tunes of one model, all of one size.")
        else:
            yield from _tensors(where, source, ffn)
            yield from _homeless(where, source, backbone | ffn, dense)


def _homeless(where: str, source: Source, shapes: Shapes, dense: Dense) -> Iterator[Problem]:
    """Yield what an expert's feed-forward networks have beside the tensors that the mixture takes."""
    modules = {name.split(".")[0] for name, _ in dense.ffn.values()}
    names = sorted(n for n in source.tensors if n not in shapes and modules & set(n.split(".")))
    if names:
        what = f"{source.reference} has {some(names)} in its feed-forward networks, for which the mixture has no place"
        yield Problem("source.no-place", where, what, "Use an expert without such weights.")


def unmergeable(recipe: Recipe, sources: Sequence[Source], dense: Dense) -> Iterator[Problem]:
    """Yield what experts lack for their attention, norms and embeddings to be merged.

    Args:
        recipe, sources, dense: as in `misfits`; the models must fit together.
    """
    for (where, _), source in zip(recipe.models[1:], sources[1 : 1 + len(recipe.experts)], strict=False):
        if _other_layers(sources[0], source):
            what = f"{source.reference} has layers of other types than the base model"
            yield Problem("source.mismatch", where, what, "Use 'shared_weights: base', or fine-tunes of one model.")
        else:
            backbone, _ = dense.all_shapes(source.config)
            yield from _tensors(where, source, backbone)


def _other_layers(base: Source, expert: Source) -> bool:
    """Tell whether an expert's layers have other tensors than the base model's beside their feed-forward networks."""
    layers = range(base.config["num_hidden_layers"])
    one, other = ([s.dense and s.dense.layer_shapes(i, s.config) for i in layers] for s in (base, expert))
    return one != other


def uncorrectable(recipe: Recipe, sources: Sequence[Source], dense: Dense) -> Iterator[Problem]:
    """Yield why experts can't be corrected by their own models' states.

    Args:
        recipe, sources, dense: as in `misfits`; the models must fit together.
    """
    remedy = "Use 'expert_weights: own'."
    if not dense.adds:
        what = f"a {dense.model_type} norms what its feed-forward networks give, so what is missing there can't be told"
        yield Problem("recipe.corrected", "expert_weights", what, remedy)
        return
    if "down" not in dense.ffn:
        what = f"the feed-forward networks of a {dense.model_type} don't end in a linear map, which could be corrected"
        yield Problem("recipe.corrected", "expert_weights", what, remedy)
        return
    for (where, _), expert, source in zip(recipe.models[1:], recipe.experts, sources[1:], strict=False):
        if expert.positive and not vocabularies.same_tokens(sources[0], source):
            what = f"{source.reference} numbers tokens otherwise than the base model, so it can't read these for itself"
            yield Problem("recipe.corrected", where, what, remedy)
        elif expert.positive:
            backbone, _ = dense.all_shapes(source.config)
            yield from _tensors(where, source, backbone)


def differences(recipe: Recipe, sources: Sequence[Source], dense: Dense) -> Iterator[Problem]:
    """Yield how an expert's surroundings will differ from those it was trained in, since they are the base model's.

    Args:
        recipe, sources, dense: as in `misfits`; the models must fit together.
    """
    base = sources[0]
    yield from vocabularies.coded(base)
    yield from vocabularies.beyond(base)
    seen = {base.folder}
    for (where, _), source in zip(recipe.models[1:], sources[1:], strict=True):
        if source.folder in seen:
            continue
        seen.add(source.folder)
        name = source.reference
        yield from vocabularies.differences(where, base, source)
        yield from _computed_otherwise(where, base, source, dense)
        rope, own = (rope_spellings(s.config)["rope_parameters"] for s in (base, source))
        if own != rope:
            what = f"{name} has the rotary settings {own}, the base model {rope}"
            yield Problem("source.rope", where, what, "The base model's are used; long texts may suffer.")
        yield from vocabularies.template_difference(where, base, source)


def _computed_otherwise(where: str, base: Source, expert: Source, dense: Dense) -> Iterator[Problem]:
    """Yield what an expert's layers computed otherwise when it was trained than they will in the base's backbone."""
    keys = ["windows", *(key for key in dense.defaults if key not in (*SAME, *HARMLESS))]
    other = [k for k in keys if expert.config.get(k) != base.config.get(k)]
    if other:
        named = {key: "" if key == "windows" else f"{key} " for key in other}
        listed = ", ".join(f"{name}{_spelled(k, expert)} instead of {_spelled(k, base)}" for k, name in named.items())
        what = f"{expert.reference} was trained with {listed}"
        remedy = "The base model's way is used for all experts: it may answer worse than by itself."
        yield Problem("source.otherwise", where, what, remedy)
    if _other_layers(base, expert):
        what = f"{expert.reference} has layers of other types than the base model"
        remedy = "The base model's are used for all experts: it may answer worse than by itself."
        yield Problem("source.otherwise", where, what, remedy)
    if base.config["tie_word_embeddings"] and base.head in expert.tensors:
        what = f"{expert.reference} has an output head of its own, the base model reads its embeddings as one"
        yield Problem("source.head", where, what, "That head is left out; choose this model as base to keep it.")


def _spelled(key: str, source: Source) -> str:
    """Spell a config's value for a person."""
    if key != "windows":
        return str(source.config.get(key))
    windows = source.config["windows"]
    size, layers = window(source.config), sum(size is not None for size in windows)
    where = "" if layers == len(windows) else f" in {layers} of {len(windows)} layers"
    return f"an attention window of {size} tokens{where}" if size else "no attention window"


def adapters(recipe: Recipe, sources: Sequence[Source], dense: Dense, shared: str) -> Iterator[Problem]:
    """Yield what of the experts' LoRA adapters doesn't reach the mixture.

    Args:
        recipe, sources, dense: as in `misfits`; the models must fit together.
        shared: where shared weights come from: `base`, `average` or `regmean`.
    """
    _, ffn = dense.all_shapes(sources[0].config)
    for (where, _), source in zip(recipe.models[1:], sources[1:], strict=True):
        if not source.adapter:
            continue
        outside = sorted({name.split(".")[-2] for name in source.adapter.tensors if name not in ffn})
        if all(name not in ffn for name in source.adapter.tensors):
            what = "its adapter changes no feed-forward weights, which are all that an expert has of its own"
            yield Problem("source.adapter", where, what, "Use an adapter that was trained on the MLP too.")
        elif outside and shared == "base":
            what = f"its adapter also changes {', '.join(outside)}, which the mixture takes from the base model"
            yield Problem("source.adapter", where, what, "Use 'shared_weights: regmean' to keep some of that.")


def _tensors(where: str, source: Source, shapes: Shapes) -> Iterator[Problem]:
    """Yield what is missing from a source, or has another shape or dtype than a merge can use."""
    name, found = source.reference, [t for t in source.tensors.values() if t.name in shapes]
    tied = bool(source.config.get("tie_word_embeddings"))
    lost = [n for n in shapes if n not in source.tensors and not (tied and n == source.head)]
    if lost:
        remedy = "Download it again, or name another model."
        yield Problem("source.incomplete", where, f"{name} lacks {some(lost)}", remedy)
    elif packed := [t for t in found if t.dtype not in FLOATS]:
        what = f"{name} stores '{packed[0].name}' as {packed[0].dtype}, so it is quantized"
        yield Problem("source.quantized", where, what, _unquantized(source))
    elif wrong := [t for t in found if t.shape != shapes[t.name]]:
        shape, expected = list(wrong[0].shape), list(shapes[wrong[0].name])
        what = f"{name} has '{wrong[0].name}' as {shape}, where its config says {expected}"
        remedy = "The file and its config don't belong together: download it again."
        yield Problem("source.config", where, what, remedy)
