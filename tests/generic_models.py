"""Small models of dense kinds that have no record of their own: shapes as those on the Hub have them, scaled down."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import transformers
from small_models import SHAPE
from transformers import AutoModelForCausalLM

_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 64, "bos_token_id": 1,
        "eos_token_id": 2}  # fmt: skip
_TYPES = ["sliding_attention", "full_attention"]
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_d_conv": 4,
          "mamba_expand": 2, "mamba_chunk_size": 8}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {  # name: transformers' name of its config, and what that needs
    "Gemma 1": ("Gemma", {"head_dim": 8}),
    "Gemma 2": ("Gemma2", {"head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 8}),
    "Gemma 3": ("Gemma3Text", {"head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 8, "layer_types": _TYPES}),
    "VaultGemma": ("VaultGemma", {"head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 8}),
    "RecurrentGemma": ("RecurrentGemma", {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 7}),
    "OLMo 1": ("Olmo", {"clip_qkv": 4.0}),
    "OLMo 3": ("Olmo3", {"sliding_window": 7, "layer_types": _TYPES}),
    "StableLM 2": ("StableLm", {"use_qkv_bias": True, "partial_rotary_factor": 0.25}),
    "StableLM 2 12B": ("StableLm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "StarCoder2": ("Starcoder2", {"sliding_window": 7}),
    "Pythia": ("GPTNeoX", {"rotary_pct": 0.25}),
    "GPT-NeoX, sequential": ("GPTNeoX", {"use_parallel_residual": False}),
    "GPT-2": ("GPT2", _GPT),
    "GPT-J": ("GPTJ", {**_GPT, "rotary_dim": 4, "tie_word_embeddings": False}),
    "GPT-Neo": ("GPTNeo", {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
                           "window_size": 7}),
    "GPT-BigCode": ("GPTBigCode", _GPT),
    "CodeGen": ("CodeGen", {**_GPT, "rotary_dim": 4, "n_ctx": 64, "tie_word_embeddings": False}),
    "Falcon 7B": ("Falcon", {"multi_query": True, "new_decoder_architecture": False}),
    "Falcon 40B": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False}),
    "Falcon RW": ("Falcon", {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True}),
    "Falcon H1": ("FalconH1", {"mamba_d_ssm": 64, **_MAMBA, "head_dim": 8, "mlp_multipliers": [0.9, 0.3]}),
    "Bamba": ("Bamba", {"attn_layer_indices": [1], **_MAMBA}),
    "Nemotron": ("Nemotron", {"partial_rotary_factor": 0.5}),
    "AFM": ("Arcee", {}),
    "Apertus": ("Apertus", {}),
    "EXAONE 4": ("Exaone4", {"sliding_window": 7, "layer_types": _TYPES}),
    "GLM-4 9B chat": ("Glm", {"head_dim": 8, "partial_rotary_factor": 0.5, "attention_bias": True}),
    "GLM-4 0414": ("Glm4", {"head_dim": 8, "partial_rotary_factor": 0.5}),
    "Phi-4 mini": ("Phi3", {"partial_rotary_factor": 0.75, "hidden_size": 64, "original_max_position_embeddings": 32,
                            "rope_scaling": {"type": "longrope", "long_factor": [1.5] * 6, "short_factor": [1.0] * 6}}),
    "SmolLM3": ("SmolLM3", {"no_rope_layers": [1, 0], "use_sliding_window": False}),
    "Command R": ("Cohere", {"logit_scale": 1.5}),
    "Qwen 3.5": ("Qwen3_5Text", {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8,
                                 "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
                                 "linear_value_head_dim": 8}),
    "Hunyuan": ("HunYuanDenseV1", {"head_dim": 8}),
    "Seed-OSS": ("SeedOss", {"head_dim": 8}),
    "Granite 4": ("GraniteMoeHybrid", {"num_local_experts": 0, "shared_intermediate_size": 48,
                                       "layer_types": ["mamba", "attention"], "position_embedding_type": "nope",
                                       **_MAMBA}),
    "Ministral 3": ("Ministral3", {"head_dim": 8}),
    "EXAONE 3.5": ("Exaone", {**_GPT, "num_attention_heads": 4, "num_hidden_layers": 2, "hidden_size": 32}),
    "InternLM 3": ("InternLM3", {"qkv_bias": True, "bias": True}),
    "Persimmon": ("Persimmon", {}),
    "Helium": ("Helium", {"head_dim": 8}),
    "MiniCPM3": ("MiniCPM3", {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
                              "v_head_dim": 8, "num_key_value_heads": 4}),
    "BitNet": ("BitNet", {}),
    "DiffLlama": ("DiffLlama", {}),
    "Doge": ("Doge", {}),
    "Jais 2": ("Jais2", {}),
    "Nanochat": ("NanoChat", {}),
    "Youtu": ("Youtu", {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
                        "v_head_dim": 8, "num_key_value_heads": 4}),
    "CWM": ("Cwm", {"sliding_window": 7, "layer_types": _TYPES, "head_dim": 8}),
    "Gemma 4 E2B": ("Gemma4Text", {"head_dim": 8, "global_head_dim": 16, "hidden_size_per_layer_input": 8,
                                   "vocab_size_per_layer_input": 64, "sliding_window": 7, "num_kv_shared_layers": 0}),
}  # fmt: skip


def make_family(folder: Path, family: str, seed: int = 0, name: str = "", std: float = 0.2, **config: object) -> Path:
    """A random small model of a family, float32, its weights of this standard deviation: ``folder / name``."""
    kind, needed = FAMILIES[family]
    given = {**SHAPE, **copy.deepcopy(needed), **config}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(getattr(transformers, f"{kind}Config")(**given))
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape) * std
    path = folder / (name or family.replace(" ", "-"))
    model.save_pretrained(path)
    return path
