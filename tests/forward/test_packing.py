"""The mixture in 4 and 8 bit: all of the layers' matrices are, and it is still the same model."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
import transformers
from crossing import crossed
from small_models import Make, recipe
from transformers import AutoConfig, AutoModelForCausalLM

import lazymoe
from lazymoe import merge
from lazymoe.architectures.records import LAYER, Host
from lazymoe.architectures.registry import HOSTS
from lazymoe.checkpoint.opening import open_folder
from lazymoe.forward.packing import AT_ONCE, load_packed, pack

ROUTERS = ("gate", "wg", "router", "conv", "conv1d")  # and the kernels of convolutions
SPARED = ("norm", "bias", "router.", "gate.weight", "A_log", "mamba.D", "sinks")
WIDE = {"hidden_size": 128, "intermediate_size": 256}  # so that nearly all of it is in the layers
# LFM2 makes two thirds of it. Weights larger than these leave nothing of the embeddings in the last states: these are
# products then of what all the matrices say, and in LFM2's convolutions of three of them, each a tenth off in 4 bit.
WIDTHS = {"lfm2": 384}
STD = 0.16
FIVE = int(transformers.__version__.split(".")[0]) >= 5


def made(family: Host, make: Make, folder: Path, **config: object) -> Path:
    """A mixture of three random models, with a shared expert where the host can have one."""
    kind = family.takes[0].model_type
    size = WIDE | {"intermediate_size": WIDTHS.get(kind, WIDE["intermediate_size"])}
    models = [make(f"model-{i}", seed=i, kind=kind, std=STD, **size, **config) for i in range(3)]
    shared = {"shared_experts": [{"source_model": str(models[0])}]} if family.shared else {}
    return merge(recipe(models[0], *models, architecture=family.name, **shared), folder / "moe").folder


@pytest.mark.parametrize(("family", "tied"), crossed([f for f in HOSTS if FIVE or f.since != "5"], [False, True]))
def test_every_matrix_of_a_layer_is_packed(family: Host, tied: bool, make: Make, tmp_path: Path) -> None:
    folder = made(family, make, tmp_path, tie_word_embeddings=tied)
    trust = bool(family.code)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=trust)
    ids = torch.arange(2, 42)[None]
    for bits, alike in ((4, 0.95), (8, 0.995)):
        config, source = AutoConfig.from_pretrained(folder, trust_remote_code=trust), open_folder(folder)
        experts = source.tensors[LAYER.format(layer=0) + family.router].shape[0]
        model = load_packed(source, config, experts, family.modules, bits, "cpu", torch.float32, trust=trust)
        for name, parameter in model.model.layers.named_parameters():
            spared = name.split(".")[-2] in ROUTERS or any(part in name for part in SPARED)
            assert (parameter.dtype == torch.uint8) != spared, name
        stored = sum(p.nbytes for p in model.model.layers.parameters())
        assert stored < whole.num_parameters() * 4 * bits / 22
        with torch.no_grad():
            near, exact = model(ids).logits.flatten(), whole(ids).logits.flatten()
        assert torch.cosine_similarity(near, exact, dim=0) > alike
        assert model.generate(ids, min_new_tokens=3, max_new_tokens=3, do_sample=False).shape == (1, 43)


@pytest.mark.parametrize("shape", [(7, 33), (64, 32), (3, 3), (1, 100), (70, AT_ONCE // 64 + 33)])
def test_a_matrix_of_any_shape_comes_back(shape: tuple[int, int]) -> None:
    """In blocks of 32, and in pieces, as bitsandbytes packs it whole."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    linear = torch.nn.Linear(shape[1], shape[0], bias=False)
    linear.weight = torch.nn.Parameter(weight.clone())
    pack(linear, 4)
    assert linear.weight.dtype == torch.bfloat16
    whole = dequantize_4bit(*quantize_4bit(weight, blocksize=32, quant_type="nf4", compress_statistics=True))
    assert torch.equal(linear.weight, whole)
    [packed] = linear.parameters()
    assert packed.numel() == -(-weight.numel() // 2)


IN_4 = """
import sys
sys.path.append(sys.argv[1])  # what LazyMoE needs, if it isn't here
import torch, transformers
from pathlib import Path
from lazymoe.architectures.registry import host_of
from lazymoe.checkpoint.opening import open_folder
from lazymoe.forward.packing import load_packed
assert transformers.__version__.startswith("4.")
ids = torch.arange(2, 42)[None]
for name in sys.argv[2:]:
    folder, trust = Path(name), any(Path(name).glob("*.py"))
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=trust)
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    source = open_folder(folder)
    model = load_packed(source, config, 3, host_of(source.config).modules, 4, "cpu", torch.float32, trust=trust)
    stored = sum(p.nbytes for p in model.model.layers.parameters())
    assert stored < whole.num_parameters() * 4 / 5.5, name
    with torch.no_grad():
        near, exact = model(ids).logits.flatten(), whole(ids).logits.flatten()
    assert torch.cosine_similarity(near, exact, dim=0) > 0.95, name
"""


def test_transformers_4_does_it_too(make: Make, tmp_path: Path, transformers_4: str | None) -> None:
    if not transformers_4:
        pytest.skip("no --transformers4")
    folders = []
    for family in HOSTS:
        if family.since != "5":
            (tmp_path / family.name).mkdir()
            folders.append(made(family, make, tmp_path / family.name))
    root, packages = str(Path(lazymoe.__file__).parents[1]), str(Path(torch.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(
        [transformers_4, "-c", IN_4, packages, *folders], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
