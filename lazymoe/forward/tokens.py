"""Texts as tokens: one by one, packed into the sequences that statistics are gathered on, or cut into windows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lazymoe.checkpoint.source import Source
from lazymoe.errors import error

LENGTH = 256  # tokens of a packed sequence, at most
ENOUGH = 1024  # tokens for each group of prompts, by repeating them in other orders
PASSES = 8  # but no more often than this
LIMIT = 8192  # tokens of a group of prompts, at most
WINDOW = 256  # tokens read at a time when a model is measured
TOKENS = 4096  # of each domain, at most


def load_tokenizer(source: Source) -> Any:
    """The source's tokenizer.

    Raises:
        LazyMoEError: if it has none that transformers can load.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False)
    except Exception as e:
        what = f"the tokenizer of {source.reference} can't be loaded ({type(e).__name__})"
        raise error(
            "source.tokenizer", "base_model", what, "Use a base model that has one, or a random gate_mode."
        ) from None


def tokenize(source: Source, texts: Sequence[str]) -> list[Tensor]:
    """Token ids of each text, raw, after the tokenizer's begin-of-text token if it has one."""
    tokenizer = load_tokenizer(source)
    bos = tokenizer.bos_token or ""
    return [torch.tensor(tokenizer(bos + text, add_special_tokens=False)["input_ids"]) for text in texts]


def pack(source: Source, texts: Sequence[str]) -> list[Tensor]:
    """Join texts, by line breaks and in several orders, into sequences of up to `LENGTH` tokens.

    A few keywords say more about a domain in each other's company than alone, at the beginning of a text where a model
    has no context yet.
    """
    tokenizer = load_tokenizer(source)
    line = tokenizer("\n", add_special_tokens=False)["input_ids"]
    start = [tokenizer.bos_token_id] if tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id is not None else []
    room = LENGTH - len(start)
    pieces = [ids[i : i + room] for t in texts for ids in [tokenizer(t, add_special_tokens=False)["input_ids"]]
              for i in range(0, len(ids), room)]  # fmt: skip
    order, shuffle = list(range(len(pieces))), random.Random(0)
    sequences: list[list[int]] = []
    for _ in range(PASSES if pieces else 0):
        current: list[int] = []
        for i in order:
            if current and len(current) + len(line) + len(pieces[i]) > room:
                sequences.append(start + current)
                current = []
            current += (line if current else []) + pieces[i]
        sequences.append(start + current)
        if sum(map(len, sequences)) >= ENOUGH:
            break
        shuffle.shuffle(order)
    return [torch.tensor(s) for s in sequences[: LIMIT // LENGTH]]


def pad(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Sequences as one right-padded batch ``[B, T]``, and which of its places are real, bool ``[B, T]``."""
    batch = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True)
    real = torch.nn.utils.rnn.pad_sequence([torch.ones_like(s, dtype=torch.bool) for s in sequences], batch_first=True)
    return batch, real


def windows(source: Source, texts: Sequence[str], tokens: int = TOKENS) -> tuple[Tensor, Tensor]:
    """Texts, one after the other, cut into windows of so many tokens at most: ``[B, T]``, int64, and which places are
    real, bool ``[B, T]``."""
    tokenizer = load_tokenizer(source)
    ids = torch.tensor([i for t in texts for i in tokenizer(t, add_special_tokens=False)["input_ids"]][:tokens])
    return pad([w for w in ids.split(WINDOW) if len(w) > 1] or [ids])
