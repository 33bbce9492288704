"""Copies of short prompts: what may take a token's place, and who reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import Make, rewrite
from stored_models import EMBEDDINGS

from lazymoe import Recipe, check
from lazymoe.checkpoint.opening import open_folder
from lazymoe.computing import variety
from lazymoe.computing.groups import read_groups
from lazymoe.computing.variety import NEAR, REPLACED, Variety
from lazymoe.forward.tokens import load_tokenizer, pack

TOKENS = torch.tensor([70, 3, 70, 11, 199])


def made(make: Make, name: str = "model") -> Variety:
    return Variety(open_folder(make(name, vocab_size=200)), TOKENS, "cpu")


def test_a_token_gives_way_to_the_nearest_alone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a plain comparison of all with all; whatever the blocks are, and with none of the rare ones."""
    monkeypatch.setattr(variety, "ROWS", 7)
    monkeypatch.setattr(variety, "AT_ONCE", 2)
    monkeypatch.setattr(variety, "COMMON", 150)
    table = open_folder(make("model", vocab_size=200)).load(EMBEDDINGS).double()
    table /= table.norm(dim=1, keepdim=True)
    found = made(make)
    for token in set(TOKENS.tolist()):
        cosines = table[:150] @ table[token]
        nearest = [i for i in cosines.argsort(descending=True).tolist() if i != token][:NEAR]
        taken = {int(other) for other in found.copies([torch.tensor([token] * 2000)])[0]} - {token}
        assert taken == set(nearest)


def test_the_part_that_is_replaced(make: Make) -> None:
    [copy] = made(make).copies([TOKENS.repeat(1000)])
    assert (copy != TOKENS.repeat(1000)).float().mean().item() == pytest.approx(REPLACED, abs=0.03)


def test_each_copy_is_another_and_all_are_always_the_same(make: Make) -> None:
    one, two = (made(make).copies([TOKENS.repeat(10)] * 3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert len({tuple(copy.tolist()) for copy in one}) == 3


def test_alike_or_empty_embeddings_do_no_harm(make: Make) -> None:
    folder = make("model", vocab_size=200)
    for value in (0.0, 1.0):
        rewrite(folder, lambda tensors, value=value: tensors[EMBEDDINGS].fill_(value))
        [copy] = Variety(open_folder(folder), TOKENS, "cpu").copies([TOKENS])
        assert len(copy) == len(TOKENS) and copy.min() >= 0 and copy.max() < 200


def test_every_second_order_is_of_copies_for_the_router_alone(demo_models: Path) -> None:
    """Not of what is long enough to be read once, nor of keywords."""
    prompts = ["import os\n" * 700], ["calm sea"], ["A ship came in, and the sea was calm again as it had been."] * 5
    experts = [{"source_model": str(demo_models / "english"), "positive_prompts": p} for p in prompts]
    experts[1]["negative_prompts"] = prompts[2]
    fields = {"base_model": str(demo_models / "base"), "shared_weights": "regmean", "experts": experts}
    orders = [pack(load_tokenizer(open_folder(demo_models / "base")), p).orders for p in prompts]
    assert [len(several) > 1 for several in orders] == [False, True, True]
    found = {}
    for gate_mode in ("fit", "random"):
        recipe = Recipe.model_validate({**fields, "gate_mode": gate_mode})
        plan = check(recipe).plan
        assert plan
        groups = read_groups(recipe, plan, range(3), "cpu")
        found[gate_mode] = [(g.place, g.sign, g.varied, sum(len(real) for _, real in g.batches)) for g in groups]
    whole, [keyword, sentences] = len(orders[0][0]), [
        (sum(map(len, several[::2])), sum(map(len, several[1::2]))) for several in orders[1:]
    ]  # fmt: skip
    assert found["fit"] == [
        (0, 1, False, whole),
        (1, 1, False, sum(keyword)),
        (1, -1, False, sentences[0]), (1, -1, True, sentences[1]),
        (2, 1, False, sentences[0]), (2, 1, True, sentences[1]),
    ]  # fmt: skip
    assert found["random"] == [(0, 1, False, whole), (1, 1, False, sum(keyword)), (2, 1, False, sum(sentences))]
