"""Fitted routers, on data made so that the right answer is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import Make, tensors_of

from lazymoe import Recipe, merge
from lazymoe.checkpoint.opening import open_folder
from lazymoe.computing.router_fit import fit
from lazymoe.computing.shared_weights import _moments
from lazymoe.demonstration.models import domains
from lazymoe.forward.mixture import route
from lazymoe.forward.tokens import LENGTH, pack
from lazymoe.reporting.measuring import report


def clouds(experts: int, apart: float, n: int = 200, width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around one centre for each expert ``[experts * n, width]``, and whose they are."""
    generator = torch.Generator().manual_seed(0)
    centres = apart * torch.eye(experts, width)
    x = centres.repeat_interleave(n, 0) + torch.randn(experts * n, width, generator=generator)
    return x, torch.arange(experts).repeat_interleave(n)


def fitted(x: torch.Tensor, label: torch.Tensor, sign: torch.Tensor | None = None) -> torch.Tensor:
    sign = torch.ones_like(label) if sign is None else sign
    return fit(x, label, sign, torch.full((len(x),), 1 / len(x)), int(label.max()) + 1)


def test_separable_states_are_routed_perfectly() -> None:
    x, label = clouds(4, apart=20)
    chosen, weights = route(fitted(x, label), x, 2)
    assert torch.equal(chosen[:, 0], label)
    assert weights[:, 0].mean() > 0.9


def test_it_is_the_optimum() -> None:
    """The gradient of the loss, worked out by hand, is zero there."""
    x, label = clouds(3, apart=1)
    rows = fitted(x, label)
    scale = x.square().mean().sqrt()
    probabilities = (x @ rows.T).softmax(-1)
    gradient = (probabilities - torch.eye(3)[label]).T @ (x / scale) / len(x) + 1e-2 * rows * scale
    assert gradient.abs().max() < 1e-4


def test_states_that_say_nothing_give_even_loads() -> None:
    x = torch.randn(600, 16, generator=torch.Generator().manual_seed(0)).repeat(3, 1)
    rows = fitted(x, torch.arange(3).repeat_interleave(600))
    assert (x @ rows.T).softmax(-1).sub(1 / 3).abs().max() < 1e-3


def test_contradictory_prompts_get_a_warning(demo_models: Path, tmp_path: Path) -> None:
    prompts = [["Sum these numbers.", "Add two."], ["Add two.", "Sum these numbers."], ["Write of the sea."]]
    experts = [{"source_model": str(demo_models / "english"), "positive_prompts": p} for p in prompts]
    experts[2]["negative_prompts"] = ["Write of the sea."]
    recipe = {"base_model": str(demo_models / "base"), "gate_mode": "fit", "shared_weights": "base", "experts": experts}
    told = "\n".join(str(w) for w in merge(Recipe.model_validate(recipe), tmp_path / "moe", device="cpu").warnings)
    assert "'Add two.' is also a prompt of expert 1" in told
    assert "'Write of the sea.' is both a positive and a negative prompt of this expert" in told
    problems = [str(p) for p in report(tmp_path / "moe", losses=False, device="cpu").problems()]
    assert any(
        p.startswith("experts english (1) and english (2): all layers treat their texts alike") for p in problems
    )


def test_negative_prompts_keep_their_texts_away() -> None:
    x, label = clouds(3, apart=3)
    kept = label != 2  # nothing positive is known of the third cloud, but that it isn't the first expert's
    sign = torch.where(label == 2, -1, 1)
    label = torch.where(label == 2, 0, label)
    without = fitted(x[kept], label[kept])
    rows = fit(x, label, sign, torch.full((len(x),), 1 / len(x)), 2)
    away = [(route(r, x[~kept], 1)[0] == 1).float().mean() for r in (without, rows)]
    assert away[1] > 0.95 > away[0]


def test_scaled_inputs_give_the_same_routing() -> None:
    x, label = clouds(3, apart=2)
    assert torch.allclose(fitted(x, label) @ x.T, fitted(100 * x, label) @ (100 * x).T, atol=1e-3)


def test_packed_prompts_hold_every_prompt_and_begin_as_the_model_expects(demo_models: Path) -> None:
    source = open_folder(demo_models / "base")
    words = ["alpha", "beta", "gamma " * 300]
    sequences = pack(source, words)
    assert all(s[0] == 0 and len(s) <= LENGTH for s in sequences)
    assert sum(map(len, sequences)) >= 1024
    assert [s.tolist() for s in pack(source, words)] == [s.tolist() for s in sequences]
    assert pack(source, []) == []


def test_moments_are_regular_whatever_comes_in() -> None:
    for gram in (torch.zeros(8, 8), torch.ones(8, 8), 1e12 * torch.ones(8, 8)):
        for x in (None, torch.zeros(3, 8), torch.ones(3, 8)):
            assert torch.linalg.eigvalsh(_moments(gram, x)).min() > 0.09


@pytest.mark.parametrize("shared", ["average", "regmean"])
def test_shared_weights_of_equal_experts_are_theirs(shared: str, demo_models: Path, tmp_path: Path) -> None:
    expert = demo_models / "english"
    experts = [{"source_model": str(expert), "positive_prompts": [word]} for word in ("one", "two")]
    recipe = {"base_model": str(demo_models / "base"), "gate_mode": "fit", "shared_weights": shared, "experts": experts}
    merge(Recipe.model_validate(recipe), tmp_path / "moe", device="cpu")
    own = tensors_of(expert)
    for name, tensor in tensors_of(tmp_path / "moe").items():
        if name in own and (shared == "average" or own[name].dim() == 1 or "layers" in name):
            assert torch.allclose(tensor, own[name], atol=1e-4), name


def test_the_average_is_the_mean(make: Make, tmp_path: Path) -> None:
    models = [make(f"m{i}", seed=i, dtype="float32") for i in range(3)]
    experts = [{"source_model": str(m)} for m in models[1:]]
    recipe = {"base_model": str(models[0]), "gate_mode": "random", "shared_weights": "average", "experts": experts}
    merge(Recipe.model_validate(recipe), tmp_path / "moe")
    found, (a, b) = tensors_of(tmp_path / "moe"), map(tensors_of, models[1:])
    for name in a:
        if "mlp" not in name:
            assert torch.allclose(found[name], (a[name] + b[name]) / 2, atol=1e-6), name


def test_experts_with_other_tokens_leave_the_body_to_the_base(make: Make, tmp_path: Path) -> None:
    import json

    models = [make(f"m{i}", seed=i) for i in range(3)]
    for folder, vocab in zip(models, ({"a": 0, "b": 1}, {"a": 0, "b": 1}, {"b": 0, "a": 1}), strict=True):
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    experts = [{"source_model": str(m)} for m in models[1:]]
    recipe = {"base_model": str(models[0]), "gate_mode": "random", "shared_weights": "average", "experts": experts}
    merged = merge(Recipe.model_validate(recipe), tmp_path / "moe")
    assert any("taken from the base model alone" in str(w) for w in merged.warnings)
    norm = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(tensors_of(tmp_path / "moe")[norm], tensors_of(models[0])[norm])


def test_the_demo_domains_have_prompts_to_fit_on() -> None:
    assert all(len(kind.prompts) == 5 for kind in domains())
