"""Prefixes that a model's names get from what it was wrapped in when it was saved: PEFT, torch.compile, DDP, trainers.
They are taken off; a decoder that was saved by itself gets its ``model.`` back.

Where the token embeddings lie says what is before them.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from lazymoe.architectures.registry import dense_of
from lazymoe.checkpoint.dialects import DIALECTS
from lazymoe.checkpoint.tensors import TensorInfo
from lazymoe.errors import error

BEFORE = {"base_model", "model", "module", "pretrained_model", "_forward_module"}  # PEFT, Lightning, DDP, TRL, Fabric
WITHIN = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # anywhere in a name
UNMERGED = re.compile(r"(?:.+\.)?(?:base_layer|lora_(?:embedding_)?[AB]|modules_to_save|original_module)(?:\..+)?")


def unwrapped(
    config: dict[str, Any], tensors: dict[str, TensorInfo], where: str, model: str
) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """Give a checkpoint's tensors the names that its architecture has for them; those that have them already stay.

    Args:
        config: its config.json.
        tensors: all its tensors, by name.
        where: how messages name the place it was asked for.
        model: what messages call it.

    Returns:
        The config, and the tensors by name.

    Raises:
        SourceError: if there is a prefix that nothing is known of, or an adapter that isn't merged.
    """
    dialect = DIALECTS.get(str(config.get("model_type")))
    dense = None if dialect else dense_of(config)
    embeddings = dialect.embeddings if dialect else dense.embeddings if dense else None
    if embeddings is None:
        return config, tensors
    if unmerged := sorted(name for name in tensors if UNMERGED.fullmatch(name)):
        what = f"{model} holds an adapter that isn't merged ('{unmerged[0]}')"
        remedy = "Merge it with PEFT's merge_and_unload(), save that and name it."
        raise error("source.names", where, what, remedy)

    plain = {name: WITHIN.sub("", name) for name in tensors}
    outer = dense.prefix.partition(".")[0] + "." if dense else ""
    bare = embeddings.removeprefix(outer)
    found = sorted({name for name in plain.values() if f".{name}".endswith(f".{bare}")})
    if found and embeddings not in found:
        prefix = found[0].removesuffix(bare)
        if len(found) > 1 or not BEFORE.issuperset(prefix.split(".")[:-1]):
            what = f"{model} has '{found[0]}': the prefix '{prefix}' is none that its architecture has"
            remedy = "Load it with what saved it, and save the model inside by its save_pretrained()."
            raise error("source.names", where, what, remedy)
        heads = set(dense.outer) if dense else set()
        plain = {name: _today(own, prefix, outer, heads) for name, own in plain.items()}
    renamed = {new: replace(tensors[name], name=new) for name, new in plain.items()}
    if len(renamed) < len(tensors):
        twice = next(new for new in renamed if list(plain.values()).count(new) > 1)
        what = f"{model} has '{twice}' twice, with a prefix and without"
        raise error("source.names", where, what, "Remove one of the two from its files, or save it anew.")
    return config, renamed


def _today(name: str, prefix: str, outer: str, heads: set[str]) -> str:
    """Rename one tensor.

    Args:
        name: what it is called.
        prefix: what is before the decoder's names.
        outer: what should be there.
        heads: names of tensors that may lie beside the decoder.
    """
    around = prefix.removesuffix(outer)  # what is before the causal model's names
    if name.startswith(prefix):
        rest = name.removeprefix(prefix)
        return rest if rest in heads else outer + rest
    return name.removeprefix(around)
