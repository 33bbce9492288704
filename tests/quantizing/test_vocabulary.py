"""Tokenizers: the names by which llama.cpp splits text, tokens and their kinds, the scores of SentencePiece's way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter
from small_tokenizers import bytewise, save, sentencepiece
from tokenizers import Tokenizer, models

from lazymoe import LazyMoEError
from lazymoe.quantizing.vocabulary import GPT2, SPLITS, add_vocabulary


def said(folder: Path, size: int = 400) -> dict[str, Any]:
    """What a file says of a tokenizer, without the keys' common beginning."""
    writer = GGUFWriter(None, "llama")
    add_vocabulary(writer, folder, size)
    return {key.removeprefix("tokenizer."): value.value for key, value in writer.kv_data[0].items()}


@pytest.mark.parametrize(("splits", "whole_words"), SPLITS, ids=SPLITS.values())
def test_how_text_is_split_has_a_name(splits: tuple[str, ...], whole_words: bool, tmp_path: Path) -> None:
    assert said(bytewise(tmp_path / "t", splits, whole_words))["ggml.pre"] == SPLITS[splits, whole_words]


def test_line_ends_may_be_spelled_either_way(tmp_path: Path) -> None:
    (splits, whole_words), name = next(iter(SPLITS.items()))
    spelled = tuple(split.replace(r"\r", "\r").replace(r"\n", "\n") for split in splits)
    assert said(bytewise(tmp_path / "t", spelled, whole_words))["ggml.pre"] == name


def test_tokens_have_their_kinds(tmp_path: Path) -> None:
    found = said(bytewise(tmp_path / "t", (GPT2,)))
    tokenizer = Tokenizer.from_file(str(tmp_path / "t" / "tokenizer.json"))
    n = tokenizer.get_vocab_size()
    assert [tokenizer.token_to_id(text) for text in found["ggml.tokens"][:n]] == list(range(n))
    assert found["ggml.tokens"][n:] == [f"[PAD{i}]" for i in range(n, 400)]
    kinds = dict(zip(found["ggml.tokens"], found["ggml.token_type"], strict=True))
    assert (kinds["<s>"], kinds["<|tool|>"], kinds["plain added"], kinds["a"], kinds["[PAD399]"]) == (3, 3, 4, 1, 5)
    assert (found["ggml.bos_token_id"], found["ggml.eos_token_id"], found["ggml.add_bos_token"]) == (0, 1, True)
    merges = json.loads((tmp_path / "t" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    assert found["ggml.merges"] == [" ".join(pair) for pair in merges]


def test_a_text_begins_with_a_token_only_where_it_does_in_transformers(tmp_path: Path) -> None:
    folder = bytewise(tmp_path / "t", *next(how for how, name in SPLITS.items() if name == "llama-bpe"))
    assert said(folder)["ggml.add_bos_token"] is True
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    assert said(folder)["ggml.add_bos_token"] is False


def test_scores_fall_in_the_order_of_merges(tmp_path: Path) -> None:
    found = said(sentencepiece(tmp_path / "t"))
    merges = json.loads((tmp_path / "t" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    scores = dict(zip(found["ggml.tokens"], found["ggml.scores"], strict=True))
    made = [scores["".join(pair)] for pair in merges]
    assert made == sorted(made, reverse=True)
    assert len(set(made)) == len(made) > 5
    kinds = dict(zip(found["ggml.tokens"], found["ggml.token_type"], strict=True))
    assert (kinds["<s>"], kinds["<0x0A>"], kinds["▁"]) == (3, 6, 1)
    assert found["ggml.model"] == "llama"
    assert found["ggml.add_space_prefix"] is True


@pytest.mark.parametrize("broken", ["unigram", "splits", "json", "fields"])
def test_what_llama_cpp_does_not_know_is_refused_in_one_line(broken: str, tmp_path: Path) -> None:
    folder = bytewise(tmp_path / "t", (r"\p{L}+",))
    if broken == "unigram":
        save(tmp_path / "u", Tokenizer(models.Unigram([("a", 0.0)], 0, False)))
        folder = tmp_path / "u"
    elif broken != "splits":
        (folder / "tokenizer.json").write_text("{" if broken == "json" else '{"model": {"type": "BPE", "vocab": 3}}')
    with pytest.raises(LazyMoEError) as e:
        said(folder)
    [problem] = e.value.problems
    assert problem.code == "output.tokenizer"
    assert "convert_hf_to_gguf.py" in problem.remedy
    assert len(str(problem).splitlines()) == 1
