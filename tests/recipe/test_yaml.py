"""YAML as people bring it: read as it is meant, or one line that says where it isn't."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from limits import limited
from small_models import Make

from lazymoe import LazyMoEError, Recipe, RecipeError
from lazymoe.cli import main
from lazymoe.recipe.yaml_text import parse

RECIPE = """base_model: a/b
gate_mode: hidden
experts:
  - source_model: a/b
    positive_prompts:
      - "a text"
  - source_model: c/d
    positive_prompts: [other]
"""
NBSP = "\u00a0"


@pytest.mark.parametrize(
    "text",
    [
        f"```yaml\n{RECIPE}```\n",
        f"\n\n```\n{RECIPE}```",
        f"~~~ yml\n{RECIPE}~~~\nand so on: more words: here",
        f"````yaml\n{RECIPE}````",
        f"```yaml\n{RECIPE}",  # cut
        f"\ufeff{RECIPE}",
        f"\ufeff```yaml\n{RECIPE}```",
        RECIPE.replace("\n", "\r\n"),
        RECIPE.replace("  ", NBSP * 2),
        RECIPE.replace("  ", NBSP * 2).replace("- ", f"-{NBSP}").replace(": ", f":{NBSP}"),
        RECIPE.replace("\n", f"{NBSP}\n{NBSP}\n"),
        RECIPE.replace("  ", NBSP * 2).replace("\n", f"{NBSP}\r\n"),
        RECIPE.replace("  ", "\u2003\u2003"),
    ],
)
def test_what_is_around_a_recipe_does_no_harm(text: str) -> None:
    assert Recipe.from_yaml(text) == Recipe.from_yaml(RECIPE)


def test_a_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(RECIPE.encode("utf-8-sig"))
    assert Recipe.from_file(tmp_path / "recipe.yaml") == Recipe.from_yaml(RECIPE)


def test_what_is_inside_a_prompt_stays_as_it_is() -> None:
    prompts = [f"«{NBSP}Bonjour{NBSP}»{NBSP}: dit-elle", "```python\nprint(1)\n```", "\ufeff", "- a\n- b", "a:\tb"]
    data = {"base_model": "a/b", "experts": [{"source_model": "a/b", "positive_prompts": prompts}]}
    assert Recipe.from_yaml(Recipe.model_validate(data).to_yaml()).experts[0].positive_prompts == prompts
    assert Recipe.from_yaml(json.dumps(data)).experts[0].positive_prompts == prompts
    plain = RECIPE.replace('"a text"', f"Qui est «{NBSP}là{NBSP}»{NBSP}?")
    assert Recipe.from_yaml(plain).experts[0].positive == [f"Qui est «{NBSP}là{NBSP}»{NBSP}?"]


def test_tabs_are_one_line_with_a_remedy_that_works() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(RECIPE.replace("  - source", "\t- source"))
    (problem,) = caught.value.problems
    assert problem.where == "recipe, line 4, column 1" and "spaces" in problem.remedy
    Recipe.from_yaml(RECIPE.replace("  - source", "\t- source").replace("\t", "  "))


def test_lines_are_counted_as_in_the_file() -> None:
    with pytest.raises(RecipeError, match=r"^recipe, line 4, column"):
        Recipe.from_yaml("\n```yaml\nbase_model: a/b\nexperts: ]\n```")


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("base_model: a/b\nbase_model: a/c\n", "line 2", "the key 'base_model' stands here and in line 1 too"),
        ("x: {a: 1, b: {c: 1, 'c': 2}}\n", "line 1", "the key 'c' stands here and in line 1 too"),
        ("l:\n- a: 1\n  b: 2\n  a: 3\n", "line 4", "the key 'a' stands here and in line 2 too"),
        ('{"a": 1,\n "a": 2}', "line 2", "the key 'a' stands here and in line 1 too"),
        ("```yaml\na: 1\na: 1\n```", "line 3", "the key 'a' stands here and in line 2 too"),
    ],
)
def test_a_key_that_stands_twice_is_an_error_with_both_lines(text: str, where: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(text, "recipe")
    (problem,) = caught.value.problems
    assert (problem.code, problem.where, problem.what) == ("recipe.duplicate-key", f"recipe, {where}", said)


def test_every_key_that_stands_twice_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "base_model: a/b\nexperts:\n- source_model: a/b\n  source_model: c/d\nexperts:\n- {source_model: c/d}\n"
    )
    assert main(["check", str(file)]) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.rpartition(": ")[2] for line in told] == [
        "the key 'source_model' stands here and in line 3 too. Keep one of the two.",
        "the key 'experts' stands here and in line 2 too. Keep one of the two.",
    ]


def test_merge_keys_are_no_key_twice() -> None:
    data = parse("a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: [*b, *a], z: 4}\nd: {<<: *a, <<: *b}", "recipe")
    assert data["b"] == {"x": 3, "y": 2} and data["c"] == {"x": 3, "y": 2, "z": 4}


def test_surrogates_are_joined_as_json_joins_them(make: Make, tmp_path: Path) -> None:
    prompts = ["a joke \U0001f9e9", "\U0001f600\U0001f601 é 中"]
    data = {"base_model": "a/b", "experts": [{"source_model": "a/b", "positive_prompts": prompts}]}
    assert "\\ud83e\\udde9" in json.dumps(data)
    assert Recipe.from_yaml(json.dumps(data)).experts[0].positive == prompts
    for half in (r"\ud83e", r"\udde9", r"\udde9\ud83e"):
        with pytest.raises(RecipeError) as caught:
            Recipe.from_yaml(json.dumps(data).replace(r"\ud83e\udde9", half))
        (problem,) = caught.value.problems
        assert problem.where.startswith("recipe, line 1, column") and "one half" in problem.what
    data["experts"] = [{"source_model": "a/b", "positive_prompts": ["\ud83e"]}]
    with pytest.raises(LazyMoEError, match=r"^experts\[0\].positive_prompts\[0\]: it has half"):
        Recipe.model_validate(data)


def bomb(line: str, levels: str = "abcdefghij") -> str:
    lines = ["a: &a [" + ", ".join(["lol"] * 9) + "]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise(levels)]
    return "\n".join([*lines, line.replace("BOMB", f"*{levels[-1]}")])


@pytest.mark.parametrize(
    "line",
    [
        "base_model: BOMB\nexperts: [{source_model: a/b}]",
        "base_model: a/b\nexperts: BOMB",
        "base_model: a/b\nexperts: [{source_model: BOMB}]",
        "base_model: a/b\nexperts: [{source_model: a/b, positive_prompts: BOMB}]",
        "base_model: a/b\nexperts: [{source_model: a/b, noise_scale: BOMB}]",
        "base_model: a/b\nexperts: [{source_model: a/b}]\ndtype: BOMB",
        "base_model: a/b\nexperts: [{source_model: a/b}]\nshared_experts: BOMB",
        "base_model: a/b\nexperts: [{source_model: a/b}]\nexperts_per_token: {x: BOMB}",
        "base_model: {model: BOMB}\nexperts: [{source_model: a/b}]",
        "base_model: {BOMB : a}\nexperts: [{source_model: a/b}]",
    ],
)
def test_a_bomb_of_aliases_is_one_short_line_at_once(line: str) -> None:
    with limited(30), pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(bomb(line))
    (problem,) = caught.value.problems
    assert len(str(problem)) < 300


def test_other_bombs_go_off_harmlessly() -> None:
    with limited(60):
        assert Recipe.from_yaml(bomb(f"{RECIPE}x: BOMB")).origin.passed_over[-1] == "x"
        merged = ["a: &a {k: v}"]
        merged += [
            f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        ]
        assert parse("\n".join(merged), "recipe")["i"] == {"k": "v"}
        for text in ("[" * 5000, "{a: " * 5000, "- " * 5000):
            with pytest.raises(RecipeError, match="this isn't valid YAML"):
                Recipe.from_yaml(text)
        with pytest.raises(RecipeError):
            Recipe.from_yaml("base_model: a/b\nexperts: &e [*e]")


@pytest.mark.parametrize("text", ["x: 2001-99-99", "x: !!int ''", "x: !!bool maybe", "x: !!timestamp soon", "a\x00b"])
def test_whatever_yaml_stumbles_over_is_one_line(text: str) -> None:
    with pytest.raises(RecipeError, match=r"^recipe: this isn't valid YAML") as caught:
        Recipe.from_yaml(text)
    assert len(str(caught.value).splitlines()) == 1


def test_no_key_is_taken_for_something_else() -> None:
    for key in ("self", "cls", "fields", "_origin", "model_config", "__init__"):
        assert Recipe.from_yaml(f"{RECIPE}{key}: 1").origin.passed_over == (key,)
