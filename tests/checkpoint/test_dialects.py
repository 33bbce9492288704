"""Old layouts are read as today's: the same tensors, the same mixture to the byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from crossing import crossed
from generic_models import make_family
from safetensors.torch import save_file
from small_models import SHAPE, Make, contents, load_model, logits, recipe, rewrite, tensors_of

from lazymoe import LazyMoEError, check, merge
from lazymoe.checkpoint.dialects import DIALECTS
from lazymoe.checkpoint.opening import open_folder, open_source
from lazymoe.recipe.reference import Reference

NAMES = {  # today's to the old ones, as in transformers' convert_phi_weights_to_hf.py
    "model.embed_tokens": "transformer.embd.wte",
    "lm_head": "lm_head.linear",
    "model.final_layernorm": "lm_head.ln",
    "model.layers": "transformer.h",
    "input_layernorm": "ln",
    "self_attn": "mixer",
    "dense": "out_proj",
}


def old(model: Path, folder: Path, pickled: bool = False) -> Path:
    """A Phi model in its first layout."""
    tensors, found = tensors_of(model), {}
    for name, tensor in tensors.items():
        if "k_proj" in name or "v_proj" in name:
            continue
        if "q_proj" in name:
            tensor = torch.cat([tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
            name = name.replace("q_proj", "Wqkv")
        for today, then in NAMES.items():
            name = name.replace(today, then)
        found[name] = tensor
    config = json.loads((model / "config.json").read_text())
    then = {today: key for key, today in DIALECTS["phi-msft"].config.items()}
    config = {then.get(key, key): value for key, value in config.items() if key != "rope_parameters"}
    config |= {"model_type": "phi-msft", "rotary_dim": 6, "n_inner": None, "n_head_kv": None}
    folder.mkdir()
    shutil.copy(model / "generation_config.json", folder)
    (folder / "config.json").write_text(json.dumps(config))
    if pickled:
        torch.save(found, folder / "pytorch_model.bin")
    else:
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


OTHERS: dict[str, tuple[dict[str, str], dict[str, str]]] = {  # model_type: its names and config keys, by today's
    "internlm2": (
        {
            "model.embed_tokens": "model.tok_embeddings",
            "lm_head": "output",
            "self_attn.o_proj": "attention.wo",
            "input_layernorm": "attention_norm",
            "post_attention_layernorm": "ffn_norm",
            "mlp.gate_proj": "feed_forward.w1",
            "mlp.down_proj": "feed_forward.w2",
            "mlp.up_proj": "feed_forward.w3",
        },
        {},
    ),
    "exaone": (
        {
            "model.embed_tokens": "transformer.wte",
            "model.norm": "transformer.ln_f",
            "model.layers": "transformer.h",
            "self_attn.o_proj": "attn.attention.out_proj",
            "self_attn": "attn.attention",
            "input_layernorm": "ln_1",
            "post_attention_layernorm": "ln_2",
            "mlp.gate_proj": "mlp.c_fc_0",
            "mlp.up_proj": "mlp.c_fc_1",
            "mlp.down_proj": "mlp.c_proj",
        },
        {"num_hidden_layers": "num_layers", "hidden_act": "activation_function", "rms_norm_eps": "layer_norm_epsilon"},
    ),
}


def published(model: Path, folder: Path, kind: str) -> Path:
    """A Llama as InternLM 2 or EXAONE 3.5 has it on the Hub, with code of its own."""
    tensors, found = tensors_of(model), {}
    config = json.loads((model / "config.json").read_text())
    heads, keys = config["num_attention_heads"], config["num_key_value_heads"]
    for name, tensor in tensors.items():
        if kind == "internlm2" and name.endswith(("k_proj.weight", "v_proj.weight")):
            continue
        if kind == "internlm2" and name.endswith("q_proj.weight"):  # a group of queries, their key, their value, ...
            groups = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            head = len(tensor) // heads
            apart = [part.view(keys, -1, head, part.shape[1]) for part in groups]
            name = name.replace("self_attn.q_proj", "attention.wqkv")
            tensor = torch.cat(apart, 1).reshape(-1, tensor.shape[1])
        for today, then in OTHERS[kind][0].items():
            name = name.replace(today, then)
        found[name] = tensor.contiguous()
    config = {OTHERS[kind][1].get(key, key): value for key, value in config.items()}
    own = {"AutoConfig": f"configuration_{kind}.Config", "AutoModelForCausalLM": f"modeling_{kind}.Model"}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | {"model_type": kind, "auto_map": own}))
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(("kind", "tied"), crossed(OTHERS, [False, True]))
def test_what_computes_as_llama_does_becomes_a_mixtral_by_renaming(
    kind: str, tied: bool, make: Make, tmp_path: Path
) -> None:
    llama, other = make("llama", tie_word_embeddings=tied), make("other", seed=1, tie_word_embeddings=tied)
    base = published(llama, tmp_path / "base", kind)
    source, expected = open_folder(base), tensors_of(llama)
    assert source.tensors.keys() == expected.keys()
    assert all(torch.equal(source.load(name), tensor) for name, tensor in expected.items())
    for name, tensor in source.tensors.items():
        n = tensor.elements
        assert torch.equal(tensor.read(n // 3, n // 2), expected[name].flatten()[n // 3 : n // 2])
    # with a Llama as its other expert, it is the mixture that two Llamas make
    for name, one in (("one", llama), ("two", base)):
        assert merge(recipe(one, one, other), tmp_path / name).plan.host.name == "mixtral"
    assert contents(tmp_path / "one")["config.json"] == contents(tmp_path / "two")["config.json"]
    ours, theirs = tensors_of(tmp_path / "two"), tensors_of(tmp_path / "one")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.skipif("exaone" not in transformers.CONFIG_MAPPING, reason="this transformers doesn't have it")
def test_transformers_own_exaone_has_the_same_logits(tmp_path: Path) -> None:
    base = make_family(tmp_path, "EXAONE 3.5")
    assert merge(recipe(base, base, base), tmp_path / "moe").plan.host.name == "mixtral"
    assert (logits(load_model(tmp_path / "moe")) - logits(load_model(base))).abs().max() < 1e-4


@pytest.mark.skipif("ministral" not in transformers.CONFIG_MAPPING, reason="this transformers doesn't have it")
@pytest.mark.parametrize(("types", "host"), [("sliding full", "qwen2_moe"), ("sliding sliding", "mixtral")])
def test_a_ministral_is_a_mistral_with_windows_by_layer(types: str, host: str, make: Make, tmp_path: Path) -> None:
    kinds = [f"{kind}_attention" for kind in types.split()]
    config = transformers.MinistralConfig(**SHAPE, head_dim=8, sliding_window=7, layer_types=kinds)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    base = tmp_path / "base"
    assert merge(recipe(base, base, make("mistral", kind="mistral")), tmp_path / "mixed").plan.host.name == host
    merge(recipe(base, base, base), tmp_path / "moe")
    assert (logits(load_model(tmp_path / "moe")) - logits(load_model(base))).abs().max() < 1e-4


@pytest.mark.parametrize("shared_weights", ["base", "average"])
def test_what_computes_alike_mixes_whatever_it_is_called(shared_weights: str, make: Make, tmp_path: Path) -> None:
    llamas = [make(f"llama-{i}", seed=i) for i in range(3)]
    mistral = make("mistral", seed=3, kind="mistral")
    others = [published(llamas[1], tmp_path / "b", "internlm2"), published(llamas[2], tmp_path / "c", "exaone")]
    for name, base, experts in (("one", llamas[0], llamas[1:]), ("two", llamas[0], others)):
        merge(recipe(base, *experts, mistral, shared_weights=shared_weights), tmp_path / name)
    one, two = (tensors_of(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.allclose(two[name], tensor, rtol=1e-2) for name, tensor in one.items())  # sums in another order


def test_a_tokenizer_that_is_code_is_told_where_it_is_needed(make: Make, demo_models: Path, tmp_path: Path) -> None:
    base = published(make("llama", vocab_size=512), tmp_path / "base", "internlm2")
    own = {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}
    fields = {"tokenizer_class": "InternLM2Tokenizer", "auto_map": own, "bos_token": "<s>"}
    (base / "tokenizer_config.json").write_text(json.dumps(fields))
    (base / "tokenizer.model").write_bytes(b"\x0a\x0e")
    [told] = [w for w in check(recipe(base, base, base)).warnings if w.code == "source.tokenizer"]
    assert "isn't run" in told.what and len(str(told).splitlines()) == 1
    asked = recipe(base, base, base, gate_mode="hidden")
    asked = asked.with_experts([e.model_copy(update={"positive_prompts": ["a"]}) for e in asked.experts])
    with pytest.raises(LazyMoEError, match="isn't run"):
        merge(asked, tmp_path / "never")
    # a tokenizer.json needs no class of its own, in either transformers
    shutil.copy(demo_models / "base" / "tokenizer.json", base)
    assert not [w for w in check(recipe(base, base, base)).warnings if w.code == "source.tokenizer"]
    merge(recipe(base, base, base), tmp_path / "moe")
    written = json.loads((tmp_path / "moe" / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast" and "auto_map" not in written


@pytest.fixture
def phi(make: Make) -> Path:
    return make("phi", kind="phi", intermediate_size=128, num_key_value_heads=4, partial_rotary_factor=0.75)


def test_phis_first_layout(phi: Path, make: Make, tmp_path: Path) -> None:
    source = open_folder(old(phi, tmp_path / "old"))
    expected = tensors_of(phi)
    assert source.tensors.keys() == expected.keys()
    assert all(torch.equal(source.load(name), tensor) for name, tensor in expected.items())
    for name, base in (("one", phi), ("two", tmp_path / "old")):
        merge(recipe(base, phi, tmp_path / "old"), tmp_path / name)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    different = {name for name in one if one[name] != two[name]}
    assert different == {"lazymoe.json", "recipe.yaml"}  # where it came from


def test_it_is_read_from_a_pickle_too(phi: Path, tmp_path: Path) -> None:
    pickled, plain = old(phi, tmp_path / "pickled", pickled=True), old(phi, tmp_path / "plain")
    source, expected = open_source(Reference(str(pickled)), "base_model", allow_pickle=True), open_folder(plain)
    assert source.config == expected.config
    assert source.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(source.load(name), expected.load(name)) for name in expected.tensors)
    for folder in (pickled, plain):
        merge(recipe(folder, folder, phi), tmp_path / f"{folder.name}-moe", allow_pickle=True)
    ours, theirs = tensors_of(tmp_path / "pickled-moe"), tensors_of(tmp_path / "plain-moe")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    [problem] = check(recipe(pickled, pickled)).errors
    assert problem.code == "source.pickle"


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_head_that_nothing_reads_is_left_out(kind: str, make: Make) -> None:
    folder = make("tied", kind=kind, tie_word_embeddings=True)
    whole = check(recipe(folder, folder)).plan
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    again = check(recipe(folder, folder)).plan
    assert whole and again and [o.name for o in whole.outputs] == [o.name for o in again.outputs]
