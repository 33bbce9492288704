"""Mistakes in recipes: one typo is one line, with its place and the word that was meant."""

from __future__ import annotations

import pytest

from lazymoe import Recipe, RecipeError
from lazymoe.recipe.mistakes import place

GOOD = """
base_model: org/base
gate_mode: hidden
experts_per_token: 2
experts:
- source_model: org/a
  positive_prompts:
  - A prompt
  - file: texts.txt
    limit: 8
- source_model: org/b
  positive_prompts:
  - Another
shared_experts:
- source_model: org/c
  residual_scale: 0.1
"""
TYPOS = {  # what is written in place of what: where, the code, and what else the line says
    "base_modle: org": ("base_model: org", "base_modle", "unknown-field", "Did you mean 'base_model'?"),
    "gate-mode": ("gate_mode", "gate-mode", "unknown-field", "Did you mean 'gate_mode'?"),
    "hiden": ("hidden", "gate_mode", "unknown-value", "'hiden' isn't a gate_mode. Use one of: fit, hidden,"),
    "\nexperst:": ("\nexperts:", "experst", "unknown-field", "Did you mean 'experts'?"),
    "source_modle: org/b": ("source_model: org/b", "experts[1].source_modle (expert 2 of 2)", "unknown-field",
                           "Did you mean 'source_model'?"),
    "postive_prompts:\n  - Another": ("positive_prompts:\n  - Another",
                                     "experts[1].postive_prompts (expert 2 of 2)", "unknown-field",
                                     "Did you mean 'positive_prompts'?"),
    "source_modle: org/c": ("source_model: org/c", "shared_experts[0].source_modle", "unknown-field",
                           "Did you mean 'source_model'?"),
    "limt": ("limit", "experts[0].positive_prompts[1].limt (expert 1 of 2)", "unknown-field", "Did you mean 'limit'?"),
    "fiel": ("file", "experts[0].positive_prompts[1].fiel (expert 1 of 2)", "unknown-field", "Did you mean"),
    "limit: 0": ("limit: 8", "experts[0].positive_prompts[1].limit (expert 1 of 2)", "wrong-value", "not 0."),
    "per_token: two": ("per_token: 2", "experts_per_token", "wrong-value", "not 'two'."),
    "- 42": ("- A prompt", "experts[0].positive_prompts[0] (expert 1 of 2)", "wrong-type", "Put it in quotes."),
    "source_model: ''": ("source_model: org/b", "experts[1].source_model (expert 2 of 2)", "no-model", "empty"),
    "residual_scale: .nan": ("residual_scale: 0.1", "shared_experts[0].residual_scale", "wrong-value", "finite"),
    "base_model:\n": ("base_model: org/base\n", "base_model", "wrong-type", "this must be text"),
}  # fmt: skip


@pytest.mark.parametrize("typo", TYPOS)
def test_one_typo_is_one_mistake(typo: str) -> None:
    Recipe.from_yaml(GOOD)
    right, where, code, words = TYPOS[typo]
    assert GOOD.count(right) == 1
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(GOOD.replace(right, typo))
    [problem] = caught.value.problems
    assert (problem.where, problem.code) == (where, f"recipe.{code}")
    assert words in str(problem)


def test_all_mistakes_are_told_at_once_with_their_places() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml("base_modle: a/b\nexperts:\n- {source_model: a/b}\n- {positive_prompt: [x]}")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3  # that there is no base_model is the same mistake as the mistyped one
    assert any("base_modle" in line and "Did you mean 'base_model'?" in line for line in lines)
    assert any("experts[1].positive_prompt (expert 2 of 2)" in line for line in lines)
    assert any("experts[1].source_model (expert 2 of 2): this field is missing" in line for line in lines)


def test_python_gets_the_same_lines_as_yaml() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'base_model'"):
        Recipe(base_modle="a/b", experts=[{"source_model": "a/b"}])
    with pytest.raises(RecipeError, match=r"experts: there is no expert in this list"):
        Recipe.model_validate({"base_model": "a/b", "experts": []})


def test_places_count_experts_where_there_are_several() -> None:
    assert place(("experts", 1, "source_model"), 4) == "experts[1].source_model (expert 2 of 4)"
    assert place(("experts", 0, "source_model"), 1) == "experts[0].source_model"
    assert place(("experts",), 4) == "experts"
    assert place(("experts", 0, "positive_prompts", 2, "texts", "limit"), 1) == "experts[0].positive_prompts[2].limit"
