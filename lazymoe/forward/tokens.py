"""Texts as tokens: one by one, packed into the sequences that statistics are gathered on, or cut into windows."""

from __future__ import annotations

import itertools
import random
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lazymoe.checkpoint.source import Source
from lazymoe.errors import Problem, error, failure
from lazymoe.planning.memory import BATCH, ENOUGH, LENGTH, LIMIT, PASSES, reads_states
from lazymoe.planning.plan import Plan
from lazymoe.planning.prepared import Prepared
from lazymoe.planning.vocabularies import coded
from lazymoe.recipe.schema import SIDES, STREAMED

WINDOW = 256  # tokens read at a time when a model is measured
TOKENS = 4096  # of each domain, at most
PACKAGES = {  # that tokenizers may take beside transformers' own, and the module of each
    "sentencepiece": "sentencepiece",
    "tiktoken": "tiktoken",
    "protobuf": "google.protobuf",
    "mistral-common": "mistral_common",
}
TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"  # a warning that transformers gives once
TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")  # how a file of tiktoken's begins


def load_tokenizer(source: Source) -> Any:
    """Load the source's tokenizer.

    Args:
        source: the model.

    Raises:
        SourceError: if it has none that transformers can load.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False)
        tokenizer("x")  # what its config says is looked at only now
        getattr(tokenizer, "deprecation_warnings", {})[TOO_LONG] = True  # told already: texts are cut into windows here
        return tokenizer
    except Exception as e:
        if problems := list(coded(source)):
            raise failure(problems) from None
        if lacking := _lacking(source, str(e)):
            what = f"the tokenizer of {source.reference} can't be loaded without {' and '.join(lacking)}"
            raise error("source.tokenizer", "base_model", what, f"Run: pip install {' '.join(lacking)}") from None
        what = f"the tokenizer of {source.reference} can't be loaded ({type(e).__name__})"
        raise error(
            "source.tokenizer", "base_model", what, "Use a base model that has one, or a random gate_mode."
        ) from None


def _lacking(source: Source, why: str) -> list[str]:
    """List the packages that aren't installed and that a tokenizer's files take; empty if it is something else.

    Args:
        source: the model.
        why: what transformers said when it couldn't load it.
    """
    if not source.files(("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.*")):
        return []  # it has no tokenizer at all, for which transformers blames packages too
    needed = [package for package in PACKAGES if package in why.lower().replace("_", "-")]
    file = source.folder / "tokenizer.model"
    if not (source.folder / "tokenizer.json").is_file():  # what transformers misses last need not be what it takes
        if (source.folder / "tekken.json").is_file():
            needed = ["mistral-common"]
        elif file.is_file():
            needed = ["tiktoken"] if TIKTOKEN.match(file.read_bytes()[:1000]) else ["sentencepiece", "protobuf"]
    return [package for package in needed if not _is_installed(PACKAGES[package])]


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # of the package above it
        return False


def tokenize(tokenizer: Any, texts: Sequence[str]) -> list[Tensor]:
    """Tokenize each text, raw, after the tokenizer's begin-of-text token if it has one.

    Args:
        tokenizer: as `load_tokenizer` gives it.
        texts: the texts.

    Returns:
        The token ids of each text ``[T]``, int64.
    """
    bos = tokenizer.bos_token or ""
    ids = (tokenizer(bos + text, add_special_tokens=False)["input_ids"] for text in texts)
    return [torch.tensor(i, dtype=torch.int64) for i in ids]


class Packed(NamedTuple):
    """A group of prompts as the sequences that a sweep reads.

    Attributes:
        orders: the sequences that each order of the prompts makes; token ids of each ``[T]``, int64.
        again: what there may be copies of beside every second order, so that it is about `ENOUGH` tokens together: as
            ``orders``, but of few prompts several times over. None of prompts that are long enough to be read once.
        given: how many tokens the prompts have.
        whole: whether all of these are in the sequences.
    """

    orders: list[list[Tensor]]
    again: list[list[Tensor]]
    given: int
    whole: bool

    @property
    def sequences(self) -> list[Tensor]:
        """All sequences."""
        return [s for order in self.orders for s in order]


def pack(tokenizer: Any, texts: Sequence[str]) -> Packed:
    """Join texts, by line breaks and in several orders, into sequences of up to `LENGTH` tokens.

    A few keywords say more about a domain in each other's company than alone, at the beginning of a text where a model
    has no context yet.

    Args:
        tokenizer: as `load_tokenizer` gives it.
        texts: of one group of prompts.
    """
    line = tokenizer("\n", add_special_tokens=False)["input_ids"]
    start = [tokenizer.bos_token_id] if tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id is not None else []
    room = LENGTH - len(start)
    pieces = [array("q", ids[i : i + room]) for t in texts
              for ids in [tokenizer(t, add_special_tokens=False)["input_ids"]]
              for i in range(0, len(ids), room)]  # fmt: skip
    given, most, n = sum(map(len, pieces)), LIMIT // LENGTH, len(pieces)
    first, *others = _join(pieces, start, line, ENOUGH, PASSES) or [[]]
    while given > LIMIT and len(first) > most:  # fewer of them, at even distances
        n = min(n - 1, n * most // len(first))
        first, *others = _join([pieces[i * len(pieces) // n] for i in range(n)], start, line, ENOUGH, PASSES)
    whole = n == len(pieces) and len(first) <= most
    orders, again = [first[:most], *others], []
    if others:
        lacking, times = ENOUGH - sum(len(s) for made in orders[::2] for s in made), max(1, LENGTH // 2 // given)
        again = _join(pieces * times, start, line, lacking - times * given // 2, ENOUGH)  # or as near as may be
    return Packed(_tensors(orders), _tensors(again), given, whole)


def _join(
    pieces: Sequence[Sequence[int]], start: list[int], line: list[int], enough: int, most: int
) -> list[list[list[int]]]:
    """Join pieces into sequences of up to `LENGTH` tokens, in several orders, at `most`, if `enough` are more."""
    room = LENGTH - len(start)
    order, shuffle = list(range(len(pieces))), random.Random(0)
    orders: list[list[list[int]]] = []
    for _ in range(most if pieces else 0):
        sequences: list[list[int]] = []
        current: list[int] = []
        for i in order:
            if current and len(current) + len(line) + len(pieces[i]) > room:
                sequences.append(start + current)
                current = []
            current += [*(line if current else []), *pieces[i]]
        orders.append([*sequences, start + current])
        if sum(len(s) for made in orders for s in made) >= enough:
            break
        shuffle.shuffle(order)
    return orders


def _tensors(orders: Iterable[Iterable[list[int]]]) -> list[list[Tensor]]:
    return [[torch.tensor(sequence) for sequence in order] for order in orders]


def doubtful_prompts(prepared: Prepared, plan: Plan) -> Iterator[Problem]:
    """Yield the prompts that aren't used as they are given: too many of them, or too long; as tokens alone can tell.

    Args:
        prepared, plan: what is wanted; the base model's tokenizer must be on the disk.

    Raises:
        RecipeError: if no token can be made of an expert's prompts.
        SourceError: if the tokenizer is needed and can't be loaded.
    """
    recipe, base = prepared.prompts, plan.sources[0]
    fitted, read = recipe.gate_mode == "fit", recipe.gate_mode in STREAMED and recipe.gate_mode != "fit"
    merged = bool(plan.corrected) or reads_states(recipe, plan)
    if not (fitted or read or merged or recipe.gate_mode == "cheap_embed"):
        return
    tokenizer, context = load_tokenizer(base), plan.dense.fill(base.config).get("max_position_embeddings")
    bos = tokenizer.bos_token or ""
    for i, expert in enumerate(recipe.every_expert[: plan.gates]):
        for side, texts in zip(SIDES, (expert.positive, expert.negative), strict=True):
            where = recipe.place(i, side)
            lengths = [len(tokenizer(bos * read + text, add_special_tokens=False)["input_ids"]) for text in texts]
            if texts and not any(lengths):
                what = "the base model's tokenizer makes no token of these prompts"
                raise error("recipe.no-tokens", where, what, "Write other texts there.")
            if fitted or (merged and side == SIDES[0]):
                packed = pack(tokenizer, texts)
                if not packed.whole:
                    given = packed.given
                    used = min(sum(map(len, packed.sequences)), given)  # with the line breaks between them, so about
                    which = "taken evenly from all of them" if given > LIMIT else "the first ones"
                    what = f"about {round(used, -2)} of their {given} tokens are used, {which}"
                    remedy = "Right if they are alike; to choose them yourself, give fewer or shorter texts."
                    yield Problem("recipe.long-prompts", where, what, remedy)
            if read and context and (long := sum(length > context for length in lengths)):
                are = "are" if long > 1 else "is"
                what = f"{long} of these prompts {are} longer than the base model's context, {context} tokens"
                yield Problem("recipe.long-prompts", where, what, "Shorten them: states beyond it mean little.")


def pad(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad sequences to the right, into one batch.

    Args:
        sequences: token ids ``[T]`` each, int64.

    Returns:
        The batch ``[B, T]``, and which of its places are real, bool ``[B, T]``.
    """
    batch = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True)
    real = torch.nn.utils.rnn.pad_sequence([torch.ones_like(s, dtype=torch.bool) for s in sequences], batch_first=True)
    return batch, real


def batches(sequences: Sequence[Tensor], tokens: int = BATCH) -> list[tuple[Tensor, Tensor]]:
    """Group sequences, in their order, into batches.

    Args:
        sequences: token ids ``[T]`` each, int64.
        tokens: of a batch at most, padding included; a longer sequence is a batch by itself.

    Returns:
        The batches ``[B, T]``, each with its real places, as `pad` makes them.
    """
    groups: list[list[Tensor]] = []
    longest = 0
    for sequence in sequences:
        longest = max(longest, len(sequence))
        if not groups or (len(groups[-1]) + 1) * longest > tokens:
            groups.append([])
            longest = len(sequence)
        groups[-1].append(sequence)
    return [pad(group) for group in groups]


def windows(tokenizer: Any, texts: Sequence[str], tokens: int = TOKENS) -> tuple[Tensor, Tensor]:
    """Cut texts, one after the other, into windows of `WINDOW` tokens.

    Args:
        tokenizer: as `load_tokenizer` gives it.
        texts: of one domain.
        tokens: how many to take at most.

    Returns:
        The token ids ``[B, T]``, int64, and which places are real, bool ``[B, T]``.
    """
    found = (i for t in texts for i in tokenizer(t, add_special_tokens=False)["input_ids"])
    ids = torch.tensor(list(itertools.islice(found, tokens)), dtype=torch.int64)
    return pad([w for w in ids.split(WINDOW) if len(w) > 1] or [ids])
