"""Small tokenizers of the kinds that models have, trained on a few words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lazymoe.quantizing.vocabulary import DIGITS, GPT2

TEXT = ["The quick brown fox can't jump 12345 times,\n\n  I'LL say — naïve façade! Größe 3.14 = π\r\n\tend"]
CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}


def steps(splits: tuple[str, ...]) -> list[Any]:
    """A pre-tokenizer's steps."""
    made: list[Any] = []
    for split in splits:
        if split == DIGITS:
            made.append(pre_tokenizers.Digits(individual_digits=True))
        elif split != GPT2:
            made.append(pre_tokenizers.Split(Regex(split), "isolated"))
    return [*made, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=GPT2 in splits)]


def bytewise(folder: Path, splits: tuple[str, ...], whole_words: bool = False) -> Path:
    """A tokenizer of bytes that splits text so."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole_words))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps(splits))
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>", "</s>", "<|tool|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens(["plain added"])
    return save(folder, tokenizer)


def sentencepiece(folder: Path) -> Path:
    """A tokenizer as Llama 2's: letters, a byte for each that it doesn't know, spaces as ▁."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bytes_ = [f"<0x{n:02X}>" for n in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    fields = json.loads(tokenizer.to_str())
    fields["added_tokens"] = fields["added_tokens"][:3]
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(fields), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    return folder


def save(folder: Path, tokenizer: Tokenizer) -> Path:
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    return folder
