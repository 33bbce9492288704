"""Make the models of ``transformers4/``: every dense kind as transformers 4.57 saves it, tied where its class ties.

Run it with a Python that has transformers 4.57: ``python tests/data/make_transformers4.py``
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
KINDS: dict[str, dict[str, object]] = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Phi3": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 4},
    "Olmo2": {},
    "Granite": {"attention_multiplier": 0.3, "embedding_multiplier": 2.0, "logits_scaling": 0.5},
    "Ernie4_5": {"head_dim": 4},
    "Cohere2": {"sliding_window": 7, "num_hidden_layers": 4},
    "Lfm2": {"full_attn_idxs": [1], "block_multiple_of": 8},
    "Phi": {},
    "Cohere": {},
    "SeedOss": {"head_dim": 4},
    "HunYuanDenseV1": {"head_dim": 4},
    "Glm4Moe": {"first_k_dense_replace": 2, "head_dim": 4, "attention_bias": True, "n_routed_experts": 2},
    "SmolLM3": {"no_rope_layers": [1, 0], "use_sliding_window": True, "sliding_window": 7},
    "GraniteMoeHybrid": {
        "num_local_experts": 0, "shared_intermediate_size": 24, "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8,
    },
}  # fmt: skip

if __name__ == "__main__":
    assert transformers.__version__.startswith("4.57"), transformers.__version__
    for kind, fields in KINDS.items():
        config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **fields})
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
        for parameter in model.parameters():
            parameter.data = (torch.randn(parameter.shape) * 0.2).bfloat16()
        model.to(torch.bfloat16).save_pretrained(Path(__file__).parent / "transformers4" / kind.lower())
