"""Log-likelihoods of answers, of models that don't fit into memory: many questions go through a layer together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lazymoe.forward.head import predict
from lazymoe.forward.stream import Stream, Weights
from lazymoe.forward.tokens import batches

# Sends batches of token ids [B, T] through a model's layers, and tells after each layer how many are done
Run = Callable[[Sequence[Tensor], Callable[[int], None]], Stream]
KEPT = 6  # vectors of hidden size that are kept of a token, at most: states, what the network reads, what comes of it


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
    run: Run, source: Weights, asked: Sequence[Asked], room: int, passed: Callable[[int, int], None]
) -> Iterator[dict[Asked, Answered]]:
    """Work out log-likelihoods, with one reading of the weights for as many questions as there is room for.

    What begins another text isn't read by itself: under causal attention no token sees what follows it. Texts are read
    from the longest to the shortest, so that a batch has little padding and memory is short at once or never.

    Args:
        run: sends tokens through the model.
        source: the model, for its head.
        asked: what is asked, each once.
        room: bytes for the states of all tokens that are read together.
        passed: told after each layer how many times one of all tokens has passed one, and how many of these.

    Yields:
        After each reading of the weights what has come of it.

    Raises:
        SourceError: if a state becomes NaN or infinite, or there is a token that the model doesn't have.
    """
    whole = _whole([one.read for one in asked])
    waiting: dict[tuple[int, ...], list[Asked]] = {}
    for one in asked:
        waiting.setdefault(whole[one.read], []).append(one)
    texts = sorted(waiting, key=lambda text: (-len(text), text))
    done, tokens = 0, sum(map(len, texts))
    width = KEPT * 4 * int(source.config["hidden_size"])
    while texts:
        some = _fitting(texts, max(1, room // width))
        texts, read = texts[len(some) :], sum(map(len, some))

        def step(layers: int, done: int = done, read: int = read) -> None:
            passed(done * layers_of(source) + read * layers, tokens * layers_of(source))

        yield _read(run, source, [(text, waiting[text]) for text in some], step)
        done += read


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
    run: Run, source: Weights, texts: Sequence[tuple[tuple[int, ...], list[Asked]]], passed: Callable[[int], None]
) -> dict[Asked, Answered]:
    """Read texts together, and answer what is asked of each."""
    made = [ids for ids, _ in batches([torch.tensor(text) for text, _ in texts])]  # [B, T] each
    stream = run(made, passed)
    asked = [one for _, some in texts for one in some]
    following: list[Tensor] = []  # states whose next token is of an answer, of each that is asked [a, H]
    left = iter(texts)
    for states in stream.finish():  # [B, T, H]
        for row, (_, some) in zip(states, left, strict=False):
            following += [row[len(one.read) - len(one.answer) : len(one.read)] for one in some]
    target = torch.tensor([token for one in asked for token in one.answer], device=stream.device)
    said, likeliest = predict(stream, torch.cat(following), target)
    sizes = [len(one.answer) for one in asked]
    return {
        one: Answered(float(a.double().sum()), bool(b.all()))
        for one, a, b in zip(asked, said.split(sizes), (likeliest == target).split(sizes), strict=True)
    }
