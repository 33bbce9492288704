"""The generic host is exact for every dense family: its logits are those of transformers' own class of the base model.

A few families are tried at once, the others with the slow tests. With ``--transformers4 PYTHON`` all of them are also
loaded in that one.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from generic_models import FAMILIES, make_family
from small_models import IDS, load_model, logits, recipe, tensors_of

from lazymoe import merge
from lazymoe.checkpoint.opening import open_folder
from lazymoe.forward.losses import dense_losses, mixture_losses

QUICK = ("Gemma 2", "Gemma 3", "Qwen 3.5", "Pythia", "GPT-2", "Falcon 40B", "Apertus", "Phi-4 mini", "SmolLM3")
EVERY = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow, id=name) for name in FAMILIES]
PAIRS = """
import json, sys, torch, transformers
def logits(folder):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=True)
    assert not any(info.values()), info
    return model.eval()(torch.arange(2, 62).reshape(2, 30)).logits.detach()
found = {}
for base, mixture in json.load(sys.stdin):
    try:
        expected = logits(base)
    except Exception as e:
        found[mixture] = "base: " + str(e)
        continue
    try:
        found[mixture] = float((logits(mixture) - expected).abs().max())
    except Exception as e:
        found[mixture] = str(e)
print(json.dumps(found))
"""
SINCE_5 = {  # families that transformers 4.57 doesn't have, or reads otherwise when transformers 5 has saved them
    "EXAONE 3.5", "Gemma 4 E2B", "GPT-NeoX, sequential", "Granite 4", "InternLM 3", "Jais 2", "MiniCPM3",
    "Ministral 3", "Nanochat", "Phi-4 mini", "Pythia", "Qwen 3.5", "Youtu", "CWM",
}  # fmt: skip


def test_there_are_enough() -> None:
    assert len(FAMILIES) >= 35 and set(QUICK) <= FAMILIES.keys() >= SINCE_5


@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", EVERY)
def test_equal_experts_give_the_dense_models_logits(family: str, tied: bool, tmp_path: Path) -> None:
    base = make_family(tmp_path, family, tie_word_embeddings=tied)
    merge(recipe(base, base, base, base, architecture="generic"), tmp_path / "moe")
    expected = logits(load_model(base))
    assert expected.std() > 0.1
    assert (logits(load_model(tmp_path / "moe")) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("family", EVERY)
def test_a_forced_router_gives_that_experts_feed_forward_in_the_bases_body(family: str, tmp_path: Path) -> None:
    """And the streamed pass is the whole model: what routers are fitted on and reports measure."""
    base, *experts = (make_family(tmp_path, family, seed=i, name=f"model-{i}") for i in range(4))
    plan = merge(recipe(base, *experts, architecture="generic", experts_per_token=1), tmp_path / "moe").plan
    mixture, dense, written = load_model(tmp_path / "moe"), load_model(base), tensors_of(tmp_path / "moe")

    batches = [(IDS, torch.ones_like(IDS, dtype=torch.bool))]
    streamed = mixture_losses(plan, open_folder(tmp_path / "moe"), batches, "cpu")[0]
    streamed += dense_losses(plan, plan.sources[0], batches, "cpu")
    assert streamed == pytest.approx([_loss(mixture), _loss(dense)], abs=1e-4)

    path, name = plan.dense.prefix.removesuffix(".{layer}."), plan.dense.module
    bodies = [load_model(expert).get_submodule(path) for expert in experts]
    for i, layer in enumerate(mixture.get_submodule(path)):
        # every token looks the same to the router, so all go to the expert whose row has the largest sum
        getattr(layer, name).router.register_forward_pre_hook(lambda _, args: (torch.ones_like(args[0]),))
        chosen = int(written[plan.dense.within(i) + plan.host.router].sum(1).argmax())
        setattr(dense.get_submodule(path)[i], name, getattr(bodies[chosen][i], name))
    assert (logits(mixture) - logits(dense)).abs().max() < 1e-4


def _loss(model: torch.nn.Module) -> float:
    return torch.nn.functional.cross_entropy(logits(model)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).item()


@pytest.mark.slow
def test_transformers_4_gives_the_dense_models_logits(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Those of the same version: some of its classes compute otherwise than transformers 5."""
    python = request.config.getoption("transformers4")
    if not python:
        pytest.skip("no --transformers4")
    pairs = []
    for family in FAMILIES.keys() - SINCE_5:
        base = make_family(tmp_path, family)
        merge(recipe(base, base, base, base, architecture="generic"), tmp_path / f"{base.name}-moe")
        pairs.append((str(base), str(tmp_path / f"{base.name}-moe")))
    done = subprocess.run([python, "-c", PAIRS], input=json.dumps(pairs), text=True, check=True, capture_output=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert {folder: wrong for folder, wrong in found.items() if not (isinstance(wrong, float) and wrong < 1e-4)} == {}
    assert len(found) >= 30


def test_names_of_another_transformers_are_told(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """transformers 4 calls Pythia's head otherwise: it would be random."""
    python = request.config.getoption("transformers4")
    if not python:
        pytest.skip("no --transformers4")
    base = make_family(tmp_path, "Pythia")
    merge(recipe(base, base, base), tmp_path / "moe")
    pairs = json.dumps([(str(base), str(tmp_path / "moe"))])
    done = subprocess.run([python, "-c", PAIRS], input=pairs, text=True, check=True, capture_output=True)
    [told] = json.loads(done.stdout.splitlines()[-1]).values()
    assert "finds no 'embed_out.weight'" in told
