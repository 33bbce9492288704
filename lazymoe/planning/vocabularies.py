"""Tokenizers and chat templates, read from their files and compared: which token has which number in which model."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lazymoe.checkpoint.lfs import is_pointer, refuse_pointer
from lazymoe.checkpoint.source import GENERATION, TOKENIZER_FILES, Source
from lazymoe.errors import LazyMoEError, Problem
from lazymoe.files import leads_away, stamp


def spoiled(base: Source) -> Iterator[Problem]:
    """Yield which of the base model's small files can't be read: the mixture would get them as they are.

    Args:
        base: the model.
    """
    for name in base.files((*TOKENIZER_FILES, GENERATION)):
        try:
            if leads_away(base.folder / name, base.folder):  # to a private file, it may be
                raise ValueError(f"{name} is a link to something outside its folder")
            refuse_pointer(base.folder / name, "base_model")
            if name == "tokenizer.json":
                vocabulary(base)
            elif name.endswith(".json"):
                _fields(base.folder, name)
            elif name.endswith((".jinja", ".txt")):
                _text(base.folder, name)
            elif not (base.folder / name).stat().st_size:
                raise ValueError(f"{name} is empty")
        except LazyMoEError as e:
            yield from e.problems
            return
        except ValueError as e:
            yield _spoiled(base, e)
            return
    try:
        vocabulary(base)
        chat_template(base)
    except ValueError as e:
        yield _spoiled(base, e)


def _spoiled(base: Source, why: ValueError) -> Problem:
    what = f"a small file of {base.reference} can't be used: {why}"
    return Problem("source.tokenizer", "base_model", what, "Download it again, or name another base model.")


def brings_code(fields: dict[str, Any]) -> bool:
    """Tell whether a tokenizer's class is one that comes with the model.

    Args:
        fields: its tokenizer_config.json.
    """
    own = fields.get("auto_map")
    named = own.get("AutoTokenizer") if isinstance(own, dict) else own
    classes = [str(name).rpartition(".")[2] for name in (named if isinstance(named, list) else [named])]
    return fields.get("tokenizer_class") in classes


def coded(base: Source) -> Iterator[Problem]:
    """Yield that a model's tokenizer can't be had without code that comes with the model.

    Args:
        base: the model; nothing of it is `spoiled`.
    """
    if brings_code(base.json("tokenizer_config.json")) and not base.files(("tokenizer.json",)):
        what = f"the tokenizer of {base.reference} is code of its own, which isn't run, and it has no tokenizer.json"
        remedy = "Name a base model that has one, such as a copy in Llama's format."
        yield Problem("source.tokenizer", "base_model", what, remedy)


def beyond(base: Source) -> Iterator[Problem]:
    """Yield that a model's tokenizer makes tokens for which its embeddings have no row.

    Args:
        base: the model; nothing of it is `spoiled`.
    """
    numbers, rows = vocabulary(base), base.config["vocab_size"]
    if numbers and (highest := max(numbers.values())) >= rows:
        count = f"{len(numbers)} tokens" if len(numbers) > rows else f"a token of number {highest}"
        what = f"the tokenizer of {base.reference} has {count}, its embeddings {rows} rows"
        remedy = "The mixture fails at texts with those that have no row: name a base model that was resized."
        yield Problem("source.tokens", "base_model", what, remedy)


def differences(where: str, base: Source, expert: Source) -> Iterator[Problem]:
    """Yield how an expert's tokens and chat template differ from the base model's, which the mixture has.

    Args:
        where: how messages name the expert's place.
        base: the base model; nothing of it is `spoiled`.
        expert: the expert.
    """
    name = expert.reference
    try:
        if what := _difference(base, expert):
            remedy = "The base model's tokenizer is used; choose a base that knows these."
            yield Problem("source.tokens", where, f"{name} {what}", remedy)
    except ValueError as e:
        what = f"the tokenizer of {name} can't be compared with the base model's ({e})"
        yield Problem("source.tokens", where, what, "The base model's is used, as if both were the same.")


def template_difference(where: str, base: Source, expert: Source) -> Iterator[Problem]:
    """Yield that an expert was trained with another chat template than the mixture gets.

    Args:
        where, base, expert: as in `differences`.
    """
    name = expert.reference
    try:
        template, theirs = chat_template(base), chat_template(expert)
    except ValueError as e:
        what = f"the chat template of {name} can't be compared with the base model's ({e})"
        yield Problem("source.chat-template", where, what, "The base model's is used.")
        return
    if theirs and theirs != template:
        what = f"{name} was trained with another chat template than the base model's"
        remedy = "The base model's is used; choose as base the model whose chat format you want."
        yield Problem("source.chat-template", where, what, remedy)


def _difference(base: Source, expert: Source) -> str:
    """Spell how an expert's tokens differ from the base model's; empty if they don't, or nobody can tell.

    Raises:
        ValueError: if its tokenizer can't be read.
    """
    if expert.digest(TOKENIZER_FILES) != base.digest(TOKENIZER_FILES):
        theirs, ours = vocabulary(expert), vocabulary(base)
        if theirs and ours and (extra := sorted(theirs.keys() - ours.keys())):
            return f"was trained with {len(extra)} tokens that the base model lacks ({', '.join(extra[:3])})"
        if not _agree(ours, theirs):
            return "numbers some tokens otherwise than the base model"
    own, other = expert.config["vocab_size"], base.config["vocab_size"]
    return f"has a vocabulary of {own}, the base model of {other}" if own != other else ""


def same_tokens(base: Source, expert: Source) -> bool:
    """Tell whether the tokens that both know have the same numbers, as far as their tokenizers tell.

    Args:
        base, expert: the two models.
    """
    if expert.digest(TOKENIZER_FILES) == base.digest(TOKENIZER_FILES):
        return True
    try:
        return _agree(vocabulary(base), vocabulary(expert))
    except ValueError:  # `differences` says so
        return True


def _agree(ours: dict[str, int], theirs: dict[str, int]) -> bool:
    return all(ours.get(token, number) == number for token, number in theirs.items())


def vocabulary(source: Source) -> dict[str, int]:
    """Read which number each token has, with added tokens; empty where the tokenizer has no JSON file.

    Args:
        source: the model.

    Raises:
        ValueError: if one of the files isn't what it should be; the message says how.
    """
    files = [source.folder / name for name in ("tokenizer.json", "vocab.json", "added_tokens.json")]
    return _vocabulary(source.folder, tuple(stamp(file) for file in files if file.is_file()))


def forget() -> None:
    """Let go of the vocabularies that were read."""
    _vocabulary.cache_clear()


@functools.lru_cache(maxsize=2)  # the base model's, and that which it is compared with
def _vocabulary(folder: Path, stamped: tuple[object, ...]) -> dict[str, int]:
    tokenizer = _fields(folder, "tokenizer.json")
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens") or []
    file = "tokenizer.json" if isinstance(model, dict) else "vocab.json"
    vocab = (model.get("vocab") if isinstance(model, dict) else _fields(folder, file)) or {}
    if isinstance(vocab, list):  # of Unigram: tokens with their scores, in order
        if not all(isinstance(entry, list) and entry and isinstance(entry[0], str) for entry in vocab):
            raise ValueError(f"{file} lists something else than tokens")
        vocab = {entry[0]: i for i, entry in enumerate(vocab)}
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise ValueError("tokenizer.json has no usable list of added tokens")
    extra = _numbered("tokenizer.json", {str(token.get("content")): token.get("id") for token in added})
    return _numbered(file, vocab) | extra | _numbered("added_tokens.json", _fields(folder, "added_tokens.json"))


def _numbered(file: str, tokens: Any) -> dict[str, int]:
    """Give tokens and their numbers, as a file has them.

    Raises:
        ValueError: if they are something else.
    """
    if not isinstance(tokens, dict):
        raise ValueError(f"{file} has no usable vocabulary")
    for token, number in tokens.items():
        if not isinstance(token, str) or type(number) is not int or number < 0:
            raise ValueError(f"{file} has a token without a number")
    return tokens


def chat_template(source: Source) -> str:
    """Read a model's chat template, or all that it has, as JSON; empty if it has none.

    Args:
        source: the model.

    Raises:
        ValueError: if its file can't be read; the message says how.
    """
    name = "chat_template.jinja"
    text = _text(source.folder, name) or _fields(source.folder, "tokenizer_config.json").get("chat_template")
    return json.dumps(text) if text else ""


def _fields(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON file that holds an object; empty if there is none.

    Raises:
        ValueError: if it holds something else.
    """
    text = _text(folder, name)
    if text is None:
        return {}
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{name} isn't JSON" if text else f"{name} is empty") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{name} isn't a JSON object")
    return fields


def _text(folder: Path, name: str) -> str | None:
    """Read a text file; None if there is none.

    Raises:
        ValueError: if it can't be read as text.
    """
    path = folder / name
    if not path.is_file():
        return None
    try:
        if is_pointer(path):
            raise ValueError(f"{name} is a Git LFS pointer, not the file")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{name} isn't UTF-8") from None
    except OSError as e:
        raise ValueError(f"{name} can't be read: {e.strerror}") from None
