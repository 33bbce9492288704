"""Log-likelihoods of answers, of models that don't fit into memory: many questions go through a layer together."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lazymoe.files import existing
from lazymoe.forward.head import predict
from lazymoe.forward.skeleton import Weights
from lazymoe.forward.stream import Stream
from lazymoe.forward.tokens import batches

# Sends batches of token ids [B, T] through a model's layers, tells after each layer how many are done, and puts what
# there is of each token into a folder if it is given one
Run = Callable[[Sequence[Tensor], Callable[[int], None], Path | None], Stream]
DISK = 0.5  # of what is free there: what states may take of it


class Means(NamedTuple):
    """What there is to send tokens through a model with.

    Attributes:
        room: bytes of memory for the states of those that are read together.
        vectors: of hidden size that there are of a token at a time, at most.
        moved: of these that are read and written of a token in a layer, if they are on the disk.
        again: bytes that are moved to read the weights once more.
        place: a folder for states that have no room in memory; None if they can't be elsewhere.
    """

    room: int
    vectors: int
    moved: int
    again: int
    place: Path | None = None


class Asked(NamedTuple):
    """What is asked of a model.

    Attributes:
        read: the tokens that it reads.
        answer: the tokens whose likelihood is asked for: the last of ``read`` is followed by the last of these, so all
            but that are the end of ``read``.
    """

    read: tuple[int, ...]
    answer: tuple[int, ...]


class Answered(NamedTuple):
    """The log-likelihood of an answer, in nats, and whether each of its tokens is the likeliest one."""

    likelihood: float
    greedy: bool


def likelihoods(
    run: Run, source: Weights, asked: Sequence[Asked], means: Means, passed: Callable[[int, int], None]
) -> Iterator[dict[Asked, Answered]]:
    """Work out log-likelihoods, with one reading of the weights for as many questions as there is room for.

    What has no room in memory goes through after another reading, or through the disk, whichever moves fewer bytes.

    What begins another text isn't read by itself: under causal attention no token sees what follows it. Texts are read
    from the longest to the shortest, so that a batch has little padding and memory is short at once or never.

    Args:
        run: sends tokens through the model.
        source: the model, for its head.
        asked: what is asked, each once.
        means: what there is for it.
        passed: told after each layer how many times one of all tokens has passed one, and how many of these.

    Yields:
        After each reading of the weights what has come of it.

    Raises:
        SourceError: if a state becomes NaN or infinite, or there is a token that the model doesn't have.
        OSError: if the disk has no room for states that go there.
    """
    whole = _whole([one.read for one in asked])
    waiting: dict[tuple[int, ...], list[Asked]] = {}
    for one in asked:
        waiting.setdefault(whole[one.read], []).append(one)
    texts = sorted(waiting, key=lambda text: (-len(text), text))
    done, tokens = 0, sum(map(len, texts))
    most, place = _together(tokens, source, means)
    while texts:
        some = _fitting(texts, most)
        texts, read = texts[len(some) :], sum(map(len, some))

        def step(layers: int, done: int = done, read: int = read) -> None:
            passed(done * layers_of(source) + read * layers, tokens * layers_of(source))

        yield _read(run, place, [(text, waiting[text]) for text in some], step)
        done += read


def _together(tokens: int, source: Weights, means: Means) -> tuple[int, Path | None]:
    """Find how many of so many tokens are read together, and where their states are: None for in memory.

    The weights are read once for what fits into memory; on the disk, states are written and read in every layer. So the
    disk is for models that are far away, or large beside the memory: in each layer a token moves its vectors there, and
    here what it takes of the memory times the layer's weights.
    """
    vector = 4 * int(source.config["hidden_size"])
    here = max(1, means.room // (means.vectors * vector))
    if means.place is None or tokens <= here:
        return here, None
    there = int(DISK * shutil.disk_usage(existing(means.place)).free) // (means.vectors * vector)
    spilled = math.ceil(tokens / max(1, there)) * means.again + means.moved * vector * tokens * layers_of(source)
    return (there, means.place) if spilled < math.ceil(tokens / here) * means.again else (here, None)


def layers_of(source: Weights) -> int:
    """Count the layers of a model."""
    return int(source.config["num_hidden_layers"])


def _whole(reads: Sequence[tuple[int, ...]]) -> Mapping[tuple[int, ...], tuple[int, ...]]:
    """Find for each text one that begins with it and that none other goes on from; often itself."""
    found: dict[tuple[int, ...], tuple[int, ...]] = {}
    after: tuple[int, ...] = ()
    for text in sorted(set(reads), reverse=True):  # what goes on from a text comes right before it
        after = after if after[: len(text)] == text else text
        found[text] = after
    return found


def _fitting(texts: Sequence[tuple[int, ...]], most: int) -> Sequence[tuple[int, ...]]:
    """Take the first texts, at least one, of so many tokens at most."""
    total = 0
    for n, text in enumerate(texts):
        total += len(text)
        if n and total > most:
            return texts[:n]
    return texts


@torch.no_grad()
def _read(
    run: Run, place: Path | None, texts: Sequence[tuple[tuple[int, ...], list[Asked]]], passed: Callable[[int], None]
) -> dict[Asked, Answered]:
    """Read texts together, and answer what is asked of each."""
    made = [ids for ids, _ in batches([torch.tensor(text) for text, _ in texts])]  # [B, T] each
    stream = run(made, passed, place)
    answered: dict[Asked, Answered] = {}
    left = iter(texts)
    for states in stream.finish():  # [B, T, H]
        asked = [(row, one) for row, (_, some) in zip(states, left, strict=False) for one in some]
        # states whose next token is of an answer, of each that is asked [a, H]
        following = [row[len(one.read) - len(one.answer) : len(one.read)] for row, one in asked]
        target = torch.tensor([token for _, one in asked for token in one.answer], device=stream.device)
        said, likeliest = predict(stream, torch.cat(following), target)
        sizes = [len(one.answer) for _, one in asked]
        for (_, one), a, b in zip(asked, said.split(sizes), (likeliest == target).split(sizes), strict=True):
            answered[one] = Answered(float(a.double().sum()), bool(b.all()))
    return answered
