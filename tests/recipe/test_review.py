"""Reviews: what a recipe alone tells, without a look at any model."""

from __future__ import annotations

from typing import Any

import pytest

from lazymoe import Recipe
from lazymoe.recipe.review import FEW, notes, review

ENOUGH = " ".join(f"word{i}" for i in range(FEW))


def of(*experts: dict[str, Any], **fields: Any) -> Recipe:
    """A recipe of these experts, each a model of its own with prompts of its own unless said otherwise."""
    usual = [{"source_model": f"org/m{i}", "positive_prompts": [f"{i} {ENOUGH}"]} for i in range(len(experts))]
    every = [u | e for u, e in zip(usual, experts, strict=True)]
    return Recipe.model_validate({"base_model": "org/base", "experts": every, **fields})


def codes(recipe: Recipe) -> tuple[list[str], list[str]]:
    errors, warnings = review(recipe)
    return [f"{p.code} {p.where.partition(' ')[0]}" for p in errors], [
        f"{p.code} {p.where.partition(' ')[0]}" for p in warnings
    ]


def test_a_good_recipe_passes_in_silence() -> None:
    assert codes(of({}, {})) == ([], [])


@pytest.mark.parametrize("gate_mode", ["fit", "hidden", "hidden_avg", "hidden_last", "cheap_embed"])
@pytest.mark.parametrize("prompts", [None, []])
def test_prompts_are_missing(gate_mode: str, prompts: list[str] | None) -> None:
    errors, _ = codes(of({}, {"positive_prompts": prompts}, gate_mode=gate_mode))
    assert errors == ["recipe.no-prompts experts[1].positive_prompts"]


@pytest.mark.parametrize("gate_mode", ["random", "uniform_random"])
def test_random_routers_need_no_prompts(gate_mode: str) -> None:
    assert codes(of({"positive_prompts": None}, {"positive_prompts": None}, gate_mode=gate_mode)) == ([], [])


def test_prompts_that_are_only_named_count_as_prompts() -> None:
    assert codes(of({"positive_prompts": {"file": "no/such.txt"}}, {})) == ([], [])


def test_a_name_that_can_be_none() -> None:
    errors, _ = codes(of({"source_model": "/no/such/folder"}, {}, base_model="a b/c"))
    assert errors == ["source.not-found base_model", "source.not-found experts[0].source_model"]


def test_the_same_model_twice() -> None:
    errors, warnings = review(of({"source_model": "org/x"}, {}, {"source_model": "org/x"}))
    assert errors == [] and [p.code for p in warnings] == ["recipe.same-model"]
    assert str(warnings[0]).startswith("experts[2].source_model (expert 3 of 3): this is the same model as expert 1.")


def test_the_same_prompts_twice() -> None:
    same = {"positive_prompts": [ENOUGH]}
    _, (warning,) = review(of(same, same))
    assert warning.where.startswith("experts[1].positive_prompts") and "those of expert 1" in warning.what
    assert codes(of(same, same, gate_mode="random")) == ([], [])
    assert codes(of(same, same | {"negative_prompts": ["others"]})) == ([], [])  # these tell the two apart


def test_prompts_that_contradict_each_other() -> None:
    own = {"positive_prompts": [ENOUGH, "both"], "negative_prompts": ["both", "both"]}
    assert codes(of(own, {}))[1] == ["recipe.contradiction experts[0].negative_prompts"]
    _, warnings = codes(of({"positive_prompts": [ENOUGH, "shared"]}, {"positive_prompts": [f"x {ENOUGH}", "shared"]}))
    assert warnings == ["recipe.contradiction experts[1].positive_prompts"]


def test_few_words() -> None:
    _, (warning,) = review(of({"positive_prompts": ["code", "python"]}, {}))
    assert "2 words say little about what this expert is for" in str(warning)
    _, (warning,) = review(of({"positive_prompts": ["code"]}, {}))
    assert "1 word say" in str(warning)
    assert codes(of({"positive_prompts": ["code"]}, {}, gate_mode="hidden")) == ([], [])


def test_more_experts_per_token_than_experts() -> None:
    _, (warning,) = review(of({}, {}, experts_per_token=3))
    assert (warning.code, warning.where) == ("recipe.top-k", "experts_per_token")


@pytest.mark.parametrize(("field", "value", "plain"), [("residual_scale", 0.5, 1.0), ("noise_scale", 0.1, 0.0)])
def test_what_has_no_sense_on_a_corrected_expert(field: str, value: float, plain: float) -> None:
    assert codes(of({field: plain}, {}, expert_weights="corrected"))[0] == []
    assert codes(of({}, {field: value}, expert_weights="own"))[0] == []
    [problem], _ = review(of({}, {field: value}, expert_weights="corrected"))
    assert problem.code == "recipe.corrected" and problem.where.startswith(f"experts[1].{field}")
    assert f"with {field} {value} it would not" in problem.what
    stays = {field: value, "positive_prompts": None}  # without prompts it isn't corrected
    assert codes(of({}, stays, expert_weights="corrected", gate_mode="random"))[0] == []


def test_corrected_experts_need_prompts() -> None:
    none = {"positive_prompts": None}
    errors, _ = codes(of(none, none, expert_weights="corrected", gate_mode="random"))
    assert errors == ["recipe.no-prompts expert_weights"]
    assert codes(of(none, {}, expert_weights="corrected"))[0] == ["recipe.no-prompts experts[0].positive_prompts"]


def test_what_correcting_costs_is_noted() -> None:
    fields = {"gate_mode": "fit"}
    assert not list(notes(of({}, {}, **fields)))
    [note] = notes(of({}, {}, **fields, expert_weights="corrected"))
    assert "a third of their weights" in note and "slightly worse" in note
