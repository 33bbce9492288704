"""Prompts from files and data sets: the same texts whatever they lie in, and one clear line when they can't be read."""

from __future__ import annotations

import csv
import json
import os
import tracemalloc
from pathlib import Path

import pytest
from hub_server import Hub

from lazymoe import LazyMoEError, Recipe, check, merge
from lazymoe.recipe.schema import Texts
from lazymoe.recipe.texts import read_prompts

TEXTS = ["def f(x):\n    return x", "Una frase, con «comillas».", 'She said "yes", and left.']


def written(folder: Path, kind: str) -> Path:
    path = folder / f"texts.{kind}"
    if kind == "txt":
        path.write_text("\n\n \n".join(TEXTS) + "\n", encoding="utf-8")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"text": t, "n": 1}) + "\n" for t in TEXTS))
    elif kind == "json":
        path.write_text(json.dumps(TEXTS))
    elif kind == "csv":
        with open(path, "w", newline="", encoding="utf-8") as f:
            csv.writer(f).writerows([["n", "text"], *([i, t] for i, t in enumerate(TEXTS))])
    else:
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table({"n": [1, 2, 3], "text": TEXTS}), path)
    return path


def texts_of(prompts: object) -> list[str]:
    """What the only expert's prompts come to."""
    _, written_out, _ = read_prompts(of(prompts))
    return written_out.experts[0].positive


def of(prompts: object) -> Recipe:
    return Recipe.model_validate(
        {"base_model": "a/b", "experts": [{"source_model": "a/b", "positive_prompts": prompts}]}
    )


@pytest.mark.parametrize("kind", ["txt", "jsonl", "json", "csv", "parquet"])
def test_every_kind_of_file_gives_the_same_texts(tmp_path: Path, kind: str) -> None:
    file = str(written(tmp_path, kind))
    assert texts_of({"file": file}) == TEXTS
    assert texts_of(["First.", {"file": file, "limit": 1}]) == ["First.", TEXTS[0]]


def test_a_data_set_gives_its_training_texts(tmp_path: Path, hub: Hub) -> None:
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("# A set")
    (folder / "data" / "dev.jsonl").write_text('{"body": "not this"}\n')
    (folder / "data" / "train.jsonl").write_text("".join(json.dumps({"body": t}) + "\n" for t in TEXTS))
    hub.add("someone/texts", folder)
    assert texts_of({"dataset": "someone/texts", "field": "body", "limit": 2}) == TEXTS[:2]
    other = {"dataset": "someone/texts", "file": "data/dev.jsonl", "field": "body"}
    assert texts_of(other) == ["not this"]
    with pytest.raises(LazyMoEError, match=r"no file data/x.csv. It has: .*data/train.jsonl"):
        texts_of({"dataset": "someone/texts", "file": "data/x.csv"})


def test_a_merge_pins_the_data_set_and_keeps_the_recipe_short(tmp_path: Path, hub: Hub, demo_models: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    hub.add("someone/pinned", tmp_path / "set")
    expert = {"source_model": str(demo_models / "python"), "positive_prompts": {"dataset": "someone/pinned"}}
    fields = {"base_model": str(demo_models / "base"), "gate_mode": "cheap_embed", "experts": [expert]}
    merge(Recipe.model_validate(fields), tmp_path / "moe")
    (texts,) = Recipe.from_file(tmp_path / "moe" / "recipe.yaml").experts[0].positive_prompts or []
    assert isinstance(texts, Texts)
    assert (texts.dataset or "").startswith("someone/pinned@")
    assert len((texts.dataset or "").partition("@")[2]) == 40


MISTAKES = {
    "absent": ({"file": "no/such.jsonl"}, "no/such.jsonl: it can't be read (No such file or directory)"),
    "unknown kind": ({"file": "texts.docx"}, "'texts.docx' is none of .txt"),
    "no JSON": ({"file": "bad.jsonl"}, "it can't be read"),
    "no field": ({"file": "rows.jsonl"}, "it has no text in a field 'text'. Set 'field' to one of its fields: body."),
    "empty": ({"file": "empty.txt"}, "there is no text in it"),
    "binary": ({"file": "binary.txt"}, "it can't be read"),
    "no data set": ({"dataset": "nobody/nothing"}, "there is no data set on the Hub by the name 'nobody/nothing'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_get_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "texts.docx": b"x",
        "bad.jsonl": b"{",
        "rows.jsonl": b'{"body": "x"}\n',
        "empty.txt": b"\n",
    }.items():
        Path(name).write_bytes(text)
    Path("binary.txt").write_bytes(b"\xff\xfe\x00\xd8")
    prompts, message = MISTAKES[case]
    found = check(of(prompts)).errors
    assert message in str(found[0])
    assert str(found[0]).startswith("experts[0].positive_prompts")


def test_what_a_recipe_may_say_of_texts() -> None:
    text = "base_model: a/b\nexperts:\n- source_model: a/b\n  positive_prompts:\n    file: x.jsonl\n    limit: 8\n"
    assert Recipe.from_yaml(Recipe.from_yaml(text).to_yaml()) == Recipe.from_yaml(text)
    with pytest.raises(
        LazyMoEError, match=r"experts\[0\].positive_prompts\[0\].limt: there is no field 'limt'. Did you mean 'limit'"
    ):
        Recipe.from_yaml(text.replace("limit", "limt"))
    with pytest.raises(LazyMoEError, match="prompts come from a 'file' or a 'dataset'"):
        Recipe.from_yaml(text.replace("    file: x.jsonl\n", ""))


@pytest.mark.parametrize("kind", ["txt", "jsonl", "json", "csv"])
def test_what_is_too_long_is_refused_unread(tmp_path: Path, kind: str) -> None:
    """Of a file of 600 MB, most of it a hole without a line's end, only the beginning is read."""
    file = tmp_path / f"texts.{kind}"
    file.write_text(
        {"txt": "one\n\ntwo ", "jsonl": '"one"\n"two ', "json": '["one", "two ', "csv": 'text\none\n"two '}[kind]
    )
    os.truncate(file, 600_000_000)
    tracemalloc.start()
    with pytest.raises(LazyMoEError) as caught:
        texts_of({"file": str(file)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    [problem] = caught.value.problems
    assert (problem.code, problem.where) == (
        "recipe.texts-long",
        f"experts[0].positive_prompts, {file}",
    )
    line = (
        "the file has more than 64 million letters" if kind == "json" else f"the text that line {LINE[kind]} belongs to"
    )
    assert problem.what.startswith(line)
    assert peak < 200_000_000


LINE = {"txt": 3, "jsonl": 2, "csv": 3}  # where the long text is


@pytest.mark.parametrize("kind", ["txt", "csv"])
def test_a_text_of_many_lines_can_be_too_long_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr("lazymoe.recipe.texts.LONGEST", 1000)
    file, quote = tmp_path / f"texts.{kind}", '"' * (kind == "csv")
    file.write_text("text\n\n" + f"{quote}{'a line' * 10}\n{'another' * 10}{quote}\n\n" * 100)
    assert len(texts_of({"file": str(file)})) == 64
    file.write_text("text\n\n" + quote + "a line\n" * 200 + quote)
    with pytest.raises(LazyMoEError, match=r"the text that line 14[0-9] belongs to"):
        texts_of({"file": str(file)})


def test_all_texts_together_can_be_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazymoe.recipe.texts.MOST", 2 << 20)
    file = tmp_path / "texts.jsonl"
    file.write_text(f'"{"word " * 200_000}"\n' * 4)
    with pytest.raises(LazyMoEError, match=r"its first 3 texts have more than 2 million letters\. Set 'limit' to 2"):
        texts_of({"file": str(file)})
    assert len(texts_of({"file": str(file), "limit": 2})) == 2


def test_rows_of_a_table_can_be_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazymoe.recipe.texts.LONGEST", 10)
    with pytest.raises(LazyMoEError, match="its rows have more than 0 million letters each"):
        texts_of({"file": str(written(tmp_path, "parquet"))})
