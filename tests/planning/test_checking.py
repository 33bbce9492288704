"""Checks: a prepared recipe against the machine; what is fine passes without a word."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hub_server import Hub
from small_models import recipe, sparse, warnings

from lazymoe import RecipeError, check
from lazymoe.planning.checking import judge
from lazymoe.planning.memory import MODELS, RUNTIME
from lazymoe.planning.prepared import Prepared, prepare


def test_a_good_recipe_passes_in_silence(pair: tuple[Path, Path]) -> None:
    found = check(recipe(pair[0], *pair))
    assert warnings(found) == []
    assert str(found).endswith("This can be merged.")
    assert found.plan is not None
    assert json.loads(json.dumps(found.to_dict()))["parameters"] == found.plan.parameters
    assert found.way and found.way.memory == RUNTIME and found.disk_free > 0


def test_more_experts_per_token_than_experts(pair: tuple[Path, Path]) -> None:
    found = check(recipe(pair[0], *pair, experts_per_token=5))
    assert "5 is more than the number of experts, 2" in warnings(found)[0]
    assert found.plan is not None and found.plan.config["num_experts_per_tok"] == 2


def test_download_volume_and_nothing_downloaded(pair: tuple[Path, Path], hub: Hub) -> None:
    for name, folder in zip(("acme/a", "acme/b"), pair, strict=True):
        hub.add(name, folder)
    found = check(recipe("acme/a", "acme/a", "acme/b"))
    assert found.way and found.way.download == sum((p / "model.safetensors").stat().st_size for p in pair)
    assert warnings(found) == []


def huge(folder: Path, layers: int, ffn: int) -> Prepared:
    """A recipe of models of any size, which take no room themselves."""
    size = {"vocab_size": 8, "hidden_size": 2**16, "intermediate_size": ffn, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 512, "num_key_value_heads": 1}
    model = sparse(folder / "model", {"model_type": "llama", **size, **heads}, shards=layers)
    return prepare(recipe(model, model, model))


def test_a_disk_that_is_too_small_is_told(tmp_path: Path) -> None:
    prepared = huge(tmp_path, layers=8, ffn=2**22)
    [problem] = judge(prepared, tmp_path / "deep" / "out", to_hub=False).errors
    assert (problem.code, problem.where) == ("output.no-room", str(tmp_path))
    assert f"{prepared.sound_plan.nbytes / 1e9:.1f} GB of disk are needed" in problem.what


def test_too_little_memory_is_a_warning_only(tmp_path: Path) -> None:
    prepared = huge(tmp_path, layers=1, ffn=2**22)  # a layer of three terabytes
    assert "output.memory" not in [w.code for w in judge(prepared, tmp_path).warnings]  # random routers hold none
    hidden = prepared.recipe.with_fields(gate_mode="hidden")
    streamed = replace(prepared, recipe=hidden, prompts=hidden)
    found = judge(streamed, tmp_path)
    assert "output.memory" in [w.code for w in found.warnings]
    assert found.ways[0].lacking or found.ways[0].figures()["fits"] == "memory is short"
    assert (
        found.ways[0].memory > RUNTIME + MODELS + prepared.sound_plan.dense_layer_bytes > psutil.virtual_memory().total
    )


def test_what_is_no_recipe_is_raised(tmp_path: Path) -> None:
    with pytest.raises(RecipeError):
        check(tmp_path / "none.yaml")
