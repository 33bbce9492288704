"""The base model's tokenizer_config.json on its way into a mixture: to no code but transformers' own, and to words that
transformers 4 and 5 both know."""

from __future__ import annotations

import json
import re
from typing import Any

from lazymoe.planning.vocabularies import brings_code

EXTRA_4, EXTRA_5 = "additional_special_tokens", "extra_special_tokens"  # what both versions read, and what 5 writes
BEGINNERS = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer")


def _without_code(tokenizer_config: bytes, whole: bool, named: bool) -> bytes:
    """Make a tokenizer_config.json lead to no code but transformers' own; give it as it is if it did so already.

    Args:
        tokenizer_config: the base model's.
        whole: whether there is a tokenizer.json, which needs no class of its own.
        named: whether it must name its class, since config.json leads to code of a model, which transformers would
            otherwise ask for the class.
    """
    try:
        fields = json.loads(tokenizer_config)
    except (ValueError, RecursionError):
        return tokenizer_config  # no program can read it
    if not isinstance(fields, dict) or not ("auto_map" in fields or (named and not fields.get("tokenizer_class"))):
        return tokenizer_config
    general = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if whole and brings_code(fields):
        fields |= general
    fields.pop("auto_map", None)
    return _dump((general if named else {}) | fields)


def _for_transformers_4(tokenizer_config: bytes, tokenizer: dict[str, Any]) -> bytes:
    """Put a tokenizer_config.json of transformers 5 into words that transformers 4 knows as well: its general class,
    which by default makes token_type_ids, and these no decoder takes; and a list of further special tokens. Any other
    is returned as it is.

    Args:
        tokenizer_config: the base model's.
        tokenizer: its tokenizer.json; empty if it has none.
    """
    known = rb'\1"PreTrainedTokenizerFast"'
    if b'"model_input_names"' not in tokenizer_config:
        known += b',\n  "model_input_names": ["input_ids", "attention_mask"]'
    if _begins_otherwise(tokenizer_config, tokenizer):
        tokenizer_config = re.sub(rb'("tokenizer_class":\s*)"\w+"', rb'\1"TokenizersBackend"', tokenizer_config)
    tokenizer_config = re.sub(rb'("tokenizer_class":\s*)"TokenizersBackend"', known, tokenizer_config)
    fields = _fields(tokenizer_config)
    if not isinstance(extra := fields.get(EXTRA_5), list):
        return tokenizer_config
    before = fields.get(EXTRA_4)
    every = extra + [token for token in (before if isinstance(before, list) else []) if token not in extra]
    return _dump({key: value for key, value in fields.items() if key not in (EXTRA_4, EXTRA_5)} | {EXTRA_4: every})


def carried(content: bytes, tokenizer: dict[str, Any], named: bool) -> bytes:
    """Give a tokenizer_config.json as a mixture carries it; as it is where nothing has to change.

    Args:
        content: the base model's.
        tokenizer: its tokenizer.json; empty if it has none.
        named: whether it must name its class, since config.json leads to code of a model, which transformers would
            otherwise ask for the class.
    """
    return _for_transformers_4(_without_code(content, bool(tokenizer), named), tokenizer)


def _begins_otherwise(tokenizer_config: bytes, tokenizer: dict[str, Any]) -> bool:
    """Tell whether transformers 4 would put other tokens around a text than the tokenizer.json of transformers 5 says.

    Some of its classes add a begin-of-text token, unless a field says otherwise that transformers 5 doesn't write.
    """
    fields = _fields(tokenizer_config)
    kind = str(fields.get("tokenizer_class")).removesuffix("Fast")
    if not tokenizer or "backend" not in fields or "add_bos_token" in fields or kind not in BEGINNERS:
        return False
    whole = tokenizer.get("post_processor")
    parts = whole.get("processors", [whole]) if isinstance(whole, dict) else []
    templates = [p["single"] for p in parts if isinstance(p, dict) and "single" in p] if isinstance(parts, list) else []
    pieces = [piece for template in templates if isinstance(template, list) for piece in template]
    return [list(piece) for piece in pieces if isinstance(piece, dict)] != [["SpecialToken"], ["Sequence"]]


def _fields(content: bytes) -> dict[str, Any]:
    """Read a JSON object; empty if it is anything else."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _dump(fields: Any) -> bytes:
    return (json.dumps(fields, indent=2) + "\n").encode()
