"""The package as a library: what it offers, that it comes when it is asked for, and what it raises."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from small_models import Make, recipe

import lazymoe

HEAVY = ("torch", "transformers", "numpy", "pydantic", "huggingface_hub", "jinja2", "matplotlib", "ipywidgets")


@pytest.mark.parametrize("name", lazymoe.__all__)
def test_every_name_can_be_loaded_and_is_at_home_where_it_says(name: str) -> None:
    found = getattr(lazymoe, name)
    if name == "__version__":
        assert isinstance(found, str)
        return
    assert callable(found) and inspect.getdoc(found)
    assert getattr(importlib.import_module(found.__module__), name) is found
    assert getattr(lazymoe, name) is found


def test_it_lists_its_names() -> None:
    assert set(lazymoe.__all__) <= set(dir(lazymoe))
    assert sorted(set(lazymoe.__all__)) == sorted(lazymoe.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'marge'"):
        _ = lazymoe.marge


def test_importing_it_loads_nothing_but_itself() -> None:
    script = f"""
import sys, lazymoe
def heavy(): return sorted(set({HEAVY!r}) & set(sys.modules))
assert not heavy(), heavy()
lazymoe.LazyMoEError
assert not heavy(), heavy()
lazymoe.check
assert 'torch' not in heavy() and 'transformers' not in heavy(), heavy()
from lazymoe import *
assert callable(report)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_its_types_are_there_for_type_checkers() -> None:
    assert (Path(lazymoe.__file__).parent / "py.typed").is_file()


BAD = {  # what is called, and the code of what it raises
    "check a recipe that isn't there": (lambda f, moe: lazymoe.check(f / "none.yaml"), "recipe.not-found"),
    "check what is no recipe": (lambda f, moe: lazymoe.check(f / "words.yaml"), "recipe.yaml"),
    "merge a recipe that isn't there": (lambda f, moe: lazymoe.merge(f / "none.yaml", f / "out"), "recipe.not-found"),
    "merge models that aren't there": (lambda f, moe: lazymoe.merge(recipe(f / "no", f / "no"), f / "out"),
                                       "source.not-found"),
    "merge into another folder": (lambda f, moe: lazymoe.merge(recipe(f / "m", f / "m"), f), "output.taken"),
    "merge on no such device": (lambda f, moe: lazymoe.merge(recipe(f / "m", f / "m"), f / "out", device="abacus"),
                                "input.device"),
    "report on no mixture": (lambda f, moe: lazymoe.report(f), "output.unfinished"),
    "report without texts": (lambda f, moe: lazymoe.report(moe), "input.texts"),
    "report on too few texts": (lambda f, moe: lazymoe.report(moe, [["x"]]), "input.texts"),
    "card of no mixture": (lambda f, moe: lazymoe.card(f), "output.unfinished"),
    "card by no template": (lambda f, moe: lazymoe.card(moe, template=f / "none.jinja"), "input.template"),
    "publish no mixture": (lambda f, moe: lazymoe.publish(f, "writer/moe", token="hf_writer"), "output.unfinished"),
    "publish without a token": (lambda f, moe: lazymoe.publish(moe, "writer/moe"), "hub.token"),
    "publish elsewhere": (lambda f, moe: lazymoe.publish(moe, "stranger/moe", token="hf_writer"), "hub.forbidden"),
    "demo in a taken folder": (lambda f, moe: lazymoe.demo(f), "output.taken"),
    "a recipe of nothing": (lambda f, moe: lazymoe.Recipe(), "recipe.missing-field"),
    "a recipe from a folder": (lambda f, moe: lazymoe.Recipe.from_file(f), "recipe.unreadable"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_raised_as_ones_own(
    case: str, make: Make, tmp_path: Path, hub: object, demo_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    call: Callable[[Path, Path], object]
    call, code = BAD[case]
    make("m")
    (tmp_path / "words.yaml").write_text("just words")
    moe = lazymoe.merge(recipe(tmp_path / "m", tmp_path / "m", tmp_path / "m"), tmp_path / "moe").folder
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(lazymoe.LazyMoEError) as caught:
        call(tmp_path, moe)
    assert {problem.code for problem in caught.value.problems} == {code}
    kinds = {"recipe": lazymoe.RecipeError, "source": lazymoe.SourceError, "hub": lazymoe.HubError,
             "output": lazymoe.OutputError}  # fmt: skip
    assert type(caught.value) is kinds.get(code.partition(".")[0], lazymoe.LazyMoEError)
    assert sorted(tmp_path.rglob("*")) == before
