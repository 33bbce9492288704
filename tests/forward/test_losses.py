"""Losses: of real tokens only, and the average is one of weights. Against whole models: architectures/test_hosts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from small_models import IDS, Make, load_model, logits, recipe, rewrite, tensors_of

from lazymoe import merge
from lazymoe.checkpoint.opening import open_folder
from lazymoe.forward.losses import Average, dense_losses, mixture_losses
from lazymoe.forward.tokens import pad
from lazymoe.planning.plan import Plan


@pytest.fixture
def models(make: Make) -> list[Path]:
    return [make(f"model-{i}", seed=i, dtype="float32") for i in range(3)]


def planned(models: list[Path], out: Path, **fields: object) -> Plan:
    return merge(recipe(*models, **fields), out).plan


def whole(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return ids, torch.ones_like(ids, dtype=torch.bool)


def test_the_average_is_one_of_weights(models: list[Path]) -> None:
    sources, own = [open_folder(m) for m in models], [tensors_of(m) for m in models]
    average = Average(sources)
    for name in own[0]:
        assert torch.allclose(average.load(name), sum(t[name] for t in own) / 3, atol=1e-6)
    name = "model.embed_tokens.weight"
    assert torch.equal(average.rows(name, [7, 2]), average.load(name)[[7, 2]])


def test_its_loss_is_that_of_a_model_with_these_weights(models: list[Path], make: Make, tmp_path: Path) -> None:
    plan, own = planned(models, tmp_path / "moe"), [tensors_of(m) for m in models]
    mean = rewrite(make("mean", dtype="float32"), lambda t: [t[n].copy_(sum(o[n] for o in own) / 3) for n in t])
    [loss] = dense_losses(plan, Average([open_folder(m) for m in models]), [whole(IDS)], "cpu")
    expected = logits(load_model(mean))[:, :-1].flatten(0, 1)
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(expected, IDS[:, 1:].flatten()).item(), abs=1e-4)


def test_padding_counts_for_nothing(models: list[Path], tmp_path: Path) -> None:
    plan, texts = planned(models, tmp_path / "moe"), [IDS[0], IDS[1, :11]]
    [together] = dense_losses(plan, plan.sources[0], [pad(texts)], "cpu")
    alone = dense_losses(plan, plan.sources[0], [whole(t[None]) for t in texts], "cpu")
    assert together == pytest.approx((29 * alone[0] + 10 * alone[1]) / 39, abs=1e-5)

    mixture = open_folder(tmp_path / "moe")
    _, padded = mixture_losses(plan, mixture, [pad(texts)], "cpu")
    _, exact = mixture_losses(plan, mixture, [whole(t[None]) for t in texts], "cpu")
    for layer, rows in zip(padded.shares, exact.shares, strict=True):
        expected = [(30 * a + 11 * b) / 41 for a, b in zip(*rows, strict=True)]
        assert layer[0] == pytest.approx(expected, abs=1e-6)


def test_routing_is_counted_as_it_is(models: list[Path], tmp_path: Path) -> None:
    """Routers of zeros choose the first experts, and weigh them alike."""
    plan = planned(models, tmp_path / "moe", experts_per_token=2)
    [file] = (tmp_path / "moe").glob("*.safetensors")
    rewrite(file.parent, lambda t: [x.zero_() for n, x in t.items() if n.endswith(plan.host.router)], file.name)
    texts = [whole(IDS), whole(IDS[:1]), whole(IDS)]
    losses, routing = mixture_losses(plan, open_folder(tmp_path / "moe"), texts, "cpu")
    assert len(losses) == 3 and all(map(math.isfinite, losses))
    assert losses[2] == losses[0]  # what is of no expert's domain is measured too
    for layer in range(2):
        assert [sum(row) for row in routing.shares[layer]] == [1, 1, 1]
        assert routing.shares[layer] == [[0.5, 0.5]] * 3
        assert sorted(routing.first[layer][0]) == [0, 1] and routing.first[layer][0] == routing.first[layer][1]
        assert sum(routing.accuracy[layer][:2]) == 1  # all tokens go to one of the two experts first
    assert routing.entropy == pytest.approx([1, 1])  # a choice between two, in bits


def test_one_expert_for_each_token_is_no_choice(models: list[Path], tmp_path: Path) -> None:
    plan = planned(models, tmp_path / "moe", experts_per_token=1)
    _, routing = mixture_losses(plan, open_folder(tmp_path / "moe"), [whole(IDS), whole(IDS)], "cpu")
    assert routing.entropy == pytest.approx([0, 0])
