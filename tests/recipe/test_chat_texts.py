"""Texts of chats, of lists and of gaps: the same from every kind of file; and where files and blank prompts go."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import Make, tensors_of

from lazymoe import LazyMoEError, Recipe, check, merge
from lazymoe.cli import main
from lazymoe.planning.prepared import prepare
from lazymoe.recipe.texts import read_prompts

OPENAI = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4"},
]
PARTS = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Look at this."},
            {"type": "image", "text": None},
            {"type": "text", "text": "Who is it?"},
        ],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "Ada."}]},
]
SHAREGPT = [{"from": "human", "value": "Hi, who are you?"}, {"from": "gpt", "value": "A test."}]
ROWS: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "messages": (
        [{"messages": OPENAI}, {"messages": OPENAI[1:]}],
        ["Be brief.\nWhat is 2 + 2?\n4", "What is 2 + 2?\n4"],
    ),
    "parts": ([{"messages": PARTS}], ["Look at this.\nWho is it?\nAda."]),
    "conversations": ([{"id": "1", "conversations": SHAREGPT}], ["Hi, who are you?\nA test."]),
    "a call without words": (
        [{"messages": [{"role": "assistant", "content": None}, {"role": "tool", "content": "x"}]}],
        ["x"],
    ),
    "prompt": ([{"prompt": "one", "answer": "1"}, {"prompt": "two", "answer": "2"}], ["one", "two"]),
    "instruction": ([{"instruction": "one", "input": "", "output": "1"}], ["one"]),
    "text first": ([{"prompt": "p", "messages": OPENAI, "text": "t"}], ["t"]),
    "messages before prompt": ([{"prompt": "p", "messages": OPENAI[1:]}], ["What is 2 + 2?\n4"]),
    "nulls": ([{"text": "a"}, {"text": None}, {"text": " "}, {"text": "b"}], ["a", "b"]),
    "a list of texts": ([{"text": ["a", "b"]}, {"text": ["c"]}, {"text": []}], ["a\nb", "c"]),
}


def written(file: Path, rows: list[dict[str, Any]], mark: str = "") -> str:
    if file.suffix == ".parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(rows), file)
    elif file.suffix == ".jsonl":
        file.write_text(mark + "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif file.suffix == ".json":
        file.write_text(mark + json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    else:
        with open(file, "w", newline="", encoding="utf-8") as f:
            f.write(mark)
            table = csv.DictWriter(f, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    return str(file)


def recipe(prompts: object, **fields: object) -> Recipe:
    expert = {"source_model": "a/b", "positive_prompts": prompts}
    return Recipe.model_validate({"base_model": "a/b", "experts": [expert], **fields})


def texts_of(prompts: object) -> list[str]:
    return read_prompts(recipe(prompts))[1].experts[0].positive


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
@pytest.mark.parametrize("case", ROWS)
def test_each_row_becomes_one_text(tmp_path: Path, case: str, kind: str) -> None:
    rows, expected = ROWS[case]
    assert texts_of({"file": written(tmp_path / f"rows.{kind}", rows)}) == expected


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
def test_a_field_that_is_named_is_the_one(tmp_path: Path, kind: str) -> None:
    rows = [{"text": "t", "chosen": OPENAI[1:], "prompt": None}, {"text": "t", "chosen": None, "prompt": "p"}]
    file = written(tmp_path / f"rows.{kind}", rows)
    assert texts_of({"file": file, "field": "chosen"}) == ["What is 2 + 2?\n4"]
    assert texts_of({"file": file, "field": "prompt"}) == ["p"]
    with pytest.raises(
        LazyMoEError, match=r"no text in a field 'messages'. Set 'field' to one of its fields: text, chosen"
    ):
        texts_of({"file": file, "field": "messages"})


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path, kind: str) -> None:
    rows = [{"text": "ä", "n": "1"}, {"text": "", "n": "2"}]
    assert texts_of({"file": written(tmp_path / f"rows.{kind}", rows, "\ufeff")}) == ["ä"]
    (tmp_path / "x.txt").write_text("\ufeffone\n\ntwo", encoding="utf-8")
    assert texts_of({"file": str(tmp_path / "x.txt")}) == ["one", "two"]


@pytest.mark.parametrize("value", [1, {"x": 1}, [1], [{"x": "y"}], True])
def test_what_is_no_text_is_one_line(tmp_path: Path, value: object) -> None:
    with pytest.raises(LazyMoEError, match="it has no text in a field 'text'") as caught:
        texts_of({"file": written(tmp_path / "rows.jsonl", [{"text": value}])})
    assert len(caught.value.problems) == 1


def test_half_a_character_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "cut \\ud83e"}\n{"text": "whole \\ud83e\\udde9"}\n')
    assert texts_of({"file": str(tmp_path / "rows.jsonl")}) == ["cut \ufffd", "whole \U0001f9e9"]


def test_files_lie_beside_the_recipe_or_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    Path("here.txt").write_text("from here")
    Path("both.txt").write_text("not this")
    Path("sub/both.txt").write_text("beside")
    listed = "[{file: here.txt}, {file: ./both.txt}]"
    text = f"base_model: a/b\nexperts: [{{source_model: a/b, positive_prompts: {listed}}}]\n"
    for name in ("sub/recipe.yaml", str(tmp_path / "sub" / "recipe.yaml")):
        Path(name).write_text(text)
        pinned, found, _ = read_prompts(Recipe.from_file(name))
        assert found.experts[0].positive == ["from here", "beside"]
        # the mixture's own recipe lies elsewhere, and names the same files
        monkeypatch.chdir(tmp_path)
        assert read_prompts(Recipe.from_yaml(pinned.to_yaml()))[1].experts[0].positive == ["from here", "beside"]
    assert read_prompts(Recipe.from_yaml(text))[1].experts[0].positive == ["from here", "not this"]
    (tmp_path / "recipe.yaml").write_text(text)
    assert "./both.txt" in read_prompts(Recipe.from_file("recipe.yaml"))[0].to_yaml()


# blank prompts

BLANK = ["", "  \n", "\t"]


@pytest.fixture
def models(make: Make, demo_models: Path) -> list[str]:
    """A base model and two experts with the demo's tokenizer."""
    shape = {"vocab_size": 512, "max_position_embeddings": 512}
    folders = [make(f"m{i}", seed=i, **shape) for i in range(3)]
    for folder in folders:
        for file in (demo_models / "base").glob("token*"):
            (folder / file.name).write_bytes(file.read_bytes())
    return [str(folder) for folder in folders]


def without_bos(folder: str) -> None:
    """Make its tokenizer one that has no token for the beginning of a text."""
    for name in ("tokenizer_config.json", "tokenizer.json"):
        file = Path(folder) / name
        fields = json.loads(file.read_text())
        fields.pop("bos_token", None)
        if "post_processor" in fields:
            fields["post_processor"] = None
        file.write_text(json.dumps(fields))


def of(models: list[str], gate_mode: str, *sides: dict[str, list[str]], **fields: object) -> Recipe:
    experts = [{"source_model": model, **side} for model, side in zip(models[1:], sides, strict=False)]
    return Recipe.model_validate({"base_model": models[0], "gate_mode": gate_mode, "experts": experts, **fields})


def routers(folder: Path) -> np.ndarray:
    tensors = tensors_of(folder)
    return np.stack([t.float().numpy() for name, t in sorted(tensors.items()) if name.endswith("gate.weight")])


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("gate_mode", ["hidden", "hidden_avg", "cheap_embed", "fit"])
def test_blank_prompts_are_dropped(models: list[str], gate_mode: str, bos: bool, tmp_path: Path) -> None:
    if not bos:
        without_bos(models[0])
    plain = [
        {"positive_prompts": ["hello world", "some more"], "negative_prompts": ["x"]},
        {"positive_prompts": ["y z"]},
    ]
    blank = [
        {"positive_prompts": ["", "hello world", " ", "some more"], "negative_prompts": ["x", "\n"]},
        {"positive_prompts": ["y z"]},
    ]
    merge(of(models, gate_mode, *plain), tmp_path / "plain", device="cpu")
    merged = merge(of(models, gate_mode, *blank), tmp_path / "blank", device="cpu")
    assert np.array_equal(routers(tmp_path / "plain"), routers(tmp_path / "blank"))
    told = [str(w) for w in merged.warnings if w.code == "recipe.blank-prompt"]
    assert len(told) == (0 if gate_mode == "fit" else 2)
    assert all("is dropped" in line for line in told)


@pytest.mark.parametrize("gate_mode", ["hidden", "hidden_avg", "hidden_last", "cheap_embed"])
def test_negative_prompts_alone_will_do_in_mergekits_modes(models: list[str], gate_mode: str, tmp_path: Path) -> None:
    sides = [{"positive_prompts": ["chat"]}, {"positive_prompts": BLANK, "negative_prompts": ["code", "maths"]}]
    merged = merge(of(models, gate_mode, *sides), tmp_path / "moe", device="cpu")
    assert {w.code for w in merged.warnings} >= {"recipe.blank-prompt", "recipe.negative-only"}
    positive = [{"positive_prompts": ["chat"]}, {"positive_prompts": ["code", "maths"]}]
    merge(of(models, gate_mode, *positive), tmp_path / "turned", device="cpu")
    rows, turned = routers(tmp_path / "moe"), routers(tmp_path / "turned")
    assert np.array_equal(rows[:, 0], turned[:, 0]) and np.array_equal(rows[:, 1], -turned[:, 1])


@pytest.mark.parametrize(
    ("gate_mode", "side"),
    [
        ("fit", {"positive_prompts": BLANK, "negative_prompts": ["code"]}),
        ("fit", {"positive_prompts": BLANK, "negative_prompts": [" "]}),
        ("hidden", {"negative_prompts": ["code"]}),  # as in mergekit-moe
        ("cheap_embed", {"positive_prompts": [], "negative_prompts": ["code"]}),
    ],
)
def test_too_few_prompts_stay_an_error(models: list[str], gate_mode: str, side: dict) -> None:
    (problem,) = check(of(models, gate_mode, {"positive_prompts": ["chat"]}, side)).errors
    assert (problem.code, problem.where) == ("recipe.no-prompts", "experts[1].positive_prompts (expert 2 of 2)")


def test_blank_prompts_are_no_matter_where_none_are_read(models: list[str]) -> None:
    found = check(of(models, "random", {"positive_prompts": [""]}, {"positive_prompts": [""]}))
    assert (found.errors, found.warnings) == ((), ())


@pytest.mark.parametrize("gate_mode", ["hidden", "hidden_avg", "cheap_embed"])
def test_blank_prompts_alone_stand_for_the_beginning_of_any_text(
    models: list[str], gate_mode: str, tmp_path: Path
) -> None:
    given = of(models, gate_mode, {"positive_prompts": ["chat"]}, {"positive_prompts": ["", " "]})
    assert "recipe.blank-only" in {w.code for w in check(given).warnings} and not check(given).errors
    merge(given, tmp_path / "moe", device="cpu")
    rows = routers(tmp_path / "moe")[:, 1]
    assert np.allclose(np.linalg.norm(rows, axis=-1), 1, atol=1e-2)


def test_a_row_of_zeros_is_no_nan(models: list[str], tmp_path: Path) -> None:
    same = {"positive_prompts": ["chat"], "negative_prompts": ["chat"]}
    for mode in ("hidden", "cheap_embed"):
        merge(of(models, mode, same, {"positive_prompts": ["code"]}), tmp_path / mode, device="cpu")
        assert np.abs(routers(tmp_path / mode)[:, 0]).max() < 1e-6


def test_a_shared_experts_blank_prompts_are_told(models: list[str]) -> None:
    shared = [{"source_model": models[0], "positive_prompts": [""]}]
    sides = [{"positive_prompts": ["chat"]}, {"positive_prompts": ["code"]}]
    given = of(models, "hidden", *sides, shared_experts=shared, architecture="qwen2_moe")
    assert check(given).errors == ()
    told = [w.where for w in check(given).warnings if w.code == "recipe.blank-only"]
    assert told == ["shared_experts[0].positive_prompts"]


@pytest.mark.parametrize("gate_mode", ["hidden", "cheap_embed", "fit"])
def test_prompts_of_no_token_are_one_line(models: list[str], gate_mode: str, tmp_path: Path) -> None:
    """A tokenizer may leave out what it doesn't know: here all but ASCII letters."""
    without_bos(models[0])
    file = Path(models[0]) / "tokenizer.json"
    fields = json.loads(file.read_text())
    fields["normalizer"] = {"type": "Replace", "pattern": {"Regex": "[^a-zA-Z ]"}, "content": ""}
    file.write_text(json.dumps(fields))
    some = of(models, gate_mode, {"positive_prompts": ["中文", "chat with me"]}, {"positive_prompts": ["code of mine"]})
    merge(some, tmp_path / "some", device="cpu")
    assert np.isfinite(routers(tmp_path / "some")).all()
    with pytest.raises(LazyMoEError, match=r"experts\[0\].positive_prompts .*makes no token of these prompts"):
        merge(of(models, gate_mode, {"positive_prompts": ["中文"]}, {"positive_prompts": ["code"]}), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_emoji_of_json_goes_all_the_way(models: list[str], tmp_path: Path) -> None:
    fields = of(
        models, "hidden", {"positive_prompts": ["a joke \U0001f9e9"]}, {"positive_prompts": ["a sum"]}
    ).model_dump()
    (tmp_path / "recipe.yaml").write_text(json.dumps(fields))
    assert main(["merge", str(tmp_path / "recipe.yaml"), str(tmp_path / "moe"), "--quiet"]) == 0
    assert main(["card", str(tmp_path / "moe"), "--quiet"]) == 0


def test_a_finished_mixture_finds_its_texts_again(models: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir("sub")
    Path("sub/chat.txt").write_text("hello you")
    sides = [{"positive_prompts": [{"file": "chat.txt"}]}, {"positive_prompts": ["code"]}]
    Path("sub/recipe.yaml").write_text(of(models, "cheap_embed", *sides).to_yaml())
    merge("sub/recipe.yaml", "moe")
    assert prepare("moe/recipe.yaml").prompts.experts[0].positive == ["hello you"]
