"""Prompts from files and data sets: the same texts whatever they lie in, and one clear line when they can't be read."""

from __future__ import annotations

import csv
import json
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
    _, written_out = read_prompts(of(prompts))
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
