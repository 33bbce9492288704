"""A tokenizer as llama.cpp reads it. Read from tokenizer.json; what that leaves open is asked of transformers.

llama.cpp knows how a tokenizer splits text by a name. Here that name is found by what tokenizer.json says it does, not
by whose tokenizer it is: one that was trained anew, or got more tokens, keeps it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lazymoe.errors import LazyMoEError, error

if TYPE_CHECKING:
    from gguf import GGUFWriter

Fields = dict[str, Any]
SPACE = "\u2581"  # a space, in tokens that SentencePiece made
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
CONTROL = re.compile(r"<\|.*\|>|<\uff5c.*\uff5c>|<pad>|<mask>|<unused.*>", re.DOTALL)  # looks special, flagged or not
ADDED_SCORE, UNUSED_SCORE = -1000.0, -10000.0

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_MARKED = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
_MARKED_REST = r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = [rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"]
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2, DIGITS = "GPT-2's", "digits"  # splits that tokenizer.json has a word for
# what text is split by, one split after the other, and whether whole words pass by the merges: llama.cpp's name
SPLITS = {
    ((f"{_SHORT}|{_WORDS}|\\p{{N}}{{1,3}}|{_REST}",), True): "llama-bpe",
    ((f"{_SHORT}|{_WORDS}|\\p{{N}}{{1,3}}|{_REST}",), False): "dbrx",
    ((f"{_SHORT}|{_WORDS}|\\p{{N}}|{_REST}",), False): "qwen2",
    ((f"{_SHORT}|{_MARKED}|\\p{{N}}|{_MARKED_REST}",), False): "qwen35",
    ((f"{_CASED[0]}|{_CASED[1]}|\\p{{N}}|{_SLASHED}",), True): "tekken",
    ((f"{_CASED[0]}{_SHORT}?|{_CASED[1]}{_SHORT}?|\\p{{N}}{{1,3}}|{_SLASHED}",), False): "gpt-4o",
    ((DIGITS, GPT2), False): "smollm",
    ((GPT2,), False): "gpt-2",
    ((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", DIGITS), False):
        "deepseek-coder",
}  # fmt: skip


class Token(NamedTuple):
    """A token: its text, its rank among others for SentencePiece's way of merging, and its kind as gguf calls it."""

    text: str
    score: float
    kind: str


def add_vocabulary(writer: GGUFWriter, folder: Path, size: int) -> None:
    """Add a tokenizer, its special tokens and its chat template to what a GGUF file says.

    Args:
        writer: of the file.
        folder: the mixture's.
        size: how many tokens it has embeddings for.

    Raises:
        OutputError: if llama.cpp has no tokenizer like it.
    """
    from gguf import SpecialVocab, TokenType

    logging.getLogger("gguf").setLevel(logging.ERROR)  # its remarks are for whoever wrote the tokenizer
    fields = _read(folder)
    try:
        bytewise = not fields["model"].get("byte_fallback")
        name = _name_of(fields, bytewise, folder)
        tokens = list(_tokens(fields, bytewise, size))
        special = SpecialVocab(folder, load_merges=bytewise, n_vocab=size)
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        raise _unknown(folder, f"its tokenizer.json can't be read ({type(e).__name__}: {e})") from None
    writer.add_tokenizer_model("gpt2" if bytewise else "llama")
    writer.add_tokenizer_pre(name)
    writer.add_token_list([token.text for token in tokens])
    if not bytewise:
        writer.add_token_scores([token.score for token in tokens])
        writer.add_add_space_prefix(_leads_with_space(fields))
    writer.add_token_types([int(TokenType[token.kind]) for token in tokens])
    if bytewise:
        special.merges = special.merges or [" ".join(pair) for pair in _merges(fields)]
        special.add_special_token.setdefault("bos", False)  # for some names llama.cpp would add one by itself
    special.add_to_gguf(writer, quiet=True)


def _read(folder: Path) -> Fields:
    """Read tokenizer.json; where there is none, what transformers makes of the other files.

    Raises:
        OutputError: if neither can be read.
    """
    file = folder / "tokenizer.json"
    try:
        if file.is_file():
            text = file.read_text(encoding="utf-8")
        else:
            from transformers import AutoTokenizer

            text = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).backend_tokenizer.to_str()
        fields = json.loads(text)
    except Exception as e:  # whatever a broken or unknown tokenizer makes transformers raise
        why = str(e).splitlines()[0][:150] if str(e) else type(e).__name__
        raise _unknown(folder, f"its tokenizer can't be read ({why})") from None
    return fields if isinstance(fields, dict) else {}


def _name_of(fields: Fields, bytewise: bool, folder: Path) -> str:
    """Give llama.cpp's name for how a tokenizer splits text.

    Raises:
        OutputError: if it has none.
    """
    model = fields["model"]
    if model.get("type") != "BPE" or model.get("dropout"):
        raise _unknown(folder, f"its tokenizer is of the kind {model.get('type')}, not BPE")
    if not bytewise:
        return "default"
    splits = tuple(_splits(fields.get("pre_tokenizer") or {}))
    name = SPLITS.get((splits, bool(model.get("ignore_merges"))))
    if name is None:
        raise _unknown(folder, "its tokenizer splits text in a way for which no name of llama.cpp's is known here")
    return name


def _splits(step: Fields) -> Iterator[str]:
    """List what a pre-tokenizer splits text by, one split after the other; what isn't known as "?"."""
    kind = step.get("type")
    if kind == "Sequence":
        for inner in step["pretokenizers"]:
            yield from _splits(inner)
    elif kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        yield step["pattern"].get("Regex", "?").replace("\r", r"\r").replace("\n", r"\n")
    elif kind == "Digits" and step.get("individual_digits"):
        yield DIGITS
    elif kind == "ByteLevel" and not step.get("add_prefix_space"):
        if step.get("use_regex", True):
            yield GPT2
    else:
        yield "?"


def _tokens(fields: Fields, bytewise: bool, size: int) -> Iterator[Token]:
    """List all tokens that have embeddings, by their numbers."""
    texts = {number: text for text, number in fields["model"]["vocab"].items()}
    added = {token["id"]: token for token in fields.get("added_tokens") or []}
    scores = {} if bytewise else _scores(fields)
    unknown = fields["model"].get("unk_token")
    for number in range(size):
        if number in added:
            text = added[number]["content"]
            special = added[number].get("special") or CONTROL.fullmatch(text)
            kind = "CONTROL" if special else "USER_DEFINED"
            yield Token(text if special else text.replace(SPACE, " "), ADDED_SCORE, kind)
        elif number not in texts:
            yield Token(f"[PAD{number}]", UNUSED_SCORE, "UNUSED")
        elif not bytewise and BYTE.fullmatch(texts[number]):
            yield Token(texts[number], 0.0, "BYTE")
        elif not bytewise and texts[number] == unknown:
            yield Token(texts[number], 0.0, "UNKNOWN")
        else:
            yield Token(texts[number], scores.get(texts[number], ADDED_SCORE), "NORMAL")


def _scores(fields: Fields) -> dict[str, float]:
    """Give each token that merges make a score that falls in their order: SentencePiece merges what scores highest.

    What no merge makes, such as single letters, is merged with nothing, and its score counts for nothing.
    """
    scores: dict[str, float] = {}
    for rank, (left, right) in enumerate(_merges(fields)):
        scores.setdefault(left + right, -float(rank))
    return scores


def _merges(fields: Fields) -> Iterator[tuple[str, str]]:
    for merge in fields["model"]["merges"]:
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        yield left, right


def _leads_with_space(fields: Fields) -> bool:
    """Tell whether a tokenizer puts a space before a text."""
    steps = [fields.get("normalizer") or {}, fields.get("pre_tokenizer") or {}]
    while steps:
        step = steps.pop()
        steps += [*step.get("normalizers", []), *step.get("pretokenizers", [])]
        if step.get("type") == "Prepend":
            return True
        if step.get("type") == "Metaspace":
            return bool(step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True))
    return False


def _unknown(folder: Path, what: str) -> LazyMoEError:
    remedy = "Convert the merged mixture with llama.cpp's convert_hf_to_gguf.py, which knows more tokenizers."
    return error("output.tokenizer", folder, what, remedy)
