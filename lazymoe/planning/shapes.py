"""What a recipe would take of models of a known shape, without the models: for those who have none of them yet."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from lazymoe.architectures.registry import dense_of, find_host
from lazymoe.checkpoint.safetensors import Stored
from lazymoe.checkpoint.source import Source
from lazymoe.checkpoint.tensors import TensorInfo
from lazymoe.planning.composing import make_plan
from lazymoe.planning.prepared import Prepared
from lazymoe.recipe.reference import Reference
from lazymoe.recipe.schema import Recipe

_32 = {"num_attention_heads": 32, "num_hidden_layers": 32}
SHAPES: dict[str, dict[str, Any]] = {  # dense models that people fine-tune most, by what counts of their config.json
    "TinyLlama-1.1B": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632,
        "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
    },
    "Mistral-7B": {
        "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, **_32,
        "num_key_value_heads": 8, "max_position_embeddings": 32768, "sliding_window": 4096,
    },
    "phi-2": {
        "model_type": "phi", "vocab_size": 51200, "hidden_size": 2560, "intermediate_size": 10240, **_32,
        "max_position_embeddings": 2048, "partial_rotary_factor": 0.4,
    },
    "SmolLM2-1.7B": {
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 24, "num_attention_heads": 32, "tie_word_embeddings": True,
    },
    "Qwen2.5-1.5B": {
        "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960,
        "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "Qwen3-0.6B": {
        "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
    "Llama-3.1-70B": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672,
        "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
    "Qwen3.5-4B": {
        "model_type": "qwen3_5_text", "vocab_size": 248320, "hidden_size": 2560, "intermediate_size": 9216,
        "num_hidden_layers": 32, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256,
        "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "max_position_embeddings": 262144, "tie_word_embeddings": True,
    },
    "gemma-3-4b": {
        "model_type": "gemma3_text", "vocab_size": 262208, "hidden_size": 2560, "intermediate_size": 10240,
        "num_hidden_layers": 34, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "max_position_embeddings": 131072, "sliding_window": 1024, "tie_word_embeddings": True,
    },
    "Mistral-Small-24B": {
        "model_type": "mistral", "vocab_size": 131072, "hidden_size": 5120, "intermediate_size": 32768,
        "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 32768, "sliding_window": None,
    },
    "smol_llama-220M": {
        "model_type": "llama", "vocab_size": 32128, "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 10, "num_attention_heads": 32, "num_key_value_heads": 8,
    },
}  # fmt: skip


def imagine(recipe: Recipe, config: dict[str, Any], folder: Path) -> Prepared:
    """Make a recipe ready as if its models were of a shape, in 16 bit, and none of them here. Adapters take nothing.

    Args:
        recipe: what is wanted; its prompts are texts.
        config: what counts of the models' config.json.
        folder: where they would be downloaded to.
    """
    given = dense_of(config)
    assert given
    dense, host = find_host(full := given.complete(config), recipe)
    backbone, ffn = dense.all_shapes(full)
    tied = full.get("tie_word_embeddings")
    shapes = {name: of for name, of in (backbone | ffn).items() if math.prod(of) and not (tied and name == dense.head)}

    def model(reference: Reference) -> Source:
        place, file = folder / "imagined" / reference.model, "model.safetensors"
        tensors, size = dict[str, TensorInfo](), 0
        for name, shape in shapes.items():
            tensors[name] = TensorInfo(name, "BF16", shape, Stored(place, file, size, "BF16"))
            size += tensors[name].nbytes
        return Source(reference, place, None, full, tensors, {file: size}, "BF16", dense=dense)

    models = {reference: model(replace(reference, adapter=None)) for _, reference in recipe.models}
    sources = tuple(models[named.reference] for named in recipe.models)
    shared = recipe.shared_weights or ("regmean" if recipe.gate_mode == "fit" else "base")
    plan = make_plan(recipe, sources, dense, host, shared)
    return Prepared(recipe, recipe, sources, plan, (), (), (), allow_pickle=False)
