"""The modelling code in templates/ does what transformers' own classes do, in transformers 5 and, with
``--transformers4 PYTHON``, in that one's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from generic_models import make_family
from small_models import IDS, Make, load_model, recipe
from transformers import AutoModelForCausalLM

from lazymoe import merge
from lazymoe.architectures.hosts.generic import GENERIC
from lazymoe.architectures.registry import HOSTS
from lazymoe.data import folder as assets

CASES = [
    pytest.param(f.name, f.takes[0].model_type, shared, marks=[pytest.mark.slow] * (bool(f.shared) != shared))
    for f in HOSTS
    if f.code
    for shared in (False, True)[: 1 + bool(f.shared)]
]
SIZES = {"hidden_size": 64, "intermediate_size": 128}  # in 64s, as bitsandbytes wants them on some processors
USE = """
import copy, sys, torch
from transformers import AutoModel, AutoModelForCausalLM, BitsAndBytesConfig
folder, scratch = sys.argv[1:]
own = {"trust_remote_code": True, "dtype": torch.float32}
model = AutoModelForCausalLM.from_pretrained(folder, **own).eval()
ids = torch.arange(2, 22)[None]
with torch.no_grad():
    logits = model(ids).logits

# generation, with the cache and without
eight = {"min_new_tokens": 8, "max_new_tokens": 8, "do_sample": False}
answers = [model.generate(ids, **eight, use_cache=cached) for cached in (True, False)]
assert torch.equal(*answers) and answers[0].shape == (1, 28)
padded = torch.cat([torch.zeros(1, 4, dtype=int), ids], 1)
mask = (torch.arange(24) >= 4).long()[None]
with torch.no_grad():
    assert (model(padded, attention_mask=mask).logits[:, 4:] - logits).abs().max() < 1e-4

# spread over devices, one of them the disk
parts = {f"model.{name}": "cpu" for name, _ in model.model.named_children() if name != "layers"}
spread = AutoModelForCausalLM.from_pretrained(folder, offload_folder=scratch + "/offload", **own, device_map={
    **parts, "lm_head": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"})
with torch.no_grad():
    assert (spread(ids).logits - logits).abs().max() < 1e-5
del spread

# gradients, with checkpoints and without
gradients = []
for checkpoints in (False, True):
    trained = copy.deepcopy(model).train()
    if checkpoints:
        trained.gradient_checkpointing_enable()
    trained(ids, labels=ids).loss.backward()
    gradients.append({name: p.grad for name, p in trained.named_parameters() if p.grad is not None})
assert gradients[0].keys() == gradients[1].keys()
assert all((gradients[0][name] - g).abs().max() < 1e-5 for name, g in gradients[1].items())
assert any(part in name for part in (".gate.", ".router.") for name in gradients[0])
assert any("experts" in name for name in gradients[0])

# 4 bit: experts too, routers not
four = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32, device_map="cpu",
    quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"))
kinds = {name: type(m).__name__ for name, m in four.named_modules() if hasattr(m, "weight") and ".mlp." in name}
assert {kind for name, kind in kinds.items() if "expert" in name and "act" not in name} == {"Linear4bit"}, kinds
with torch.no_grad():
    assert torch.cosine_similarity(four(ids).logits.flatten(), logits.flatten(), dim=0) > 0.9

# saved and loaded again, and without its head
model.save_pretrained(scratch + "/saved")
again, info = AutoModelForCausalLM.from_pretrained(scratch + "/saved", output_loading_info=True, **own)
assert not any(info.values()), info
with torch.no_grad():
    assert torch.equal(again(ids).logits, logits)
    assert AutoModel.from_pretrained(folder, **own)(ids).last_hidden_state.shape == (1, 20, model.config.hidden_size)
"""


@pytest.mark.parametrize("where", ["this Python", "--transformers4"])
@pytest.mark.parametrize(("family", "kind", "shared"), CASES)
def test_the_code_does_what_transformers_own_does(
    family: str, kind: str, shared: bool, where: str, make: Make, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    python = sys.executable if where == "this Python" else request.config.getoption("transformers4")
    if not python:
        pytest.skip("no --transformers4")
    models = [make(f"model-{i}", seed=i, kind=kind, dtype="float32", **SIZES) for i in range(4)]
    fields = {"shared_experts": [{"source_model": str(models[3])}]} if shared else {}
    merge(recipe(*models, architecture=family, **fields), tmp_path / "moe")
    done = subprocess.run([python, "-c", USE, tmp_path / "moe", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("where", ["this Python", "--transformers4"])
@pytest.mark.parametrize("shared", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(
    "family",
    ["Gemma 2", *(pytest.param(family, marks=pytest.mark.slow) for family in ("GLM-4 0414", "SmolLM3", "Qwen 3.5"))],
)
def test_the_generic_code_does_too(
    family: str, shared: bool, where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    python = sys.executable if where == "this Python" else request.config.getoption("transformers4")
    if not python or (where != "this Python" and family == "Qwen 3.5"):
        pytest.skip("no --transformers4, or not in it")
    wide = SIZES | {"head_dim": 16} | ({"linear_num_value_heads": 64, "std": 0.05} if family == "Qwen 3.5" else {})
    models = [make_family(tmp_path, family, seed=i, name=f"model-{i}", **wide) for i in range(4)]
    fields = {"shared_experts": [{"source_model": str(models[3])}]} if shared else {}
    merge(recipe(*models, architecture="generic", **fields), tmp_path / "moe")
    done = subprocess.run([python, "-c", USE, tmp_path / "moe", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("targets", [["router"], ["gate_proj", "up_proj", "down_proj"]])
def test_lora_trains_routers_and_experts(targets: list[str], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    models = [make_family(tmp_path, "Gemma 2", seed=i, name=f"model-{i}") for i in range(3)]
    merge(recipe(*models, architecture="generic"), tmp_path / "moe")
    torch.manual_seed(0)
    trained = get_peft_model(load_model(tmp_path / "moe"), LoraConfig(target_modules=targets, r=4))
    optimizer = torch.optim.Adam([p for p in trained.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(20):
        loss = trained(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.05
    changed = [name for name, p in trained.named_parameters() if p.requires_grad and "lora_B" in name and p.any()]
    assert len(changed) == (2 if targets == ["router"] else 2 * 2 * 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_router_chooses_in_any_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    base = make_family(tmp_path, "Gemma 3")
    merge(recipe(base, base, base, architecture="generic"), tmp_path / "moe")
    given = {"dtype": dtype, "trust_remote_code": True}
    mixture, dense = (AutoModelForCausalLM.from_pretrained(f, **given) for f in (tmp_path / "moe", base))
    with torch.no_grad():
        assert torch.cosine_similarity(mixture(IDS).logits.flatten(), dense(IDS).logits.flatten(), dim=0) > 0.99


def test_every_file_of_code_belongs_to_a_family() -> None:
    assert {path.name for path in assets("templates").glob("*.py")} == {f.code for f in (*HOSTS, GENERIC) if f.code}
