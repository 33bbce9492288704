"""Small models of every dense kind that LazyMoE takes, and what tests do to them and to what they become."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load, load_file, save_file
from transformers import AutoModelForCausalLM

from lazymoe import Recipe
from lazymoe.architectures.registry import HOSTS, dense_of
from lazymoe.checkpoint.safetensors import write_header
from lazymoe.planning.checking import Check

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
KINDS: dict[str, tuple[str, dict[str, object]]] = {  # model_type: transformers' name of it, and what its config needs
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "phi3": ("Phi3", {}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "qwen3_5_text": (
        "Qwen3_5Text",
        {
            "layer_types": ["linear_attention", "full_attention"],
            "head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
    "olmo2": ("Olmo2", {}),
    "granite": (
        "Granite",
        {"attention_multiplier": 0.3, "embedding_multiplier": 2.0, "logits_scaling": 0.5, "residual_multiplier": 0.7},
    ),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        {
            "num_local_experts": 0,
            "layer_types": ["mamba", "attention"],
            "attention_multiplier": 0.3,
            "embedding_multiplier": 2.0,
            "logits_scaling": 0.5,
            "residual_multiplier": 0.7,
            "position_embedding_type": "rope",
            "mamba_n_heads": 8,
            "mamba_d_head": "auto",
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
        },
    ),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2}),
    "ernie4_5": ("Ernie4_5", {"head_dim": 8}),
    "cohere2": ("Cohere2", {"sliding_window": 7, "num_hidden_layers": 4, "logit_scale": 1.5}),
    "cohere": ("Cohere", {"logit_scale": 1.5}),
    "seed_oss": ("SeedOss", {"head_dim": 8}),
    "glm4_moe": (
        "Glm4Moe",
        {"first_k_dense_replace": 2, "partial_rotary_factor": 0.5, "head_dim": 8, "attention_bias": True},
    ),
    "hunyuan_v1_dense": ("HunYuanDenseV1", {"head_dim": 8}),
    "lfm2": ("Lfm2", {"full_attn_idxs": [1], "block_multiple_of": 16}),
    "phi": ("Phi", {}),
    "gemma4_text": (
        "Gemma4Text",
        {
            "num_hidden_layers": 4,
            "sliding_window": 7,
            "head_dim": 8,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 0,
            "final_logit_softcapping": 5.0,
            "rms_norm_eps": 1e-9,  # two norms in a row count it otherwise than one
        },
    ),
}
IDS = torch.arange(2, 62).reshape(2, 30)  # two texts for any of them

GATED = {host.name for host in HOSTS if host.shared_gate}  # whose shared expert needs prompts where routers do

Make = Callable[..., Path]


def make_model(
    folder: Path, name: str, seed: int = 0, kind: str = "llama", dtype: str = "bfloat16", std: float = 0.2,
    **config: object,
) -> Path:  # fmt: skip
    """A random small model, its weights of this standard deviation: ``folder / name``."""
    name_of, needed = KINDS[kind]
    fields = copy.deepcopy({**SHAPE, **needed, **config})
    if kind == "granitemoehybrid":  # where its width stands
        fields["shared_intermediate_size"] = fields["intermediate_size"]
    given = getattr(transformers, f"{name_of}Config")(**fields)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(given)
        for parameter in model.parameters():
            parameter.data = (torch.randn(parameter.shape) * std).to(getattr(torch, dtype))
        for part, buffer in model.named_buffers():
            if part.endswith("layer_scalar"):
                buffer.fill_(0.5 + torch.rand(1).item())
    model.to(getattr(torch, dtype)).save_pretrained(folder / name)
    return folder / name


def recipe(base: Path | str, *experts: Path | str, gate_mode: str = "random", **fields: object) -> Recipe:
    """A recipe of models, with random routers unless said otherwise."""
    listed = [{"source_model": str(e)} for e in experts]
    return Recipe.model_validate({"base_model": str(base), "gate_mode": gate_mode, "experts": listed, **fields})


def rewrite(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], file_name: str = "model.safetensors"
) -> Path:
    """Change the tensors of a model in place."""
    file = folder / file_name
    tensors = load(file.read_bytes())
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def configure(folder: Path, **fields: object) -> Path:
    """Change fields of a model's config.json; those set to None go."""
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def write_recipe(path: Path, recipe: Recipe) -> Path:
    path.write_text(recipe.to_yaml())
    return path


def sparse(folder: Path, config: dict[str, object], shards: int = 1) -> Path:
    """A checkpoint of any size that takes no room: true headers over holes in the file."""
    dense = dense_of(config)
    assert dense is not None
    backbone, ffn = dense.all_shapes(dense.complete(config))
    shapes = list((backbone | ffn).items())
    folder.mkdir()
    weight_map = {}
    for i in range(shards):
        name = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = shapes[i::shards]
        header = write_header((n, "BF16", s) for n, s in part)
        with open(folder / name, "wb") as f:
            f.write(header)
            os.truncate(f.fileno(), len(header) + 2 * sum(s[0] * (s[1] if len(s) > 1 else 1) for _, s in part))
        weight_map |= dict.fromkeys((n for n, _ in part), name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, read by the safetensors package."""
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def load_model(folder: Path) -> torch.nn.Module:
    """Load strictly: nothing missing, unexpected or of another shape."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=True
    )
    assert not any(info.values()), info
    return model.eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    """What a model makes of `IDS`."""
    with torch.no_grad():
        return model(IDS).logits


APART = """
import sys, torch, transformers
transformers.logging.set_verbosity_error()
found = [transformers.AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32, trust_remote_code=True).eval()(
    torch.arange(3, 57)[None], use_cache=False).logits for f in sys.argv[1:]]
print((found[0] - found[1]).abs().max().item())
"""


def apart(one: Path, other: Path, python: str | None = None) -> float:
    """How far the logits of two models are apart on a text of 54 tokens, in this Python's transformers or another's."""
    if python:
        done = subprocess.run([python, "-c", APART, one, other], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return float(done.stdout)
    ids = torch.arange(3, 57)[None]
    with torch.no_grad():
        found = [
            AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32, trust_remote_code=True)
            .eval()(ids, use_cache=False)
            .logits
            for f in (one, other)
        ]
    return float((found[0] - found[1]).abs().max())


LOADED = """
import json, sys, torch, transformers
def logits(folder):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=True)
    assert not any(info.values()), info
    return model.eval()(torch.arange(2, 62).reshape(2, 30)).logits.detach()
found = {}
for folder in json.load(sys.stdin):
    try:
        torch.save(logits(folder), folder + ".logits")
    except Exception as e:
        found[folder] = str(e)
print(json.dumps(found))
"""


def loaded_elsewhere(request: pytest.FixtureRequest, *folders: Path) -> dict[str, str]:
    """Have transformers 4 load models and save their logits beside them; why it can't, by folder."""
    return run_elsewhere(request, LOADED, [str(folder) for folder in folders])


def run_elsewhere(request: pytest.FixtureRequest, code: str, given: object) -> dict[str, str]:
    """Run code in transformers 4; what it couldn't do, by folder, and why."""
    python = request.config.getoption("transformers4")
    if not python:
        pytest.skip("no --transformers4")
    done = subprocess.run([python, "-c", code], input=json.dumps(given), text=True, check=True, capture_output=True)
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def warnings(found: Check) -> list[str]:
    """The warnings of a check that found no errors."""
    assert not found.errors
    return [str(w) for w in found.warnings]
