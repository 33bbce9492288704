"""Tokenizers and chat templates: how an expert's differ from the base model's is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_models import Make, recipe, warnings

from lazymoe import check
from lazymoe.checkpoint.opening import open_folder
from lazymoe.planning.vocabularies import same_tokens


def tokenizer(folder: Path, *tokens: str, added: tuple[str, ...] = (), template: str = "") -> None:
    """A tokenizer.json with these tokens, in this order."""
    vocab = {token: i for i, token in enumerate(tokens)}
    extra = [{"id": len(vocab) + i, "content": token} for i, token in enumerate(added)]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": extra}))
    if template:
        (folder / "chat_template.jinja").write_text(template)


def test_tokens_that_the_base_lacks(pair: tuple[Path, Path]) -> None:
    tokenizer(pair[0], "a", "b")
    tokenizer(pair[1], "a", "b", added=("<|im_start|>", "<|im_end|>"))
    (warning,) = warnings(check(recipe(pair[0], *pair)))
    assert "experts[1].source_model (expert 2 of 2)" in warning
    assert "2 tokens that the base model lacks (<|im_end|>, <|im_start|>)" in warning


def test_a_vocabulary_in_another_order(pair: tuple[Path, Path]) -> None:
    tokenizer(pair[0], "a", "b")
    tokenizer(pair[1], "b", "a")
    assert "numbers some tokens otherwise" in warnings(check(recipe(pair[0], *pair)))[0]


def test_a_larger_vocabulary(make: Make, pair: tuple[Path, Path]) -> None:
    (warning,) = warnings(check(recipe(pair[0], pair[1], make("large", vocab_size=70))))
    assert "a vocabulary of 70, the base model of 64" in warning


def test_another_chat_template(pair: tuple[Path, Path]) -> None:
    tokenizer(pair[0], "a", template="{{ messages }}")
    tokenizer(pair[1], "a", template="{{ other }}")
    assert "another chat template" in warnings(check(recipe(pair[0], *pair)))[0]


@pytest.mark.parametrize(
    ("theirs", "same"),
    [(("a", "b"), True), (("a",), True), (("a", "b", "c"), True), (("b", "a"), False), (("x", "b"), True), ((), True)],
)
def test_tokens_are_the_same_where_both_have_them(theirs: tuple[str, ...], same: bool, pair: tuple[Path, Path]) -> None:
    tokenizer(pair[0], "a", "b")
    if theirs:
        tokenizer(pair[1], *theirs)
    assert same_tokens(*map(open_folder, pair)) is same
