"""What comes with the package, found in a checkout and in an installed package alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from lazymoe import LazyMoEError, Recipe
from lazymoe.assets import folder, ready_made, recipe_file


def test_ready_made_recipes_are_recipes() -> None:
    assert {"beyonder-4x7b-v3", "mini-mixtral-v0.2", "clown-car-4x7b", "upcycling-8x220m"} <= ready_made().keys()
    for path in ready_made().values():
        assert Recipe.from_yaml(path).experts


def test_a_recipe_by_name_or_path(tmp_path: Path) -> None:
    assert recipe_file("beyonder-4x7b-v3") == folder("recipes") / "beyonder-4x7b-v3.yaml"
    mine = tmp_path / "beyonder-4x7b-v3"
    mine.touch()
    assert recipe_file(str(mine)) == mine
    with pytest.raises(LazyMoEError, match="Did you mean 'beyonder-4x7b-v3'"):
        recipe_file("beyonder-4x7b")
