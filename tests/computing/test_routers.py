"""Routers: the layer-streamed pass is transformers' own, the vectors are mergekit's, and bad ones are named."""

from __future__ import annotations

import functools
import re
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_models import Make, contents, recipe, tensors_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from lazymoe import Recipe, check, merge
from lazymoe.architectures.dense import LLAMA
from lazymoe.architectures.hosts.mixtral import MIXTRAL
from lazymoe.computing.compute import ROUTERS, _gates, degenerate
from lazymoe.computing.sweep import sweep
from lazymoe.errors import Problem
from lazymoe.forward.tokens import batches
from lazymoe.output.shards import shards_of
from lazymoe.output.writer import Writer
from lazymoe.planning.plan import Plan
from lazymoe.progress import silent

PROMPTS = {
    "python": (["def add(a, b):\n    return a + b", "import os"], ["A sentence in English."]),
    "english": (["The name is looked up when the function is called.", "Note that"], None),
    "unicode": (["05D0 Lo HEBREW LETTER ALEF", "1F41F So FISH\n2603 So SNOWMAN"], ["import this"]),
}


def prompted(demo_models: Path, gate_mode: str) -> Recipe:
    experts = [
        {"source_model": str(demo_models / name), "positive_prompts": positive, "negative_prompts": negative}
        for name, (positive, negative) in PROMPTS.items()
    ]
    return Recipe.model_validate({"base_model": str(demo_models / "base"), "gate_mode": gate_mode, "experts": experts})


def gates_of(given: Recipe) -> torch.Tensor:
    """The routers ``[L, E, H]`` of a recipe, before they are cast."""
    plan = check(given).plan
    assert plan is not None
    if given.gate_mode != "fit":
        return torch.from_numpy(_gates(given, plan, 0, "cpu", silent))
    with (
        tempfile.TemporaryDirectory() as name,
        closing(Writer(shards_of(plan, folder := Path(name), folder, 0), silent)) as writer,
    ):
        gates, _ = sweep(given, plan, writer, folder, "cpu", silent)
    assert gates is not None
    return gates


def degenerate_in(folder: Path, gates: torch.Tensor) -> list[Problem]:
    names = {f"model.layers.{i}.{MIXTRAL.router}": rows.contiguous() for i, rows in enumerate(gates)}
    save_file(names, folder / ROUTERS)
    plan = Plan(MIXTRAL, LLAMA, (), gates.shape[1], 2, {"num_hidden_layers": len(gates)}, (), "base", 1)
    return list(degenerate(plan, folder))


@pytest.mark.parametrize("gate_mode", ["fit", "hidden", "hidden_avg"])
def test_they_do_not_depend_on_how_much_is_read_at_a_time(
    gate_mode: str, demo_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gates_of(prompted(demo_models, gate_mode))
    for module in ("groups", "router_prompts"):
        few = functools.partial(batches, tokens=30)
        monkeypatch.setattr(f"lazymoe.computing.{module}.batches", few)
    monkeypatch.setattr("lazymoe.computing.router_prompts.ROUND", 60)
    monkeypatch.setattr("lazymoe.forward.mixture.BATCH", 50)
    parts = gates_of(prompted(demo_models, gate_mode))
    assert torch.allclose(whole, parts, rtol=1e-3, atol=1e-3 * float(whole.abs().max()))


@pytest.mark.parametrize("gate_mode", ["hidden", "hidden_last", "hidden_avg", "cheap_embed"])
def test_vectors_are_what_mergekit_means(gate_mode: str, demo_models: Path) -> None:
    """Each prompt by itself through the whole model; the modes as mergekit's source has them."""
    given = prompted(demo_models, gate_mode)
    tokenizer = AutoTokenizer.from_pretrained(demo_models / "base")
    model = AutoModelForCausalLM.from_pretrained(demo_models / "base", dtype=torch.float32).eval()

    def vector(prompts: list[str]) -> torch.Tensor:  # [L, H]
        found = []
        for prompt in prompts:
            ids = tokenizer(tokenizer.bos_token + prompt, add_special_tokens=False, return_tensors="pt").input_ids
            with torch.no_grad():
                states = torch.stack(model(ids, output_hidden_states=True).hidden_states[:-1])[:, 0]  # [L, T, H]
            if gate_mode == "cheap_embed":
                found.append(model.model.embed_tokens(ids)[0].sum(0).expand(len(states), -1))
            else:
                found.append(states.mean(1) if gate_mode == "hidden_avg" else states[:, -1])
        if gate_mode == "cheap_embed":
            return torch.nn.functional.normalize(torch.stack(found).sum(0), dim=-1)
        return torch.stack(found).mean(0)

    rows = [vector(pos) - (vector(neg) if neg else 0) for pos, neg in PROMPTS.values()]
    expected = torch.nn.functional.normalize(torch.stack(rows, 1), dim=-1)
    gates = gates_of(given)
    assert gates.shape == expected.shape
    assert (gates - expected).abs().max() < 1e-4


def test_random_modes_have_their_distributions_and_a_seed(make: Make, tmp_path: Path) -> None:
    base = make("base", hidden_size=256, head_dim=64)
    normal = gates_of(recipe(base, *[base] * 8))
    assert normal.std() == pytest.approx(1, abs=0.05)
    uniform = gates_of(recipe(base, *[base] * 8, gate_mode="uniform_random"))
    assert uniform.abs().max() <= 1 / 16
    assert uniform.std() == pytest.approx(1 / 16 / 3**0.5, rel=0.05)
    merge(recipe(base, base, base), tmp_path / "a", seed=1)
    merge(recipe(base, base, base), tmp_path / "b", seed=2)
    assert contents(tmp_path / "a") != contents(tmp_path / "b")


def test_gates_are_written_as_computed(demo_models: Path, tmp_path: Path) -> None:
    given = prompted(demo_models, "hidden")
    merge(given, tmp_path / "moe", device="cpu")
    found = tensors_of(tmp_path / "moe")
    for i, rows in enumerate(gates_of(given)):
        written = found[f"model.layers.{i}.block_sparse_moe.gate.weight"]
        assert torch.equal(written, rows.to(written.dtype))


def test_permuted_experts_give_permuted_routers(demo_models: Path) -> None:
    given = prompted(demo_models, "hidden")
    permuted = given.model_copy(update={"experts": given.experts[::-1]})
    assert torch.allclose(gates_of(permuted), gates_of(given).flip(1), atol=1e-5)


@pytest.mark.parametrize("weights", ["own", "corrected"])
def test_permuted_experts_give_an_exactly_permuted_mixture(weights: str, demo_models: Path, tmp_path: Path) -> None:
    given = prompted(demo_models, "fit").with_fields(expert_weights=weights)
    merge(given, tmp_path / "one", device="cpu")
    merge(given.model_copy(update={"experts": given.experts[::-1]}), tmp_path / "two", device="cpu")
    one, two = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "two")
    for name, tensor in one.items():
        if name.endswith("gate.weight"):
            assert torch.equal(two[name], tensor.flip(0))
        else:
            other = re.sub(r"experts\.(\d+)", lambda found: f"experts.{len(given.experts) - 1 - int(found[1])}", name)
            assert torch.equal(two[other], tensor)


def test_degenerate_routers_are_named(tmp_path: Path) -> None:
    gates = torch.randn(6, 3, 64, generator=torch.Generator().manual_seed(0))
    assert degenerate_in(tmp_path, gates) == []
    gates[[0, 1, 2, 5], 2] = 3 * gates[[0, 1, 2, 5], 0] + 0.01
    (problem,) = degenerate_in(tmp_path, gates)
    assert str(problem).startswith("experts 1 and 3: in layers 0-2 and 5 the router can hardly tell them apart")
    gates[:, 2] = gates[:, 0]
    assert "in all layers" in str(degenerate_in(tmp_path, gates)[0])
