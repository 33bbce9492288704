"""The models of a recipe in memory, to be asked what the mixture is asked."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
from crossing import crossed
from small_models import KINDS, Make, configure, load_model, logits, rewrite
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from lazymoe import SourceError
from lazymoe.checkpoint.opening import open_folder, open_source
from lazymoe.forward.loading import load_dense
from lazymoe.forward.packing import load_packed
from lazymoe.forward.skeleton import settled_config
from lazymoe.recipe.reference import Reference

ROUTERS = ("gate", "router", "conv")  # and the kernels of LFM2's convolutions
WIDE = {"hidden_size": 128, "intermediate_size": 256}  # so that nearly all of it is in the layers
# LFM2 makes two thirds of it. Weights larger than these leave nothing of the embeddings in the last states: these are
# products then of what all the matrices say, and in LFM2's convolutions of three of them, each a tenth off in 4 bit.
WIDTHS = {"lfm2": 384}
STD = 0.16


@pytest.mark.parametrize(("kind", "tied"), crossed(KINDS, [False, True]))
def test_a_dense_model_is_what_transformers_loads(kind: str, tied: bool, make: Make) -> None:
    folder = make("dense", kind=kind, tie_word_embeddings=tied)
    model = load_dense(open_folder(folder), torch.float32)
    assert type(model) is type(load_model(folder))
    assert torch.equal(logits(model), logits(load_model(folder)))


def test_a_dense_model_with_an_adapter_is_the_merged_one(make: Make, tmp_path: Path) -> None:
    base = make("base")
    adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    adapted.save_pretrained(tmp_path / "adapter")
    source = open_source(Reference(str(base), adapter=str(tmp_path / "adapter")), "base_model")
    torch.testing.assert_close(logits(load_dense(source, torch.float32)), logits(adapted.eval()))


def test_a_quantized_dense_model_is_loaded_as_it_was(make: Make, tmp_path: Path) -> None:
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    packed = AutoModelForCausalLM.from_pretrained(make("whole", **WIDE), quantization_config=four, device_map="cpu")
    packed.save_pretrained(tmp_path / "packed")
    model = load_dense(open_folder(tmp_path / "packed"), torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.cosine_similarity(logits(model).flatten(), logits(packed).float().flatten(), dim=0) > 0.99


@pytest.mark.skipif(int(transformers.__version__.split(".")[0]) < 5, reason="whole with transformers 4")
@pytest.mark.parametrize("kind", KINDS)
def test_a_dense_model_in_4_bit(kind: str, make: Make) -> None:
    """As a mixture is on a GPU."""
    source = open_folder(make("dense", kind=kind, std=STD, **WIDE | {"intermediate_size": WIDTHS.get(kind, 256)}))
    whole = load_dense(source, torch.float32)
    within = frozenset({source.dense.module})
    near = load_packed(source, settled_config(source), 1, within, 4, "cpu", torch.float32)
    assert sum(p.nbytes for p in near.model.layers.parameters()) < sum(
        p.nbytes for p in whole.model.layers.parameters()
    )
    assert torch.cosine_similarity(logits(near).flatten(), logits(whole).flatten(), dim=0) > 0.95


@pytest.mark.parametrize(("ends", "expected"), [(7, 7), ([2, 7], [2, 7]), ("x", 2), ([None], 2)])
def test_where_a_dense_model_ends_an_answer(ends: object, expected: object, make: Make) -> None:
    """Nothing else of a generation_config.json is read, nor what leads transformers astray in a config.json."""
    folder = configure(make("dense"), attn_implementation="someone/kernel", auto_map={"AutoModel": "evil.Evil"})
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends, "assistant_model": "x/y"}))
    model = load_dense(open_folder(folder), torch.float32)
    assert model.generation_config.eos_token_id == expected and model.config._attn_implementation == "sdpa"


def test_a_dense_model_that_lacks_weights_is_refused(make: Make) -> None:
    folder = rewrite(make("dense"), lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(SourceError, match=r"it lacks 'model\.norm\.weight'"):
        load_dense(open_folder(folder), torch.float32)
