"""Quantized checkpoints read as what transformers itself makes of them; what can't be read is named, with a remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_models import Make, configure, recipe, rewrite, tensors_of
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, FineGrainedFP8Config

from lazymoe import LazyMoEError, check, merge
from lazymoe.checkpoint.opening import open_folder, open_source
from lazymoe.recipe.reference import Reference

DOWN = "model.layers.0.mlp.down_proj.weight"
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
BITS = {
    "4 bit": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "4 bit, quantized twice": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True),
    "8 bit": BitsAndBytesConfig(load_in_8bit=True),
}


def with_bitsandbytes(folder: Path, bits: str) -> Path:
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=BITS[bits], device_map="cpu")
    model.save_pretrained(folder.parent / "packed")
    return folder.parent / "packed"


@pytest.mark.parametrize("bits", BITS)
def test_bitsandbytes_as_transformers_dequantizes_it(bits: str, make: Make, tmp_path: Path) -> None:
    packed = with_bitsandbytes(make("whole", **SIZES), bits)
    source = open_folder(packed)
    theirs = AutoModelForCausalLM.from_pretrained(packed, device_map="cpu").dequantize().state_dict()
    assert source.tensors.keys() == theirs.keys()
    for name, tensor in theirs.items():
        # of 8 bit, theirs multiplies in the model's own bfloat16
        near = {"rtol": 2**-7, "atol": 0} if bits == "8 bit" else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(source.load(name), tensor.to(source.load(name).dtype), **near)
    part = source.tensors[DOWN].read(70, 300)
    assert torch.equal(part, source.load(DOWN).reshape(-1)[70:300])

    other = make("other", seed=1, **SIZES)
    merge(recipe(packed, packed, other), tmp_path / "moe")
    written = tensors_of(tmp_path / "moe")
    assert torch.equal(written["model.layers.0.block_sparse_moe.experts.0.w2.weight"], source.load(DOWN))
    config = json.loads((tmp_path / "moe" / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "quantization_config" not in config


def test_a_lora_adapter_on_a_4_bit_model(make: Make, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    folder = make("whole", **SIZES)
    packed = with_bitsandbytes(folder, "4 bit")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(target_modules=["down_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "adapter")
    layer = model.base_model.model.model.layers[0].mlp.down_proj
    expected = open_folder(packed).load(DOWN).float() + layer.get_delta_weight("default").detach().float()
    adapted = open_source(Reference.parse(f"{packed}+{tmp_path / 'adapter'}"), "base_model")
    torch.testing.assert_close(adapted.load(DOWN), expected)


@pytest.mark.parametrize("scales", ["blocks", "rows", "one"])
def test_fp8_is_the_product_of_values_and_scales(scales: str, make: Make) -> None:
    folder = make("fp8", hidden_size=256, intermediate_size=320, num_attention_heads=4)
    shape = {"blocks": (2, 3), "rows": (256, 1), "one": ()}[scales]
    name = "weight_scale_inv" if scales == "blocks" else "weight_scale"
    scale = torch.rand(shape) + 0.5

    def quantize(tensors: dict[str, torch.Tensor]) -> None:
        tensors[DOWN] = tensors[DOWN].to(torch.float8_e4m3fn)
        tensors[DOWN.replace("weight", name)] = scale

    whole = rewrite(folder, quantize)
    configure(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    values, source = tensors_of(whole)[DOWN].float(), open_folder(folder)
    if scales == "blocks":
        scale = torch.kron(scale, torch.ones(128, 128))[:256, :320]
    assert torch.equal(source.load(DOWN), (values * scale).bfloat16())
    assert DOWN.replace("weight", name) not in source.tensors


def test_fp8_as_transformers_dequantizes_it(make: Make) -> None:
    folder = make("fp8", hidden_size=256, intermediate_size=384, num_attention_heads=4, num_hidden_layers=1)

    def quantize(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if "_proj" in n]:
            tensors[name] = tensors[name].to(torch.float8_e4m3fn)
            rows, columns = (-(-n // 128) for n in tensors[name].shape)
            tensors[f"{name}_scale_inv"] = torch.rand(rows, columns) + 0.5

    rewrite(folder, quantize)
    configure(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    settings = FineGrainedFP8Config(dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, dtype=torch.bfloat16)
    source = open_folder(folder)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(source.load(name), tensor, rtol=2**-7, atol=0)  # theirs scales in bfloat16


@pytest.mark.parametrize("method", ["gptq", "awq", "hqq", None])
def test_what_cannot_be_undone_names_the_model_to_use(method: str | None, make: Make) -> None:
    folder = make("packed")
    (folder / "README.md").write_text("---\nbase_model: acme/whole\n---\n")
    rewrite(folder, lambda t: t.update({DOWN.replace("weight", "qweight"): torch.zeros(4, 4, dtype=torch.int32)}))
    if method:
        configure(folder, quantization_config={"quant_method": method})
    [problem, *_] = check(recipe(folder, folder)).errors
    assert (method or "GPTQ, AWQ") in problem.what
    assert problem.remedy == "Name the unquantized model it was made from: acme/whole."


def test_a_broken_packed_model_is_told_in_one_line(make: Make, tmp_path: Path) -> None:
    packed = with_bitsandbytes(make("whole", **SIZES), "4 bit")
    rewrite(packed, lambda tensors: tensors.update({f"{DOWN}.absmax": torch.ones(1)}))
    with pytest.raises(LazyMoEError, match=f"'{DOWN}' can't be unpacked"):
        merge(recipe(packed, packed), tmp_path / "moe")
    assert not (tmp_path / "moe").exists()
    configure(packed, hidden_size=None)
    [problem, *_] = check(recipe(packed, packed)).errors
    assert "hidden_size" in problem.what or "quantized" in problem.what
