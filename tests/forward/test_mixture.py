"""A layer's experts, one in memory at a time: what comes out, and where each lies in the mixture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import IDS, Make, recipe, tensors_of

from lazymoe import merge
from lazymoe.architectures.records import LAYER, Host
from lazymoe.architectures.registry import HOSTS
from lazymoe.checkpoint.opening import open_folder
from lazymoe.forward import mixture as module
from lazymoe.forward import spilling
from lazymoe.forward.mixture import InMixture, Rows, mix, run
from lazymoe.forward.routing import route


@pytest.mark.parametrize("most", [4, 100])
def test_each_token_gets_what_its_experts_make_of_it(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", most)
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, 8, 8, generator=generator)
    gates, x = (torch.randn(n, 8, generator=generator) for n in (3, 20))
    chosen, weights = route(gates, x, 2)
    batches = [8, 12]
    routed = list(zip(chosen.split(batches), weights.split(batches), strict=True))
    ran: list[int] = []

    def answering(asked: Sequence[Rows]) -> Iterator[Iterator[torch.Tensor]]:
        for expert, rows, _ in asked:
            ran.append(expert)
            yield (some @ matrices[expert].T for some in rows)

    made: list[torch.Tensor] = []
    mix(answering, x.split(batches), routed, [2, 0, 1], made)
    assert [len(rows) for rows in made] == batches
    out = torch.cat(made)
    every = torch.einsum("eoi,ti->teo", matrices, x)
    expected = sum(weights[:, k, None] * every[torch.arange(20), chosen[:, k]] for k in range(2))
    assert torch.allclose(out, expected, atol=1e-5)
    assert ran == [2, 0, 1]  # each once, in the order asked for


def test_an_expert_without_tokens_does_not_run() -> None:
    chosen = torch.zeros(4, 1, dtype=torch.int64)
    ran: list[int] = []

    def answering(asked: Sequence[Rows]) -> Iterator[Iterator[torch.Tensor]]:
        ran.extend(expert for expert, *_ in asked)
        return (iter(rows) for _, rows, _ in asked)

    out: list[torch.Tensor] = []
    mix(answering, [torch.ones(4, 2)], [(chosen, torch.ones(4, 1))], range(3), out)
    assert ran == [0] and torch.equal(out[0], torch.ones(4, 2))


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
def test_every_source_is_found_again_in_the_mixture(host: Host, make: Make, tmp_path: Path) -> None:
    """Stacked, fused or by itself, whatever the architecture does to it."""
    kind = host.takes[0].model_type
    models = [make(f"model-{i}", seed=i, kind=kind) for i in range(3)]
    fields = {"shared_experts": [{"source_model": str(models[0])}]} if host.shared else {}
    plan = merge(recipe(*models, architecture=host.name, **fields), tmp_path / "moe").plan
    mixture, ffn = open_folder(tmp_path / "moe"), f".{plan.dense.module}."
    for number, source in enumerate(plan.sources):
        found, own = InMixture(plan, mixture, number), tensors_of(source.folder)
        names = {name for name in found.tensors if ffn in name} if number else found.tensors.keys()
        assert names == {name for name in own if (ffn in name) == bool(number)}
        for name in names:
            assert torch.equal(found.load(name), own[name]), name
    body = InMixture(plan, mixture, 0)
    name = "model.embed_tokens.weight"
    assert torch.equal(body.rows(name, [5, 0]), tensors_of(models[0])[name][[5, 0]])


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
def test_on_the_disk_it_says_the_same(host: Host, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the byte: its states, what attention makes, what the experts read and what comes of it, all lie there."""
    models = [make(f"model-{i}", seed=i, kind=host.takes[0].model_type) for i in range(3)]
    fields = {"shared_experts": [{"source_model": str(models[0])}]} if host.shared else {}
    plan = merge(recipe(*models, architecture=host.name, **fields), tmp_path / "moe").plan
    mixture, batches = open_folder(tmp_path / "moe"), [IDS, IDS[:1, :7], IDS[:, 3:]]
    begun: list[Path] = []
    create = spilling.tempfile.TemporaryFile

    def noted(**options: Any) -> Any:
        begun.append(options["dir"])
        return create(**options)

    monkeypatch.setattr(spilling.tempfile, "TemporaryFile", noted)
    here, there = (run(plan, mixture, batches, "cpu", lambda *_: None, place=place) for place in (None, tmp_path))
    assert all(map(torch.equal, here.finish(), there.finish()))
    assert set(begun) == {tmp_path} and len(begun) >= 1 + 2 * plan.layers


def test_every_layer_shows_who_was_chosen(make: Make, tmp_path: Path) -> None:
    models = [make(f"model-{i}", seed=i) for i in range(4)]
    plan = merge(recipe(*models), tmp_path / "moe").plan
    seen: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def watch(layer: int, batch: int, chosen: torch.Tensor, weights: torch.Tensor) -> None:
        assert (layer, batch) not in seen
        seen[layer, batch] = chosen, weights

    batches = [IDS, IDS[:1, :7]]
    run(plan, open_folder(tmp_path / "moe"), batches, "cpu", watch)
    assert list(seen) == [(layer, batch) for layer in range(2) for batch in range(2)]
    for (_, batch), (chosen, weights) in seen.items():
        assert chosen.shape == weights.shape == (batches[batch].numel(), 2)
        assert set(chosen.flatten().tolist()) <= {0, 1, 2}
    written = tensors_of(tmp_path / "moe")
    assert all(LAYER.format(layer=i) + plan.host.router in written for i in range(2))
