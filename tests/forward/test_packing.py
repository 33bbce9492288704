"""Packed prompts: all of them as long as they fit, else a part from all over them, and a word about it."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_models import Make

from lazymoe import Recipe, merge
from lazymoe.checkpoint.opening import open_folder
from lazymoe.errors import Problem
from lazymoe.forward.tokens import LENGTH, LIMIT, load_tokenizer, pack

SHAPE = {"vocab_size": 512, "max_position_embeddings": 512}


@pytest.fixture
def tokenizer(demo_models: Path) -> Any:
    return load_tokenizer(open_folder(demo_models / "base"))


def numbered(n: int, words: int = 30) -> list[str]:
    return [f"<{i}> " + " ".join(f"word{(i * 7 + j) % 10}" for j in range(words)) for i in range(n)]


def length(tokenizer: Any, texts: list[str]) -> int:
    return sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)


def before(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """As packing was before it chose from all over the texts."""
    import random

    line, start = tokenizer("\n", add_special_tokens=False)["input_ids"], [tokenizer.bos_token_id]
    pieces = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        pieces += [ids[i : i + LENGTH - 1] for i in range(0, len(ids), LENGTH - 1)]
    order, shuffle, sequences = list(range(len(pieces))), random.Random(0), []
    for _ in range(8 if pieces else 0):
        current: list[int] = []
        for i in order:
            if current and len(current) + len(line) + len(pieces[i]) > LENGTH - 1:
                sequences.append(start + current)
                current = []
            current = current + (line if current else []) + pieces[i]
        sequences.append(start + current)
        if sum(map(len, sequences)) >= 1024:
            break
        shuffle.shuffle(order)
    return sequences[: LIMIT // LENGTH]


@pytest.mark.parametrize("n", [0, 1, 3, 10, 40, 90])
def test_few_prompts_are_packed_as_ever(tokenizer: Any, n: int) -> None:
    for words in (1, 10, 30):
        texts = numbered(n, words)
        if length(tokenizer, texts) < LIMIT:
            assert [s.tolist() for s in pack(tokenizer, texts)] == before(tokenizer, texts)


def test_of_many_prompts_a_part_from_all_over_them_is_taken(tokenizer: Any) -> None:
    texts = numbered(400)
    assert length(tokenizer, texts) > 2 * LIMIT
    sequences = pack(tokenizer, texts)
    assert len(sequences) <= LIMIT // LENGTH and all(len(s) <= LENGTH for s in sequences)
    assert sum(map(len, sequences)) > 0.7 * LIMIT
    read = "\n".join(tokenizer.decode(s) for s in sequences)
    used = [i for i in range(400) if f"<{i}>" in read]
    assert used[0] == 0 and used[-1] > 390
    gaps = [b - a for a, b in itertools.pairwise(used)]
    assert max(gaps) - min(gaps) <= 1
    assert [s.tolist() for s in pack(tokenizer, texts)] == [s.tolist() for s in sequences]


def test_one_long_text_is_read_from_all_over_it_too(tokenizer: Any) -> None:
    sequences = pack(tokenizer, [" ".join(numbered(500))])
    read = "".join(tokenizer.decode(s) for s in sequences)
    assert "<1>" in read and any(f"<{i}>" in read for i in range(485, 500))


def said(models: Path, make: Make, out: Path, gate_mode: str, prompts: list[str], **fields: object) -> list[Problem]:
    folders = [make(f"m{i}", seed=i, **SHAPE) for i in range(2)]
    for folder in folders:
        for file in (models / "base").glob("token*"):
            shutil.copy(file, folder)
    experts = [
        {"source_model": str(folders[0]), "positive_prompts": prompts, "negative_prompts": ["no"]},
        {"source_model": str(folders[1]), "positive_prompts": ["Something else altogether."]},
    ]
    given = {"base_model": str(folders[0]), "gate_mode": gate_mode, "experts": experts, **fields}
    found = merge(Recipe.model_validate(given), out, device="cpu").warnings
    return [problem for problem in found if problem.code == "recipe.long-prompts"]


def test_what_is_left_out_is_said(demo_models: Path, make: Make, tmp_path: Path, tokenizer: Any) -> None:
    texts = numbered(150)
    (problem,) = said(demo_models, make, tmp_path / "moe", "fit", texts)
    assert problem.where == "experts[0].positive_prompts (expert 1 of 2)"
    used = sum(map(len, pack(tokenizer, texts)))
    assert problem.what.startswith(f"about {round(used, -2)} of their {length(tokenizer, texts)} tokens are used")
    assert "taken evenly from all of them" in problem.what


def test_what_is_cut_below_the_limit_is_said_too(demo_models: Path, make: Make, tmp_path: Path, tokenizer: Any) -> None:
    texts = [" ".join(["word"] * words) for words in [*[45] * 40, 3]]
    each = length(tokenizer, texts[:1])
    assert LENGTH / 2 < each < LENGTH and length(tokenizer, texts) < LIMIT
    (problem,) = said(demo_models, make, tmp_path / "moe", "fit", texts)
    assert "the first ones" in problem.what


@pytest.mark.parametrize("gate_mode", ["fit", "hidden", "cheap_embed"])
def test_prompts_that_are_all_used_get_no_word(demo_models: Path, make: Make, tmp_path: Path, gate_mode: str) -> None:
    assert said(demo_models, make, tmp_path / "moe", gate_mode, numbered(3)) == []


def test_a_prompt_longer_than_the_context_is_told(demo_models: Path, make: Make, tmp_path: Path) -> None:
    texts = ["short", " ".join(["word"] * 400), " ".join(["else"] * 500)]
    (problem,) = said(demo_models, make, tmp_path / "hidden", "hidden", texts)
    assert problem.what == "2 of these prompts are longer than the base model's context, 512 tokens"
    assert said(demo_models, make, tmp_path / "cheap", "cheap_embed", texts) == []  # which has no context


def test_merged_weights_read_no_more_of_the_prompts(demo_models: Path, make: Make, tmp_path: Path) -> None:
    (problem,) = said(demo_models, make, tmp_path / "moe", "cheap_embed", numbered(150), shared_weights="regmean")
    assert "tokens are used" in problem.what
