"""What comes with the package, found in a checkout and in an installed package alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from lazymoe import LazyMoEError, Recipe
from lazymoe.data import folder, ready_made
from lazymoe.recipe.review import review


def test_ready_made_recipes_are_recipes() -> None:
    known = {
        "beyonder-4x7b-v3", "mini-mixtral-v0.2", "clown-car-4x7b", "upcycling-8x220m", "phixtral-4x2_8",
        "phixtral-2x2_8", "maixtchup-4x7b", "qwen2.5-2x1.5b", "qwen2.5-shared-2x1.5b", "qwen3-4x0.6b",
        "deepseek-3x1.7b", "lora-3x7b", "gemma3-2x4b", "qwen3.5-2x4b", "mistral-small-2x24b",
    }  # fmt: skip
    assert known <= ready_made().keys()


@pytest.mark.parametrize("name", ready_made())
def test_a_ready_made_recipe_is_as_one_should_write_it(name: str) -> None:
    """Its figures on top, and nothing that `review` would say about it; upcycling has equal experts on purpose."""
    errors, warnings = review(Recipe.from_file(ready_made()[name]))
    assert errors == []
    assert all("sparse upcycling" in str(warning) for warning in warnings) if "upcycling" in name else not warnings
    first, second, *_ = ready_made()[name].read_text(encoding="utf-8").splitlines()
    assert first.startswith("# ") and second.startswith("# ") and "parameters" in second


def test_a_recipe_by_name_or_path(tmp_path: Path) -> None:
    named = Recipe.from_file("beyonder-4x7b-v3")
    assert named == Recipe.from_file(folder("recipes") / "beyonder-4x7b-v3.yaml")
    mine = tmp_path / "beyonder-4x7b-v3"
    mine.write_text("base_model: a/b\nexperts: [{source_model: a/b}]")
    assert Recipe.from_file(mine).base_model == "a/b"
    with pytest.raises(LazyMoEError, match="Did you mean 'beyonder-4x7b-v3'"):
        Recipe.from_file("beyonder-4x7b")


def test_a_mistyped_file_is_taken_for_the_one_beside_it(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(LazyMoEError, match=r"Did you mean 'recipe\.yaml'"):
        Recipe.from_file(tmp_path / "recpe.yaml")
