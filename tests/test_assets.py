"""What comes with the package, found in a checkout and in an installed package alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from lazymoe import LazyMoEError, Recipe
from lazymoe.assets import folder, ready_made, recipe_file
from lazymoe.check import review


def test_ready_made_recipes_are_recipes() -> None:
    known = {
        "beyonder-4x7b-v3", "mini-mixtral-v0.2", "clown-car-4x7b", "upcycling-8x220m", "phixtral-4x2_8",
        "phixtral-2x2_8", "maixtchup-4x7b", "qwen2.5-2x1.5b", "qwen2.5-shared-2x1.5b", "qwen3-4x0.6b",
        "deepseek-3x1.7b", "lora-3x7b",
    }  # fmt: skip
    assert known <= ready_made().keys()


@pytest.mark.parametrize("name", ready_made())
def test_a_ready_made_recipe_is_as_one_should_write_it(name: str) -> None:
    """Its figures on top, and nothing that `review` would say about it; upcycling has equal experts on purpose."""
    errors, warnings = review(Recipe.from_yaml(ready_made()[name]))
    assert errors == []
    assert all("sparse upcycling" in str(warning) for warning in warnings) if "upcycling" in name else not warnings
    first, second, *_ = ready_made()[name].read_text(encoding="utf-8").splitlines()
    assert first.startswith("# ") and second.startswith("# ") and "parameters" in second


def test_a_recipe_by_name_or_path(tmp_path: Path) -> None:
    assert recipe_file("beyonder-4x7b-v3") == folder("recipes") / "beyonder-4x7b-v3.yaml"
    mine = tmp_path / "beyonder-4x7b-v3"
    mine.touch()
    assert recipe_file(str(mine)) == mine
    with pytest.raises(LazyMoEError, match="Did you mean 'beyonder-4x7b-v3'"):
        recipe_file("beyonder-4x7b")
