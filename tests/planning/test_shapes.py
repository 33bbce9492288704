"""Models of a known shape, without the models: what is planned for them is what is planned with them."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from small_models import recipe, sparse

from lazymoe import Recipe
from lazymoe.data import ready_made
from lazymoe.planning.prepared import prepare
from lazymoe.planning.shapes import SHAPES, imagine
from lazymoe.planning.ways import find_ways

GENERATE = Path(__file__).parents[2] / "docs" / "generate.py"


@pytest.mark.parametrize("shape", [name for name, config in SHAPES.items() if not config.get("tie_word_embeddings")])
def test_a_plan_is_that_of_models_which_are_here(shape: str, tmp_path: Path) -> None:
    models = [sparse(tmp_path / name, SHAPES[shape]) for name in ("base", "one", "two")]
    given = recipe(*models, experts_per_token=1)
    real, imagined = prepare(given).sound_plan, imagine(given, SHAPES[shape], tmp_path).sound_plan
    assert [(o.name, o.dtype, o.shape) for o in imagined.outputs] == [(o.name, o.dtype, o.shape) for o in real.outputs]
    assert imagined.config == real.config


def test_nothing_of_them_is_here(tmp_path: Path) -> None:
    """Each model is brought once, however often a recipe names it."""
    prepared = imagine(recipe("a/b", "a/b", "a/c", "a/b+c/lora"), SHAPES["TinyLlama-1.1B"], tmp_path)
    size = 2 * 1_100_048_384  # parameters of a TinyLlama
    assert sum(prepared.missing.values()) == 2 * size
    assert [way.download for way in find_ways(prepared, prepared.sound_plan, tmp_path)] == [2 * size, 0, 2 * size, 0]


@pytest.mark.parametrize("name", ready_made())
def test_ready_made_recipes_have_the_sizes_that_their_first_lines_say(name: str) -> None:
    given = Recipe.from_file(name)
    shape = runpy.run_path(str(GENERATE))["shape_of"](given)
    plan = imagine(given, SHAPES[shape], Path.cwd()).sound_plan
    said = "".join(ready_made()[name].read_text(encoding="utf-8").splitlines()[:2])
    if match := re.search(r"([\d.]+)B parameters, (?:([\d.]+)B|all of them) active", said):
        assert f"{plan.parameters / 1e9:.1f}" == match[1]
        assert f"{plan.active_parameters / 1e9:.1f}" == (match[2] or match[1])
    else:
        assert "under 2B parameters" in said and plan.parameters < 2e9
