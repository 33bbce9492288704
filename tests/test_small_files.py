"""The small files beside the weights: model cards that state junk, tokenizers of transformers 5 that 4.57 reads too,
and an output folder inside a model's own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from small_models import Make, recipe, write_recipe
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors, trainers

from lazymoe import LazyMoEError, card, merge
from lazymoe.checkpoint.opening import open_folder
from lazymoe.cli import main
from lazymoe.output.tokenizer_config import carried

LANGUAGES: dict[str, list[str]] = {
    "no": ["no"],
    "false": ["no"],
    "[en, no]": ["en", "no"],
    "true": [],
    "yes": [],
    "3": [],
    "1.5": [],
    ".nan": [],
    "null": [],
    "''": [],
    "[]": [],
    "{en: 1}": [],
    "{}": [],
    "2024-01-01": [],
    "[true, 3, null, {a: b}, [en], '']": [],
    "[de, 3, fr]": ["de", "fr"],
    "en": ["en"],
    "!!python/object:os.system x": [],
    "!!set {en}": [],
    "!!binary aGVsbG8=": [],
}
LICENSES: dict[str, str | None] = {
    "apache-2.0": "apache-2.0",
    "MIT": "mit",
    "[apache-2.0, mit]": "apache-2.0",
    "3": None,
    "true": None,
    "no": None,
    "null": None,
    "[]": None,
    "[3]": None,
    "[[mit]]": None,
    "{name: mit}": None,
    "2024-01-01": None,
    "other\nlicense_name: Own": "own",
    "[other]\nlicense_name: [Own]": "own",
    "other\nlicense_name: 3": None,
    "other\nlicense_name: {a: b}": None,
    "other": None,
}


def carded(folder: Path, text: str) -> Path:
    (folder / "README.md").write_text(f"---\n{text}\n---\n")
    return folder


@pytest.mark.parametrize("language", LANGUAGES)
def test_languages_are_read_defensively(language: str, make: Make) -> None:
    assert open_folder(carded(make("model"), f"language: {language}")).languages == LANGUAGES[language]


def test_languages_in_a_list_of_lines(make: Make) -> None:
    assert open_folder(carded(make("model"), "language:\n- no\n- en\n-\n- 1")).languages == ["no", "en"]


@pytest.mark.parametrize("license", LICENSES)
def test_licences_are_read_defensively(license: str, make: Make) -> None:
    assert open_folder(carded(make("model"), f"license: {license}")).license == LICENSES[license]


@pytest.mark.parametrize(
    "text",
    ["language: no", "language: true\nlicense: 3", "license: {a: b}\nlanguage: {c: d}\nbase_model: 3", "- a\n- b", "x"],
)
def test_a_mixture_of_models_with_such_cards(text: str, make: Make, tmp_path: Path) -> None:
    base, expert, out = carded(make("base"), text), carded(make("expert", seed=1), text), tmp_path / "out"
    for _ in range(2):  # and again
        merge(recipe(base, base, expert), out)
    told = json.loads((out / "lazymoe.json").read_text())["sources"][0]
    assert told["languages"] == (["no"] if text == "language: no" else [])
    assert card(out)


@pytest.mark.parametrize(
    "data", [b"---\nlanguage: \xff\n---\n", b"---\na: [\n---\n", b"---\n? {a: b}\n: c\n---\n", b"---\n" + b"[" * 9999]
)
def test_cards_that_are_no_cards(data: bytes, make: Make) -> None:
    folder = make("model")
    (folder / "README.md").write_bytes(data)
    source = open_folder(folder)
    assert (source.license, source.languages, source.made_from) == (None, [], None)


# an output folder inside a model's own


@pytest.mark.parametrize("place", ["moe", "deep/moe", ".hidden", "additional_chat_templates"])
def test_out_below_the_base_model(place: str, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, expert = make("base"), make("expert", seed=1)
    file = write_recipe(tmp_path / "recipe.yaml", recipe(base, base, expert))
    for folder in (base, expert):
        for _ in range(3):
            assert main(["merge", str(file), str(folder / place)]) == 0, capsys.readouterr()
    assert (base / place / "config.json").is_file()


def test_small_files_are_those_at_the_top(make: Make) -> None:
    folder = make("model")
    source, before = open_folder(folder), open_folder(folder).fingerprint
    for place in ("sub", "sub/additional_chat_templates", "additional_chat_templates/sub", ".git"):
        (folder / place).mkdir(parents=True)
        for name in ("tokenizer.json", "x.index.json", "config.json", "chat_template.jinja"):
            (folder / place / name).write_text("{}")
    assert open_folder(folder).fingerprint == before
    (folder / "additional_chat_templates" / "tool.jinja").write_text("x")
    (folder / "tokenizer.json").write_text("{}")
    assert source.files(("tokenizer.json", "additional_chat_templates/*.jinja")) == [
        "additional_chat_templates/tool.jinja",
        "tokenizer.json",
    ]
    assert open_folder(folder).fingerprint != before


# tokenizers that transformers 5 has saved

TEXT = "a <|a|> hello <|b|>world<image> foo"
USE = """
import json, sys, transformers
transformers.logging.set_verbosity_error()
found = {}
for folder in sys.argv[1:]:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = tokenizer(TEXT)["input_ids"]
        found[folder] = [ids, sorted(tokenizer(TEXT)), tokenizer.decode(ids, skip_special_tokens=True)]
    except Exception as e:
        found[folder] = f"{type(e).__name__}: {e}"
print(json.dumps(found))
"""
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
Fast = transformers.PreTrainedTokenizerFast


def made(**fields: Any) -> Any:
    """A small tokenizer of transformers 5's general class."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(["hello world " * 9], trainer)
    if post := fields.pop("post", None):
        raw.post_processor = processors.TemplateProcessing(single=post, special_tokens=[("<s>", 1), ("</s>", 2)])
    return Fast(tokenizer_object=raw, **NAMED, **fields)


def extra(*tokens: Any, **fields: Any) -> Callable[[Path], Any]:
    def call(_: Path) -> Any:
        tokenizer = made(**fields)
        tokenizer.add_special_tokens({"extra_special_tokens": list(tokens)})
        return tokenizer

    return call


def of_class(name: str, **fields: Any) -> Callable[[Path], Any]:
    """One that transformers 5 has loaded and saved as a class of its own."""

    def call(folder: Path) -> Any:
        made(**fields).save_pretrained(folder)
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": name}))
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"extra_special_tokens": ["<|a|>", "<|b|>"]})
        return tokenizer

    return call


TOKENIZERS: dict[str, Callable[[Path], Any]] = {
    "plain": lambda _: made(),
    "begins": lambda _: made(post="<s> $A"),
    "extra": extra("<|a|>", "<|b|>"),
    "extra that strips": extra(AddedToken("<|a|>", lstrip=True, rstrip=True, special=True), "<|b|>"),
    "extra by the old name": lambda _: made(additional_special_tokens=["<|a|>"]),
    "named": lambda _: made(extra_special_tokens={"image_token": "<image>", "boi_token": "<|b|>"}),
    "named and extra": extra("<|a|>", extra_special_tokens={"image_token": "<image>"}),
    "a template": extra("<|a|>", chat_template="{{ messages }}"),
    "templates": extra("<|a|>", chat_template={"default": "{{ messages }}", "tool": "{{ tools }}"}),
    **{
        name: of_class(name)
        for name in (
            "LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "Qwen2Tokenizer", "GPT2Tokenizer",
            "GemmaTokenizer", "CohereTokenizer", "GPTNeoXTokenizer", "CodeGenTokenizer",
        )
    },
    "Gemma that begins": of_class("GemmaTokenizer", post="<s> $A"),
    "Cohere that ends": of_class("CohereTokenizer", post="<s> $A </s>"),
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Each tokenizer as transformers 5 saves it, and as a mixture gets it."""
    if int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("this transformers is none that needs it")
    folders = {}
    for name, make_it in TOKENIZERS.items():
        saved, out = (tmp_path_factory.mktemp(part) for part in ("saved", "out"))
        tokenizer = make_it(tmp_path_factory.mktemp("scratch"))
        tokenizer.save_pretrained(saved)
        tokenizer.save_pretrained(out)
        config = out / "tokenizer_config.json"
        tokens = json.loads((out / "tokenizer.json").read_text())
        config.write_bytes(carried(config.read_bytes(), tokens, False))
        folders[name] = saved, out
    return folders


def loaded(python: str, folders: list[Path]) -> dict[str, Any]:
    done = subprocess.run([python, "-c", f"TEXT = {TEXT!r}\n{USE}", *map(str, folders)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_what_is_written_means_the_same_to_transformers_5(written: dict[str, tuple[Path, Path]]) -> None:
    found = loaded(sys.executable, [folder for pair in written.values() for folder in pair])
    for name, (saved, out) in written.items():
        assert found[str(saved)] == found[str(out)], name
        assert isinstance(found[str(out)], list), name


def test_and_to_transformers_4(written: dict[str, tuple[Path, Path]], request: pytest.FixtureRequest) -> None:
    python = request.config.getoption("transformers4")
    if not python:
        pytest.skip("no --transformers4")
    ours = loaded(sys.executable, [out for _, out in written.values()])
    assert loaded(python, [out for _, out in written.values()]) == ours


def test_the_list_goes_by_the_name_that_both_know(make: Make, tmp_path: Path) -> None:
    base = make("base", vocab_size=400)
    extra("<|a|>", "<|b|>")(base).save_pretrained(base)
    before = json.loads((base / "tokenizer_config.json").read_text())
    merge(recipe(base, base, base), tmp_path / "out")
    fields = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert "extra_special_tokens" not in fields
    assert fields["additional_special_tokens"] == ["<|a|>", "<|b|>"]
    same = before.keys() & fields.keys() - {"tokenizer_class"}
    assert {key: fields[key] for key in same} == {key: before[key] for key in same}


@pytest.mark.parametrize(
    "fields",
    [
        {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True},
        {"tokenizer_class": "Qwen2Tokenizer", "additional_special_tokens": ["<|a|>"]},
        {"tokenizer_class": "PreTrainedTokenizerFast", "extra_special_tokens": {"image_token": "<image>"}},
        {"chat_template": '{"extra_special_tokens": ["x"]}'},
        [1],
        None,
    ],
)
def test_others_stay_as_they_are(fields: object) -> None:
    for indent in (None, 4):
        data = json.dumps(fields, indent=indent).encode()
        assert carried(data, {"post_processor": None}, False) == data
    assert carried(b"caf\xe9 {", {}, False) == b"caf\xe9 {"


def test_both_lists_become_one() -> None:
    data = json.dumps(
        {"extra_special_tokens": ["a", "b"], "additional_special_tokens": ["b", {"content": "c"}]}
    ).encode()
    assert json.loads(carried(data, {}, False)) == {"additional_special_tokens": ["a", "b", {"content": "c"}]}


@pytest.mark.parametrize("post", [3, "x", {"processors": 3}, {"processors": [3]}, {"single": 3}, {"single": [3, None]}])
def test_a_post_processor_of_junk_stops_no_merge(post: object, make: Make, tmp_path: Path) -> None:
    base = make("base")
    (base / "tokenizer.json").write_text(json.dumps({"post_processor": post}))
    (base / "tokenizer_config.json").write_text(
        json.dumps({"backend": "tokenizers", "tokenizer_class": "GemmaTokenizer"})
    )
    merge(recipe(base, base, base), tmp_path / "out")


def test_nothing_is_written_where_a_small_file_of_the_base_is_broken(make: Make, tmp_path: Path) -> None:
    base = make("base")
    (base / "tokenizer_config.json").write_bytes(b"caf\xe9")
    with pytest.raises(LazyMoEError, match="isn't UTF-8"):
        merge(recipe(base, base, base), tmp_path / "out")
    assert not (tmp_path / "out").exists()
