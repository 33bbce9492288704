"""Plans: made from headers alone, at once, with the numbers that are published."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from small_models import Make, recipe, sparse, tensors_of, warnings

from lazymoe import Recipe, check, merge
from lazymoe.architectures.dense import LLAMA
from lazymoe.architectures.hosts.mixtral import MIXTRAL
from lazymoe.checkpoint.opening import open_folder
from lazymoe.data import ready_made
from lazymoe.planning.composing import make_plan
from lazymoe.planning.plan import Computed, Piece
from lazymoe.planning.prepared import prepare

MISTRAL_7B = {
    "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
PHI_2 = {
    "model_type": "phi", "vocab_size": 51200, "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32,
    "num_attention_heads": 32, "partial_rotary_factor": 0.4, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_70B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "config", "total", "active"),
    [
        ("beyonder-4x7b-v3", MISTRAL_7B, "24.2", "12.9"),
        ("clown-car-4x7b", MISTRAL_7B, "24.2", "12.9"),
        ("mini-mixtral-v0.2", MISTRAL_7B, "12.9", "12.9"),
        ("phixtral-4x2_8", PHI_2, "7.81", "4.46"),
        ("phixtral-2x2_8", PHI_2, "4.46", "4.46"),
    ],
)
def test_published_parameter_counts(
    tmp_path: Path, name: str, config: dict[str, object], total: str, active: str
) -> None:
    """Those of the ready-made recipes, with checkpoints of the published sizes in place of the Hub's."""
    model, given = str(sparse(tmp_path / "model", config)), Recipe.from_file(ready_made()[name])
    every = [expert.model_copy(update={"source_model": model}) for expert in given.every_expert]
    plan = check(given.model_copy(update={"base_model": model}).with_experts(every)).plan
    assert plan is not None
    digits = len(total.split(".")[1])
    assert [f"{n / 1e9:.{digits}f}" for n in (plan.parameters, plan.active_parameters)] == [total, active]
    assert plan.nbytes == 2 * plan.parameters


def test_mixtral_8x7b_has_its_published_parameters(tmp_path: Path) -> None:
    model = sparse(tmp_path / "mistral", MISTRAL_7B)
    plan = check(recipe(model, *[model] * 8)).plan
    assert plan is not None
    assert (round(plan.parameters / 1e9, 1), round(plan.active_parameters / 1e9, 1)) == (46.7, 12.9)
    assert plan.nbytes == 2 * plan.parameters


def test_eight_experts_of_70b_are_planned_from_headers_alone(tmp_path: Path) -> None:
    models = [sparse(tmp_path / f"llama-{i}", LLAMA_70B, shards=30) for i in range(8)]
    start = time.process_time()
    prepared = prepare(recipe(models[0], *models))
    assert time.process_time() - start < 30  # to read a terabyte of weights takes minutes, were it zeros
    assert prepared.errors == () and prepared.plan is not None
    ffn = 80 * 3 * 8192 * 28672
    dense = 70_553_706_496  # Llama 3 70B
    assert prepared.plan.parameters == dense + 7 * ffn + 80 * 8 * 8192
    assert prepared.plan.active_parameters == dense + ffn + 80 * 8 * 8192


def test_shards_are_cut_by_size_in_order(make: Make) -> None:
    base = make("base")
    sources = [open_folder(base)] * 3
    plan = make_plan(recipe(base, base, base), sources, LLAMA, MIXTRAL, shard_size=10_000)
    files = plan.shards
    assert [o for _, outputs in files for o in outputs] == list(plan.outputs)
    assert all(sum(o.nbytes for o in outputs) <= 10_000 for _, outputs in files)
    assert [name for name, _ in files] == [
        f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)
    ]


def test_four_bit_size_is_that_of_bitsandbytes(tmp_path: Path) -> None:
    model = sparse(tmp_path / "mistral", MISTRAL_7B)
    plan = check(recipe(model, *[model] * 4)).plan
    assert plan is not None
    outside = 2 * 32000 * 4096 + 65 * 4096  # embeddings, head and norms stay in 16 bit
    attention = sum(o.parameters for o in plan.outputs if ".self_attn." in o.name)
    bits = 16 * outside + 8.125 * attention + (4 + 8.125 / 32) * (plan.parameters - outside - attention)
    assert plan.bytes_4bit == int(bits / 8)


def test_tied_heads_stay_tied(make: Make) -> None:
    base = make("base", tie_word_embeddings=True)
    plan = check(recipe(base, base, base)).plan
    assert plan is not None
    assert "lm_head.weight" not in {o.name for o in plan.outputs}
    assert plan.config["tie_word_embeddings"] is True


def test_of_a_corrected_expert_the_down_projections_alone_are_computed(make: Make) -> None:
    """A third of its weights; an expert without prompts has none, and no count changes."""
    models = [make(f"m{i}", seed=i) for i in range(3)]
    listed = [{"source_model": str(models[1]), "positive_prompts": ["a text"]}, {"source_model": str(models[2])}]
    fields = {"base_model": str(models[0]), "gate_mode": "random", "experts": listed}
    own, corrected = (
        prepare(Recipe.model_validate({**fields, "expert_weights": weights})).plan for weights in ("own", "corrected")
    )
    assert own and corrected and own.corrected == () and corrected.corrected == (0,)
    parts = [part for output in corrected.outputs for part in output.parts]
    computed = [part for part in parts if isinstance(part, Computed) and part.source]
    assert [part.name for part in computed] == [f"model.layers.{i}.mlp.down_proj.weight" for i in range(own.layers)]
    copied = [part for part in parts if isinstance(part, Piece) and part.source == 1]
    assert sum(p.elements for p in copied) == 2 * sum(p.elements for p in computed)
    assert (corrected.parameters, corrected.active(1)) == (own.parameters, own.active(1))


def test_llama_and_mistral_mix(make: Make, tmp_path: Path) -> None:
    """They compute the same but for what their configs say, and that is told."""
    llama = make("llama", kind="llama", dtype="float32")
    mistral = make("mistral", kind="mistral", dtype="float32", seed=1, sliding_window=None)
    windowed = make("windowed", kind="mistral", dtype="float32", seed=2, sliding_window=7)
    for base, expert in ((llama, mistral), (mistral, llama)):
        merge(recipe(base, base, expert), tmp_path / f"{base.name}-moe")
        own = tensors_of(expert)["model.layers.1.mlp.up_proj.weight"]
        name = "model.layers.1.block_sparse_moe.experts.1.w3.weight"
        assert torch.equal(tensors_of(tmp_path / f"{base.name}-moe")[name], own)
    told = " ".join(warnings(check(recipe(llama, llama, windowed))))
    assert "an attention window of 7 tokens instead of no attention window" in told
    [problem] = check(recipe(llama, llama, make("granite", kind="granite"))).errors
    assert "is a granite model, the base model a llama" in problem.what
