"""Do these models fit together? Asked of configs, headers and tokenizer files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from lazymoe.architectures.configs import rope_spellings
from lazymoe.architectures.records import Dense, Host, Shapes
from lazymoe.architectures.registry import dense_of
from lazymoe.checkpoint.source import TOKENIZER_FILES, Source
from lazymoe.checkpoint.tensors import FLOATS
from lazymoe.errors import Problem
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
NEEDED = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "vocab_size")
JUNK = ("rotary_emb.inv_freq",)  # buffers that old checkpoints carry and nothing reads


def unusable(where: str, source: Source) -> Problem | None:
    """Why nothing can be said of a model: its config is no use."""
    config, name = source.config, source.reference
    quantized = config.get("quantization_config")
    if quantized or any(tensor.endswith(".qweight") for tensor in source.tensors):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        what = f"{name} is quantized ({method or 'by GPTQ, AWQ or their like'}), which can't be undone exactly"
        return Problem("source.quantized", where, what, _unquantized(source))
    dense = dense_of(config.get("model_type"))
    if dense is None:
        return None  # `families.find` says what can be made of which
    known = dense.fill(config)
    for key in (*NEEDED, "num_key_value_heads", "head_dim"):
        value = known.get(key)
        if (type(value) is not int or value < 1) and (key in NEEDED or value is not None):
            what = f"the config.json of {name} has no usable {key} ({value!r})"
            return Problem("source.config", where, what, "Mend it, or download it again.")
    return None


def _unquantized(source: Source) -> str:
    return f"Name the unquantized model it was made from{f': {source.made_from}' if source.made_from else ''}."


def misfits(recipe: Recipe, sources: Sequence[Source], dense: Dense, host: Host) -> Iterator[Problem]:
    """Why these models (the base model, then each expert) can't become this host."""
    base, config = sources[0], dense.complete(sources[0].config)
    body, ffn = dense.all_shapes(config)
    yield from _tensors("base_model", base, body)
    alien = sorted(name for name in base.tensors if name not in body | ffn and not name.endswith(JUNK))
    if alien:
        what = f"{base.reference} has {_some(alien)}, for which {host.name} has no place"
        yield Problem("source.no-place", "base_model", what, "Use a base model without such weights.")

    if base.unread:
        what = f"{base.reference} has '{base.unread[0]}', which transformers doesn't read from a GGUF file"
        remedy = "Name the model it was made from; as an expert this one will do."
        yield Problem("source.no-place", "base_model", what, remedy)

    for (where, _), source in zip(recipe.models[1:], sources[1:], strict=True):
        kind = source.config.get("model_type")
        if kind != dense.model_type:
            what = f"{source.reference} is a {kind} model, the base model a {dense.model_type}"
            yield Problem("source.mismatch", where, what, "All models must have one architecture.")
            continue
        own = dense.complete(source.config)
        other = [f"{w} {own[k]} instead of {config[k]}" for k, w in SAME.items() if own.get(k) != config.get(k)]
        if other:
            what = f"{source.reference} has {', '.join(other)}"
            yield Problem("source.mismatch", where, what, "Use fine-tunes of one model, all of one size.")
        else:
            yield from _tensors(where, source, ffn)


def differences(recipe: Recipe, sources: Sequence[Source], dense: Dense) -> Iterator[Problem]:
    """How an expert's surroundings will differ from those it was trained in, since they are the base model's."""
    base = sources[0]
    seen = {base.folder}
    for (where, _), source in zip(recipe.models[1:], sources[1:], strict=True):
        if source.folder in seen:
            continue
        seen.add(source.folder)
        name = source.reference
        if what := _vocabulary_difference(base, source):
            remedy = "The base model's tokenizer is used; choose a base that knows these."
            yield Problem("source.tokens", where, f"{name} {what}", remedy)
        rope, own = (rope_spellings(dense.complete(s.config))["rope_parameters"] for s in (base, source))
        if own != rope:
            what = f"{name} has the rotary settings {own}, the base model {rope}"
            yield Problem("source.rope", where, what, "The base model's are used; long texts may suffer.")
        template, theirs = _chat_template(base), _chat_template(source)
        if theirs and theirs != template:
            what = f"{name} was trained with another chat template than the base model's"
            remedy = "The base model's is used; choose as base the model whose chat format you want."
            yield Problem("source.chat-template", where, what, remedy)


def adapters(recipe: Recipe, sources: Sequence[Source], dense: Dense, shared: str) -> Iterator[Problem]:
    """What of the experts' LoRA adapters doesn't reach the mixture."""
    _, ffn = dense.all_shapes(dense.complete(sources[0].config))
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
    """What is missing from a source, or has another shape or dtype than a merge can use."""
    name, found = source.reference, [t for t in source.tensors.values() if t.name in shapes]
    tied = bool(source.config.get("tie_word_embeddings"))
    lost = [n for n in shapes if n not in source.tensors and not (tied and n == "lm_head.weight")]
    if lost:
        remedy = "Download it again, or name another model."
        yield Problem("source.incomplete", where, f"{name} lacks {_some(lost)}", remedy)
    elif packed := [t for t in found if t.dtype not in FLOATS]:
        what = f"{name} stores '{packed[0].name}' as {packed[0].dtype}, so it is quantized"
        yield Problem("source.quantized", where, what, _unquantized(source))
    elif wrong := [t for t in found if t.shape != shapes[t.name]]:
        shape, expected = list(wrong[0].shape), list(shapes[wrong[0].name])
        what = f"{name} has '{wrong[0].name}' as {shape}, where its config says {expected}"
        remedy = "The file and its config don't belong together: download it again."
        yield Problem("source.config", where, what, remedy)


def _some(names: Sequence[str]) -> str:
    return f"the tensor '{names[0]}'" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _vocabulary_difference(base: Source, expert: Source) -> str:
    """How an expert's tokens differ from the base model's, in words; empty if they don't, or nobody can tell."""
    if expert.digest(TOKENIZER_FILES) != base.digest(TOKENIZER_FILES):
        theirs, ours = _vocabulary(expert), _vocabulary(base)
        if theirs and ours and (extra := sorted(theirs.keys() - ours.keys())):
            return f"was trained with {len(extra)} tokens that the base model lacks ({', '.join(extra[:3])})"
        if not same_tokens(base, expert):
            return "numbers some tokens otherwise than the base model"
    own, other = expert.config["vocab_size"], base.config["vocab_size"]
    return f"has a vocabulary of {own}, the base model of {other}" if own != other else ""


def same_tokens(base: Source, expert: Source) -> bool:
    """Whether the tokens that both know have the same numbers, as far as their tokenizers tell."""
    if expert.digest(TOKENIZER_FILES) == base.digest(TOKENIZER_FILES):
        return True
    ours = _vocabulary(base)
    return all(ours.get(token, number) == number for token, number in _vocabulary(expert).items())


def _vocabulary(source: Source) -> dict[str, int]:
    """Token to number, with added tokens; empty where the tokenizer has no JSON file."""
    tokenizer = source.json("tokenizer.json")
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else source.json("vocab.json")
    tokens = {str(entry[0]): i for i, entry in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab or {})
    tokens |= {t["content"]: t["id"] for t in tokenizer.get("added_tokens") or []}
    return tokens | source.json("added_tokens.json")


def _chat_template(source: Source) -> str:
    file = source.folder / "chat_template.jinja"
    text = file.read_text("utf-8") if file.is_file() else source.json("tokenizer_config.json").get("chat_template")
    return json.dumps(text) if text else ""
