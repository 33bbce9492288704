"""Copies of short prompts: what may take a token's place, and who reads them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from small_models import Make, rewrite
from stored_models import EMBEDDINGS
from torch import Tensor

from lazymoe import Recipe, check
from lazymoe.checkpoint.opening import open_folder
from lazymoe.checkpoint.source import Source
from lazymoe.computing import variety
from lazymoe.computing.groups import Group, read_groups
from lazymoe.computing.variety import NEAR, REPLACED, Others, copies, nearest, words
from lazymoe.forward.tokens import load_tokenizer, pack
from lazymoe.planning import memory

TOKENS = torch.tensor([70, 3, 70, 11, 199])
SENTENCES = ["A ship came in, and the sea was calm again as it had been."] * 5


def made(make: Make, name: str = "model") -> Others:
    return nearest(open_folder(make(name, vocab_size=200)), TOKENS, "cpu").__getitem__


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
        taken = {int(other) for other in copies([torch.tensor([token] * 2000)], found)[0]} - {token}
        assert taken == set(nearest)


def test_the_part_that_is_replaced(make: Make) -> None:
    [copy] = copies([TOKENS.repeat(1000)], made(make))
    assert (copy != TOKENS.repeat(1000)).float().mean().item() == pytest.approx(REPLACED, abs=0.03)


def test_each_copy_is_another_and_all_are_always_the_same(make: Make) -> None:
    one, two = (copies([TOKENS.repeat(10)] * 3, made(make)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert len({tuple(copy.tolist()) for copy in one}) == 3


def test_alike_or_empty_embeddings_do_no_harm(make: Make) -> None:
    folder = make("model", vocab_size=200)
    for value in (0.0, 1.0):
        rewrite(folder, lambda tensors, value=value: tensors[EMBEDDINGS].fill_(value))
        [copy] = copies([TOKENS], nearest(open_folder(folder), TOKENS, "cpu").__getitem__)
        assert len(copy) == len(TOKENS) and copy.min() >= 0 and copy.max() < 200


def trained(folder: Path, learnt: Sequence[int], tied: bool) -> Source:
    """A model trained on a text of some tokens: how its embeddings move."""

    def train(tensors: dict[str, Tensor]) -> None:
        table, chance = tensors[EMBEDDINGS], torch.Generator().manual_seed(1)
        moved = 0.01 * torch.randn(table.shape, generator=chance)
        others = [i for i in range(len(table)) if i not in learnt]
        if tied:  # against what the head reads
            moved[others] -= 0.02
        else:
            moved[others] = 0
        table += moved.to(table.dtype)

    rewrite(folder, train)
    return open_folder(folder)


@pytest.mark.parametrize("tied", [False, True])
def test_the_words_that_an_expert_has_learnt(make: Make, monkeypatch: pytest.MonkeyPatch, tied: bool) -> None:
    """Whatever the blocks are, and of the most frequent ones alone."""
    monkeypatch.setattr(variety, "ROWS", 64)
    learnt = [*range(3, 500, 31)]
    assert len(learnt) == NEAR + 1
    fields = {"vocab_size": 600, "tie_word_embeddings": tied}
    base, expert = open_folder(make("base", **fields)), trained(make("expert", **fields), learnt, tied)
    monkeypatch.setattr(variety, "WORDS", len(learnt))
    assert sorted(words(base, expert, 600)) == learnt
    monkeypatch.setattr(variety, "FIRST", 16 * NEAR)
    assert {i for i in learnt if i < 16 * NEAR} < set(words(base, expert, 600)) < set(range(16 * NEAR))
    assert words(base, expert, NEAR * NEAR - 1) == [], "too little may be read"


def test_embeddings_that_were_not_trained_tell_nothing(make: Make) -> None:
    base = open_folder(make("base", vocab_size=600))
    assert words(base, base, 600) == []
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "rounded": lambda table: table.copy_((table * 50).round() / 50),
        "noisy": lambda table: table.add_(torch.randn(table.shape, generator=torch.Generator().manual_seed(0)) / 100),
        "broken": lambda table: table.fill_(torch.nan),
    }
    for name, change in changes.items():
        folder = make(name, vocab_size=600)
        rewrite(folder, lambda tensors, change=change: change(tensors[EMBEDDINGS]))
        assert words(base, open_folder(folder), 600) == [], name


def groups_of(base: Path, experts: Sequence[dict[str, object]], **fields: object) -> list[Group]:
    listed = [{**e, "source_model": str(e["source_model"])} for e in experts]
    recipe = Recipe.model_validate({"base_model": str(base), "experts": listed, "gate_mode": "fit", **fields})
    plan = check(recipe).plan
    assert plan
    return read_groups(recipe, plan, range(len(experts)), "cpu")


def test_copies_are_of_the_experts_own_words(
    demo_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keywords too; but what shouldn't reach an expert gets none of its words."""
    monkeypatch.setattr(memory, "PART", 1)
    monkeypatch.setattr(variety, "WORDS", 20)
    base = open_folder(demo_models / "base")
    tokenizer, prompts = load_tokenizer(base), ["calm sea", "ships"]
    given = {t for text in (*prompts, *SENTENCES, "\n") for t in tokenizer(text)["input_ids"]}
    free = [t for t in range(500) if t not in given]
    said = free[:20], free[50:70]
    for number, own in enumerate(said):
        shutil.copytree(demo_models / "base", tmp_path / f"{number}")
        trained(tmp_path / f"{number}", own, base.head not in base.tensors)
    experts = [
        {"source_model": tmp_path / "0", "positive_prompts": prompts, "negative_prompts": SENTENCES},
        {"source_model": tmp_path / "1", "positive_prompts": SENTENCES},
    ]
    groups = {(g.place, g.sign, g.varied): g for g in groups_of(demo_models / "base", experts)}
    assert set(groups) == {(p, s, v) for p, s in ((0, 1), (0, -1), (1, 1)) for v in (False, True)}

    def tokens(*key: object) -> list[int]:
        return [t for ids, real in groups[key].batches for t in ids[real].tolist()]  # type: ignore[index]

    for place, own in enumerate(said):
        plain, copied = tokens(place, 1, False), tokens(place, 1, True)
        new = [t for t in copied if t not in plain]
        assert set(new) <= set(own), "no others take places"
        assert len(new) / len(copied) == pytest.approx(REPLACED, abs=0.05)
        assert abs(len(plain) + len(copied) - 1024) <= 64 + 12, "as near as whole orders may be"
    assert set(tokens(0, -1, True)) - set(tokens(0, -1, False)) - set(said[0])


def test_experts_that_say_the_same_get_what_is_nearest(demo_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As two of one model do."""
    monkeypatch.setattr(memory, "PART", 1)
    experts = [{"source_model": demo_models / "english", "positive_prompts": SENTENCES}] * 2
    base, expert = (open_folder(demo_models / name) for name in ("base", "english"))
    assert words(base, expert, 600)
    asked: list[Tensor] = []
    monkeypatch.setattr("lazymoe.computing.groups.nearest", lambda *a: asked.append(a[1]) or nearest(*a))
    groups_of(demo_models / "base", experts)
    assert asked


def test_there_are_copies_of_short_prompts_where_routers_are_fitted(demo_models: Path) -> None:
    """Not of what is long enough to be read once, nor of keywords where the expert's words aren't known."""
    prompts = ["import os\n" * 700], ["calm sea"], SENTENCES
    experts = [{"source_model": demo_models / "english", "positive_prompts": p} for p in prompts]
    experts[1]["negative_prompts"] = prompts[2]
    packed = [pack(load_tokenizer(open_folder(demo_models / "base")), p) for p in prompts]
    assert [bool(p.again) for p in packed] == [False, True, True]
    found = {}
    for gate_mode in ("fit", "random"):
        groups = groups_of(demo_models / "base", experts, gate_mode=gate_mode, shared_weights="regmean")
        found[gate_mode] = [(g.place, g.sign, g.varied, sum(len(real) for _, real in g.batches)) for g in groups]
    once, keywords, sentences = (len(p.sequences) for p in packed)
    half, copied = sum(map(len, packed[2].orders[::2])), sum(map(len, packed[2].again))
    assert found["fit"] == [
        (0, 1, False, once),
        (1, 1, False, keywords),
        (1, -1, False, half), (1, -1, True, copied),
        (2, 1, False, half), (2, 1, True, copied),
    ]  # fmt: skip
    assert found["random"] == [(0, 1, False, once), (1, 1, False, keywords), (2, 1, False, sentences)]
