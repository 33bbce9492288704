"""A merge takes no more memory than `check` says, whatever its prompts are; nor does a report take more for many."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_models import Make, write_recipe

from lazymoe import Recipe

# VmHWM and not ru_maxrss, which begins with what the process that started this one has taken
PEAK = """
import re, sys
from pathlib import Path
from lazymoe import Recipe, check, merge, report
recipe, folder = Recipe.from_file(sys.argv[1]), sys.argv[2]
if found := check(recipe).errors:
    print(found[0], file=sys.stderr)
elif Path(folder).exists():
    report(folder, device="cpu")
else:
    merge(recipe, folder, device="cpu")
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(check(recipe).ways[0].memory, 1024 * int(peak))
"""
MARGIN = 1.1
REPORT = 550_000_000  # bytes, of models this small: a report reads 4096 tokens of each domain and is promised nothing
MODES = ("fit", "hidden", "hidden_avg", "hidden_last", "cheap_embed")
SHARED = ("regmean", "average", "base")
SIZE = {"vocab_size": 512, "max_position_embeddings": 512, "hidden_size": 128, "intermediate_size": 512}

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="it is Linux that tells a peak")


def words(n: int, seed: int) -> str:
    return " ".join(f"word{(7 * seed + i) % 10}" for i in range(n))


def prompts(kind: str, expert: int) -> list[str]:
    """Prompts of an expert: two short ones, a thousand, or two of 20,000 tokens and more."""
    numbers = {"few": (2, 10), "many": (1000, 30), "long": (2, 8000)}
    texts, length = numbers[kind]
    return [f"<{i}> {words(length, i + expert)}" for i in range(texts)]


@pytest.fixture
def models(make: Make, demo_models: Path) -> list[Path]:
    folders = [make(f"model{i}", seed=i, std=0.05, **SIZE) for i in range(2)]
    for folder in folders:
        for file in (demo_models / "base").glob("token*"):
            shutil.copy(file, folder)
    return folders


def given(models: list[Path], kind: str, gate_mode: str, shared: str, weights: str = "own") -> Recipe:
    experts = [{"source_model": str(m), "positive_prompts": prompts(kind, i)} for i, m in enumerate(models)]
    fields = {"base_model": str(models[0]), "gate_mode": gate_mode, "shared_weights": shared, "experts": experts}
    return Recipe.model_validate({**fields, "expert_weights": weights})


def measured(recipe: Path, folder: Path) -> tuple[int, int, str]:
    """What is promised for a merge and what it takes in a process of its own, in bytes, and what is said; a report's if
    the folder is there."""
    run = [sys.executable, "-c", PEAK, str(recipe), str(folder)]
    done = subprocess.run(run, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    promised, peak = map(int, done.stdout.split())
    return promised, peak, done.stderr


def hold(recipe: Recipe, folder: Path, *steps: str) -> float:
    """Hold a merge to the promise, and a report to a bound. Gives the share of the promise that the last takes."""
    file = write_recipe(folder / "recipe.yaml", recipe)
    for step in steps:
        promised, peak, _ = measured(file, folder / "moe")
        assert peak < (MARGIN * promised if step == "merge" else REPORT), step
    return peak / promised


@pytest.mark.parametrize(
    ("kind", "gate_mode", "shared", "weights"),
    [("many", "fit", "regmean", "own"),
     *(pytest.param(*case, marks=pytest.mark.slow) for case in (
         ("many", "fit", "regmean", "corrected"), ("few", "random", "base", "corrected"),
         ("many", "hidden", "base", "own"), ("long", "hidden", "base", "own")))],
)  # fmt: skip
def test_a_merge_takes_what_check_says(
    kind: str, gate_mode: str, shared: str, weights: str, models: list[Path], tmp_path: Path
) -> None:
    hold(given(models, kind, gate_mode, shared, weights), tmp_path, "merge")


def test_a_small_merge_is_not_said_to_be_large(models: list[Path], tmp_path: Path) -> None:
    assert hold(given(models, "few", "fit", "regmean"), tmp_path, "merge", "report") > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("gate_mode", MODES)
@pytest.mark.parametrize("kind", ["many", "long"])
def test_every_merge_takes_what_check_says(
    kind: str, gate_mode: str, shared: str, models: list[Path], tmp_path: Path
) -> None:
    hold(given(models, kind, gate_mode, shared), tmp_path, "merge", "report")


def test_a_line_of_600_megabytes_is_not_read(models: list[Path], tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "short"}\n{"text": "')
    os.truncate(texts, 600_000_000)  # a hole
    recipe = given(models, "few", "fit", "base").model_dump()
    recipe["experts"][0]["positive_prompts"] = [{"file": str(texts)}]
    file = write_recipe(tmp_path / "recipe.yaml", Recipe.model_validate(recipe))
    promised, peak, said = measured(file, tmp_path / "moe")
    assert f"{texts}: the text that line 2 belongs to has more than 16 million letters" in said
    assert peak < MARGIN * promised
