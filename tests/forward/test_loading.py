"""The mixture in 4 bit: all of the layers' matrices are, and it is still the same model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from small_models import Make, recipe
from transformers import AutoModelForCausalLM

from lazymoe import merge
from lazymoe.architectures.records import Host
from lazymoe.architectures.registry import HOSTS
from lazymoe.forward.loading import load_4bit

ROUTERS = ("gate", "router", "conv")  # and the kernels of LFM2's convolutions
WIDE = {"hidden_size": 128, "intermediate_size": 256}  # so that nearly all of it is in the layers
# LFM2 makes two thirds of it. Weights larger than these leave nothing of the embeddings in the last states: these are
# products then of what all the matrices say, and in LFM2's convolutions of three of them, each a tenth off in 4 bit.
WIDTHS = {"lfm2": 384}
STD = 0.16


@pytest.mark.skipif(int(transformers.__version__.split(".")[0]) < 5, reason="transformers 4 does this itself")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", [f for f in HOSTS if not f.code], ids=lambda family: family.name)
def test_every_matrix_of_a_layer_is_in_4_bit(family: Host, tied: bool, make: Make, tmp_path: Path) -> None:
    kind = family.takes[0].model_type
    size = WIDE | {"intermediate_size": WIDTHS.get(kind, WIDE["intermediate_size"])}
    models = [make(f"model-{i}", seed=i, kind=kind, std=STD, tie_word_embeddings=tied, **size) for i in range(3)]
    shared = {"shared_experts": [{"source_model": str(models[0])}]} if family.shared else {}
    merge(recipe(models[0], *models, architecture=family.name, **shared), tmp_path / "moe")
    model = load_4bit(tmp_path / "moe", "cpu", torch.float32)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "moe", dtype=torch.float32)
    for name, parameter in model.model.layers.named_parameters():
        quantized = parameter.dtype == torch.uint8
        spared = name.split(".")[-2] in ROUTERS or any(part in name for part in ("norm", "bias", "router."))
        assert quantized != spared, name
    stored = sum(p.nbytes for p in model.model.layers.parameters())
    assert stored < next(whole.parameters()).element_size() * whole.num_parameters() / 6

    ids = torch.arange(2, 42)[None]
    with torch.no_grad():
        near, exact = model(ids).logits.flatten(), whole(ids).logits.flatten()
    assert torch.cosine_similarity(near, exact, dim=0) > 0.95
    assert model.generate(ids, min_new_tokens=3, max_new_tokens=3, do_sample=False).shape == (1, 43)
