"""Tokenizers and chat templates that are odd or broken: a line for the base model's, a warning for an expert's."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from small_models import recipe

from lazymoe import LazyMoEError, Recipe, check, merge
from lazymoe.errors import Problem

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"
VOCABULARY = {"a": 0, "b": 1, "c": 2}
GOOD = {
    "tokenizer.json": json.dumps({"model": {"vocab": VOCABULARY}, "added_tokens": [{"id": 3, "content": "x"}]}).encode()
}

BROKEN: dict[str, tuple[str, bytes]] = {
    "an added token without a number": (
        "tokenizer.json",
        b'{"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": "x"}]}',
    ),
    "an added token without a text": (
        "tokenizer.json",
        b'{"added_tokens": [{"id": 3, "content": ["x"]}, {"id": "4"}]}',
    ),
    "added tokens that are none": ("tokenizer.json", b'{"model": {}, "added_tokens": {"x": 3}}'),
    "added tokens that are text": ("tokenizer.json", b'{"model": {}, "added_tokens": ["x"]}'),
    "a vocabulary of text": ("tokenizer.json", b'{"model": {"vocab": "abc"}}'),
    "a vocabulary with text for numbers": ("tokenizer.json", b'{"model": {"vocab": {"a": "0"}}}'),
    "a vocabulary with true for a number": ("tokenizer.json", b'{"model": {"vocab": {"a": true}}}'),
    "a list of numbers": ("tokenizer.json", b'{"model": {"vocab": [1, 2]}}'),
    "a list of nothing": ("tokenizer.json", b'{"model": {"vocab": [[], []]}}'),
    "no JSON": ("tokenizer.json", b'{"model": {"vocab": {"a": 0'),
    "no object": ("tokenizer.json", b'["model"]'),
    "nothing": ("tokenizer.json", b""),
    "Latin 1": ("tokenizer.json", b'{"model": {"vocab": {"caf\xe9": 0}}}'),
    "too deep": ("tokenizer.json", b"[" * 100_000),
    "a pointer": ("tokenizer.json", POINTER),
    "a vocab.json of a list": ("vocab.json", b'["a"]'),
    "an added_tokens.json of text": ("added_tokens.json", b'{"x": "3"}'),
    "a config in Latin 1": ("tokenizer_config.json", b'{"chat_template": "caf\xe9"}'),
    "a template in Latin 1": ("chat_template.jinja", b"caf\xe9"),
    "a template that is a pointer": ("chat_template.jinja", POINTER),
}


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def one_line(problem: Problem) -> bool:
    return len(str(problem).splitlines()) == 1 and len(str(problem)) < 500


@pytest.mark.parametrize("case", BROKEN)
def test_an_experts_broken_tokenizer_cannot_be_compared(case: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, expert = pair
    put(base, {} if BROKEN[case][0] == "vocab.json" else GOOD)
    put(expert, dict([BROKEN[case]]))
    for fields in ({}, {"shared_weights": "average"}):
        found = check(recipe(base, base, expert, **fields))
        assert not found.errors
        [warning] = found.warnings
        assert "can't be compared" in warning.what and one_line(warning)
        assert warning.where == "experts[1].source_model (expert 2 of 2)"
    merge(recipe(base, base, expert), tmp_path / "out")


@pytest.mark.parametrize("case", BROKEN)
def test_the_base_models_is_an_error(case: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, expert = put(pair[0], dict([BROKEN[case]])), put(pair[1], GOOD)
    [problem] = check(recipe(base, base, expert)).errors
    assert problem.where == "base_model" and BROKEN[case][0] in problem.what and one_line(problem)
    assert problem.remedy == "Run 'git lfs pull' in that folder." or "pointer" not in case
    with pytest.raises(LazyMoEError):
        merge(recipe(base, base, expert), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("tokenizer.model", POINTER),
        ("tokenizer.model", b""),
        ("generation_config.json", POINTER),
        ("generation_config.json", b"{"),
        ("special_tokens_map.json", b"[]"),
        ("merges.txt", b"caf\xe9"),
        ("additional_chat_templates/tool.jinja", b"caf\xe9"),
    ],
)
def test_the_base_models_other_small_files(name: str, data: bytes, pair: tuple[Path, Path]) -> None:
    put(pair[0], {name: data})
    [problem] = check(recipe(pair[0], *pair)).errors
    assert name in problem.what and one_line(problem)
    assert not check(recipe(pair[1], *pair)).errors, "an expert's are nobody's business"


def test_what_is_whole_passes_in_silence(pair: tuple[Path, Path]) -> None:
    unigram = {"model": {"type": "Unigram", "vocab": [["a", 0.0], ["b", -1.5]]}, "added_tokens": None}
    put(pair[0], {"tokenizer.json": json.dumps(unigram).encode(), "tokenizer.model": b"\x0a\xff"})
    put(pair[1], {"vocab.json": b'{"a": 0}', "added_tokens.json": b'{"b": 1}', "merges.txt": "é".encode()})
    found = check(recipe(pair[0], *pair))
    assert not found.errors and not found.warnings


def test_more_tokens_than_rows(pair: tuple[Path, Path]) -> None:
    base, expert = pair
    tokens = {f"t{i}": i for i in range(70)}
    put(base, {"tokenizer.json": json.dumps({"model": {"vocab": tokens}}).encode()})
    [warning] = [w for w in check(recipe(base, expert)).warnings if w.where == "base_model"]
    assert "70 tokens" in warning.what and "64 rows" in warning.what
    put(
        base, {"tokenizer.json": json.dumps({"model": {"vocab": {"a": 0}}}).encode(), "added_tokens.json": b'{"b": 64}'}
    )
    [warning] = [w for w in check(recipe(base, expert)).warnings if w.where == "base_model"]
    assert "64" in warning.what
    put(base, {"added_tokens.json": b'{"b": 63}'})
    assert not [w for w in check(recipe(base, expert)).warnings if w.where == "base_model"]


def test_an_added_token_counts_too(pair: tuple[Path, Path]) -> None:
    tokens = {"model": {"vocab": {f"t{i}": i for i in range(64)}}, "added_tokens": [{"id": 64, "content": "<|end|>"}]}
    put(pair[0], {"tokenizer.json": json.dumps(tokens).encode()})
    [warning] = [w for w in check(recipe(pair[0], pair[0])).warnings if w.code == "source.tokens"]
    assert "65 tokens" in warning.what and "64 rows" in warning.what


def test_a_token_without_a_row_is_named_where_it_is_met(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Nothing beyond the embeddings is read in its stead."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "hello": 70}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(pair[0] / "tokenizer.json"))
    put(pair[0], {"tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast"}'})
    experts = [
        {"source_model": str(p), "positive_prompts": [text]} for p, text in zip(pair, ("hello", "x"), strict=True)
    ]
    fields = {"base_model": str(pair[0]), "experts": experts}
    for mode in ("cheap_embed", "hidden", "fit"):
        with pytest.raises(LazyMoEError) as e:
            merge(Recipe.model_validate({**fields, "gate_mode": mode}), tmp_path / mode)
        assert "70" in str(e.value) and "64 rows" in str(e.value) and one_line(e.value.problems[0])


SENTENCEPIECE = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02\n\x0c\n\x03<s>\x15\x00\x00\x00\x00\x18\x03"


@pytest.mark.parametrize(
    ("file", "data", "packages"),
    [
        ("tokenizer.model", SENTENCEPIECE, {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", {"tiktoken": "tiktoken"}),
        ("tekken.json", b'{"vocab": []}', {"mistral-common": "mistral_common"}),
    ],
)
def test_the_package_that_a_tokenizer_takes_is_named(
    file: str, data: bytes, packages: dict[str, str], pair: tuple[Path, Path], tmp_path: Path
) -> None:
    lacking = [package for package, module in packages.items() if not _there(module)]
    if not lacking:
        pytest.skip("it is installed here")
    put(pair[0], {file: data})
    experts = [{"source_model": str(p), "positive_prompts": [p.name]} for p in pair]
    given = Recipe.model_validate({"base_model": str(pair[0]), "gate_mode": "hidden", "experts": experts})
    with pytest.raises(LazyMoEError) as e:
        merge(given, tmp_path / "out")
    [problem] = e.value.problems
    assert all(package in problem.what for package in lacking)
    assert f"pip install {' '.join(lacking)}" in problem.remedy


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:
        return False


def test_a_package_that_transformers_names(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    from lazymoe.checkpoint.opening import open_folder
    from lazymoe.forward.tokens import load_tokenizer

    def fail(why: str) -> Callable[..., None]:
        def call(*_: object, **__: object) -> None:
            raise ImportError(why)

        return call

    put(pair[0], GOOD)
    for package, module in (
        ("sentencepiece", "sentencepiece"),
        ("protobuf", "google.protobuf"),
        ("tiktoken", "tiktoken"),
    ):
        if _there(module):
            continue
        why = f"\n requires the {package.title()} library but it was not found in your environment."
        monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail(why))
        with pytest.raises(LazyMoEError, match=f"pip install {package}"):
            load_tokenizer(open_folder(pair[0]))
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail("something else"))
    with pytest.raises(LazyMoEError, match="ImportError"):
        load_tokenizer(open_folder(pair[0]))
