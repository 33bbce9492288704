"""What maps read, against transformers' own model: a mixture of one model with itself reads what that model reads."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from small_models import IDS, Make, load_model, recipe

from lazymoe import merge
from lazymoe.architectures.records import Host
from lazymoe.architectures.registry import HOSTS
from lazymoe.checkpoint.opening import open_folder
from lazymoe.forward.inputs import Inputs
from lazymoe.forward.mixture import run
from lazymoe.forward.tokens import pad


def read_by(model: Path, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sums of squares of what each linear map in the layers of a dense model reads, by its weight's name."""
    loaded, found = load_model(model), {}

    def look(name: str, _: object, given: tuple[torch.Tensor, ...]) -> None:
        found[name] = given[0].double().square().sum((0, 1))

    for name, module in loaded.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            module.register_forward_pre_hook(partial(look, f"{name}.weight"))
    with torch.no_grad():
        loaded(ids, use_cache=False)
    return found


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
def test_a_mixture_of_one_model_reads_what_that_model_reads(host: Host, make: Make, tmp_path: Path) -> None:
    model = make("model", kind=host.takes[0].model_type, dtype="float32")
    plan = merge(recipe(model, model, model, architecture=host.name, experts_per_token=1), tmp_path / "moe").plan
    inputs, chosen = Inputs([torch.ones_like(IDS, dtype=torch.bool)], "cpu"), torch.zeros(plan.layers, 2)

    def seen(layer: int, _: int, experts: torch.Tensor, __: torch.Tensor) -> None:
        chosen[layer] += experts.flatten().bincount(minlength=2)

    run(plan, open_folder(tmp_path / "moe"), [IDS], "cpu", seen, inputs)
    expected = read_by(model, IDS)
    assert {name for _, name in inputs.sums} == expected.keys()
    for name, sums in expected.items():
        own = [found for (_, of), found in inputs.sums.items() if of == name]
        assert torch.allclose(sum(own), sums, rtol=1e-3), name
    for (source, name), n in inputs.counts.items():
        assert n == (chosen[int(name.split(".")[2]), source - 1] if source else IDS.numel()), name


def test_what_does_not_count_is_left_out(make: Make, tmp_path: Path) -> None:
    models = [make(f"model-{i}", seed=i) for i in range(3)]
    shared = {"shared_experts": [{"source_model": str(models[1])}]}
    plan = merge(recipe(*models, architecture="glm4_moe", **shared), tmp_path / "moe").plan
    texts = [IDS[0], IDS[1, :7]]

    def gather(*batches: tuple[torch.Tensor, torch.Tensor]) -> Inputs:
        inputs = Inputs([real for _, real in batches], "cpu")
        run(plan, open_folder(tmp_path / "moe"), [ids for ids, _ in batches], "cpu", lambda *_: None, inputs)
        return inputs

    together, apart = gather(pad(texts)), gather(*(pad([text]) for text in texts))
    assert together.counts == apart.counts
    assert {source for source, _ in together.counts} == {0, 1, 2, 3}  # the third is the shared expert
    assert {n for (source, _), n in together.counts.items() if source in (0, 3)} == {37}
    for key, sums in together.sums.items():
        assert torch.allclose(sums, apart.sums[key], rtol=1e-4), key
