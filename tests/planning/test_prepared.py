"""Recipes made ready: everything read once, everything that is wrong told at once."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from generic_models import make_family
from hub_server import Hub
from small_models import Make, configure, recipe, rewrite, tensors_of, write_recipe

from lazymoe import LazyMoEError, RecipeError, Texts
from lazymoe.cli import main
from lazymoe.planning.compatibility import uncorrectable
from lazymoe.planning.plan import SHARD_SIZE
from lazymoe.planning.prepared import prepare

OPENED: list[str] = []


def _seen(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open":
        OPENED.append(str(arguments[0]))


@pytest.fixture(scope="module", autouse=True)
def hooked() -> None:
    sys.addaudithook(_seen)  # for good: Python doesn't let go of one


@contextmanager
def opened(folder: Path) -> Iterator[Counter[str]]:
    """Count how often each file below a folder is opened meanwhile."""
    counted: Counter[str] = Counter()
    OPENED.clear()
    yield counted
    below = [Path(name).relative_to(folder) for name in OPENED if name.startswith(f"{folder}/")]
    counted.update(path.as_posix() for path in below)


def test_no_model_is_opened_twice(make: Make, tmp_path: Path) -> None:
    base, expert = make("base"), make("expert", seed=1)
    with opened(tmp_path) as once:
        prepare(recipe(base, expert))
    with opened(tmp_path) as many:
        prepared = prepare(recipe(base, base, expert, base, expert))
    assert many == once
    assert many["base/config.json"] == many["expert/config.json"] == 1
    assert [s.folder.name for s in prepared.sources] == ["base", "base", "expert", "base", "expert"]
    assert len({id(source) for source in prepared.sources}) == 2


def test_a_merge_reads_prompts_and_opens_models_once(make: Make, hub: Hub, tmp_path: Path) -> None:
    """From the command on, which looks at the recipe before it merges."""
    hub.add("acme/once", make("base"))
    (tmp_path / "texts.txt").write_text("One text.\n\nAnother.")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(json.dumps({"text": "A third."}))
    hub.add("acme/texts", tmp_path / "set")
    prompts = [Texts(file=str(tmp_path / "texts.txt")), Texts(dataset="acme/texts")]
    given = recipe("acme/once", "acme/once", "acme/once")
    experts = [e.model_copy(update={"positive_prompts": prompts[i : i + 1]}) for i, e in enumerate(given.experts)]
    file = write_recipe(tmp_path / "recipe.yaml", type(given).from_yaml(given.with_experts(experts).to_yaml()))
    hub.requests.clear()
    with opened(tmp_path) as times:
        assert main(["merge", str(file), str(tmp_path / "moe")]) == 0
    assert times["recipe.yaml"] == times["texts.txt"] == 1
    asked = Counter(f"{r.method} {r.path.partition('?')[0]}" for r in hub.requests)
    assert asked["GET /api/models/acme/once"] == asked["GET /api/datasets/acme/texts"] == 1


def test_options_are_kept(make: Make) -> None:
    folder = make("pickled")
    torch.save(tensors_of(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    given = recipe(folder, folder)
    refused = prepare(given)
    assert [p.code for p in refused.errors] == ["source.pickle"] and not refused.allow_pickle
    prepared = prepare(given, shard_size=10_000, allow_pickle=True)
    assert prepared.allow_pickle and prepared.sound_plan.shard_size == 10_000
    assert prepare(given, allow_pickle=True).sound_plan.shard_size == SHARD_SIZE
    assert prepared.recipe == given


def test_whatever_is_wrong_is_collected(make: Make, tmp_path: Path) -> None:
    base, quantized = make("base"), configure(make("packed"), quantization_config={"quant_method": "gptq"})
    packed = torch.zeros(4, 4, dtype=torch.int32)
    rewrite(quantized, lambda t: t.update({"model.layers.0.mlp.up_proj.qweight": packed}))
    given = recipe(base, tmp_path / "nowhere", quantized, base, gate_mode="cheap_embed")
    prompts = [["A text."], [Texts(file=str(tmp_path / "none.txt"))], []]
    experts = [e.model_copy(update={"positive_prompts": p}) for e, p in zip(given.experts, prompts, strict=True)]
    prepared = prepare(type(given).from_yaml(given.with_experts(experts).to_yaml()))
    codes = ["recipe.texts-unreadable", "recipe.no-prompts", "source.not-found", "source.quantized"]
    assert [p.code for p in prepared.errors] == codes
    assert prepared.plan is None and prepared.sources == ()
    with pytest.raises(LazyMoEError) as raised:
        _ = prepared.sound_plan
    assert raised.value.problems == prepared.errors


def test_what_is_no_recipe_is_raised(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("base_model: a/b\n")
    with pytest.raises(RecipeError, match="experts"):
        prepare(tmp_path / "recipe.yaml")


def test_what_is_missing_counts_once_and_is_fetched(make: Make, hub: Hub) -> None:
    weights = make("model") / "model.safetensors"
    hub.add("acme/fetched", weights.parent)
    prepared = prepare(recipe("acme/fetched", "acme/fetched", "acme/fetched"))
    assert list(prepared.missing.values()) == [weights.stat().st_size]
    prepared.fetch()
    assert prepared.missing == {}
    assert (prepared.sources[0].folder / weights.name).read_bytes() == weights.read_bytes()


def test_experts_whose_networks_end_otherwise_are_not_corrected(tmp_path: Path) -> None:
    base = make_family(tmp_path, "GPT-2")
    given = prepare(recipe(base, base, base))
    dense = given.sound_plan.dense
    assert not list(uncorrectable(given.recipe, given.sources, dense))
    other = replace(dense, ffn={role: place for role, place in dense.ffn.items() if role != "down"})
    [problem] = uncorrectable(given.recipe, given.sources, other)
    assert "don't end in a linear map" in problem.what
