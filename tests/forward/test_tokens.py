"""Texts as tokens: as the tokenizer has them, packed or cut, with nothing lost and nothing between them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import Make
from transformers import AutoTokenizer

from lazymoe import SourceError
from lazymoe.checkpoint.opening import open_folder
from lazymoe.forward.tokens import LENGTH, LIMIT, WINDOW, batches, load_tokenizer, pack, pad, tokenize, windows

TEXTS = ["def add(a, b):", "A sentence, with «marks».", ""]


def test_each_text_begins_as_the_model_expects(demo_models: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_models / "base")
    for text, ids in zip(TEXTS, tokenize(load_tokenizer(open_folder(demo_models / "base")), TEXTS), strict=True):
        assert ids.dtype == torch.int64
        assert ids.tolist() == [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        assert tokenizer.decode(ids[1:]) == text


def test_padding_lies_on_the_right_and_is_not_real() -> None:
    batch, real = pad([torch.tensor([5, 6, 7]), torch.tensor([8])])
    assert batch.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert real.tolist() == [[True, True, True], [True, False, False]]


def test_batches_hold_so_many_tokens_with_padding() -> None:
    sequences = [torch.full((n,), n) for n in (3, 2, 4, 9, 1)]
    found = batches(sequences, tokens=8)
    assert [ids.shape for ids, _ in found] == [(2, 3), (1, 4), (1, 9), (1, 1)]  # one is longer by itself
    assert [row[real].tolist() for ids, mask in found for row, real in zip(ids, mask, strict=True)] == [
        s.tolist() for s in sequences
    ]


def test_windows_hold_the_texts_one_after_the_other(demo_models: Path) -> None:
    tokenizer = load_tokenizer(open_folder(demo_models / "base"))
    texts = ["import os\n" * 100, "The end."]
    expected = [i for text in texts for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert len(expected) > WINDOW
    batch, real = windows(tokenizer, texts)
    assert batch.shape[1] == WINDOW and batch[real].tolist() == expected
    batch, real = windows(tokenizer, texts, tokens=10)
    assert batch[real].tolist() == expected[:10]


def test_a_last_window_of_one_token_is_left_out(demo_models: Path) -> None:
    """There is no next token in it to measure."""
    tokenizer = load_tokenizer(open_folder(demo_models / "base"))
    batch, real = windows(tokenizer, ["import os\n" * 200], tokens=WINDOW + 1)
    assert batch.shape == (1, WINDOW) and real.all()


def test_packed_prompts_hold_every_prompt_and_begin_as_the_model_expects(demo_models: Path) -> None:
    tokenizer = load_tokenizer(open_folder(demo_models / "base"))
    words = ["alpha", "beta", "gamma " * 300]
    sequences = pack(tokenizer, words).sequences
    assert all(s[0] == 0 and len(s) <= LENGTH for s in sequences)
    assert sum(map(len, sequences)) >= 1024
    assert [s.tolist() for s in pack(tokenizer, words).sequences] == [s.tolist() for s in sequences]
    assert pack(tokenizer, []).sequences == []


def test_packs_are_not_longer_than_they_need_be(demo_models: Path) -> None:
    sequences = pack(load_tokenizer(open_folder(demo_models / "base")), ["import os\n" * 5000]).sequences
    assert len(sequences) == LIMIT // LENGTH


def test_a_model_without_a_tokenizer_is_told(make: Make) -> None:
    with pytest.raises(SourceError) as caught:
        load_tokenizer(open_folder(make("model")))
    [problem] = caught.value.problems
    assert problem.code == "source.tokenizer" and "random" in problem.remedy


def test_a_text_longer_than_the_model_reads_is_no_warning(demo_models: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is cut into windows."""
    base = demo_models / "base"
    theirs, ours = AutoTokenizer.from_pretrained(base), load_tokenizer(open_folder(base))
    text = "one " * theirs.model_max_length
    theirs(text)
    assert "longer than the specified maximum" in caplog.text
    caplog.clear()
    assert len(ours(text)["input_ids"]) > ours.model_max_length and not caplog.text
