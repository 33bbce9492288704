"""The text model inside a multimodal checkpoint: its config and its tensors, by the names that it has by itself. What
is for pictures or sound stays behind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazymoe.architectures.learned import transformers_config
from lazymoe.architectures.registry import dense_of, recorded
from lazymoe.checkpoint.leftovers import LEFTOVER
from lazymoe.checkpoint.tensors import TensorInfo
from lazymoe.checkpoint.wrappers import BEFORE, WITHIN

NAMED = {"language_model", "text_model"}  # what transformers calls it
# kinds that compute on text alone what another does: their positions have parts for pictures, all equal there
ALIKE = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
FOR_PICTURES = ("mrope_section", "mrope_interleaved")
KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "quantization_config", "dtype", "torch_dtype")


def text_part(
    config: dict[str, Any], tensors: dict[str, TensorInfo]
) -> tuple[dict[str, Any], dict[str, TensorInfo], list[str]]:
    """Take the text model out of a multimodal checkpoint; give any other as it is.

    Args:
        config: its config.json.
        tensors: all its tensors, by name.

    Returns:
        The config and the tensors of its text model; and the names of what stays behind, sorted.
    """
    text = _text_config(config)
    dense = dense_of(text) if text else None
    if text is None or dense is None:
        return config, tensors, []
    outer = dense.prefix.partition(".")[0] + "."
    bare = dense.embeddings.removeprefix(outer)
    heads = {name for name in dense.outer if not name.startswith(outer)}
    plain = {name: WITHIN.sub("", name) for name in tensors}
    before = {name.removesuffix(bare) for name in plain.values() if f".{name}".endswith(f".{bare}")}
    known = [prefix for prefix in before if (BEFORE | NAMED).issuperset(prefix.split(".")[:-1])]
    if not known:
        return text, tensors, []  # of which it lacks the weights, as will be told
    prefix = max(known, key=lambda prefix: (bool(NAMED & set(prefix.split("."))), prefix))
    found, left = {}, []
    for name, own in plain.items():
        above, _, head = own.rpartition("lm_head.")
        new = outer + own.removeprefix(prefix) if own.startswith(prefix) else f"lm_head.{head}"
        if own.startswith(prefix) or (new in heads and (BEFORE | NAMED).issuperset(above.split(".")[:-1])):
            found[new] = replace(tensors[name], name=new)
        elif not LEFTOVER.fullmatch(own):
            left.append(name)
    stated = [c["tie_word_embeddings"] for c in (config, text) if c.get("tie_word_embeddings") is not None]
    tied = any(stated) if stated else dense.head not in found
    above_all = {key: config[key] for key in KEPT if config.get(key) is not None}
    return {**text, **above_all, "tie_word_embeddings": tied}, found, sorted(left)


def _text_config(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Give the config of the text model in a multimodal one; None if it isn't that."""
    if recorded(config):
        return None
    text = config.get("text_config")
    if not (isinstance(text, dict) and isinstance(text.get("model_type"), str)):
        try:  # older ones have it all in one
            made = transformers_config(config)
            inside = made.get_text_config()
            text = None if inside is made else json.loads(json.dumps(inside.to_dict(), default=str))
        except Exception:  # `find_host` says what can be made of which
            return None
    if not text or text["model_type"] not in ALIKE:
        return text
    rope = {key: text[key] for key in ("rope_parameters", "rope_scaling") if isinstance(text.get(key), dict)}
    for key, settings in rope.items():
        settings = {k: v for k, v in settings.items() if k not in FOR_PICTURES}
        rope[key] = settings | {k: "default" for k in ("type", "rope_type") if settings.get(k) == "mrope"}
    return {**text, **rope, "model_type": ALIKE[text["model_type"]]}
