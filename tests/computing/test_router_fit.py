"""Fitted routers, on data made so that the right answer is known."""

from __future__ import annotations

from pathlib import Path

import torch

from lazymoe import Recipe, merge
from lazymoe.computing.router_fit import Lesson, fit, fit_router
from lazymoe.demonstration.models import domains
from lazymoe.forward.routing import route
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


def test_the_likelier_expert_gets_more_than_its_likelihood() -> None:
    """Squared odds; the shared expert's gate, whose prompts are the last cloud, stays a likelihood."""
    x, label = clouds(3, apart=1)
    sign, weights = torch.ones_like(label), torch.full((len(x),), 1 / len(x))
    counts = [torch.ones(len(x), dtype=torch.bool)]
    rows, none = fit_router(Lesson(counts, label, sign, weights), [x], 3, False)
    assert not len(none)
    _, given = route(rows, x, 2)
    _, likely = route(fitted(x, label), x, 2)
    odds, squared = (w[:, 0] / w[:, 1] for w in (likely, given))
    assert torch.allclose(squared, odds**2, rtol=1e-3)
    rows, gate = fit_router(Lesson(counts, label, sign, weights), [x], 2, True)
    experts = label < 2
    assert torch.allclose(rows, 2 * fitted(x[experts], label[experts]), atol=1e-4)
    shut, opened = fit(x, (~experts).long(), sign, torch.where(experts, 1 / 800, 1 / 400), 2)  # sides count equally
    assert torch.allclose(gate[0], opened - shut, atol=1e-4)


def test_inputs_that_are_all_zero_give_even_loads() -> None:
    label = torch.tensor([0, 1, 1])
    assert not fit(torch.zeros(3, 4), label, torch.ones(3), torch.ones(3), 2).any()


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


def test_the_demo_domains_have_prompts_to_fit_on() -> None:
    assert all(len(kind.prompts) == 5 for kind in domains())
