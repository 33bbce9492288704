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
from lazymoe.planning.memory import SHORT

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


def test_short_groups_are_copied_for_the_router_alone(demo_models: Path) -> None:
    """Not a single keyword, nor what is long enough."""
    prompts = ["import os\n" * 700], ["calm sea"], ["A ship came in, and the sea was calm again as it had been."] * 5
    experts = [{"source_model": str(demo_models / "english"), "positive_prompts": p} for p in prompts]
    experts[1]["negative_prompts"] = prompts[2]
    fields = {"base_model": str(demo_models / "base"), "shared_weights": "regmean", "experts": experts}
    for gate_mode, varied in (("fit", [False, False, False, True, False, True]), ("random", [False] * 3)):
        recipe = Recipe.model_validate({**fields, "gate_mode": gate_mode})
        plan = check(recipe).plan
        assert plan
        groups = read_groups(recipe, plan, range(3), "cpu")
        assert [group.varied for group in groups] == varied
        assert all(group.tokens in SHORT for group in groups if group.varied)
        assert groups[0].tokens >= SHORT.stop and groups[1].tokens < SHORT.start
