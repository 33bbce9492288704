"""DeepSeek-MoE of the first version: Llama whose feed-forward networks are mixtures of experts.

For transformers 4.57 and 5, which have no class for it: load with ``trust_remote_code=True``. All but the mixture is
transformers' own Llama. Every layer is a mixture; tensors have the names of deepseek-moe-16b-base.
"""

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaMLP


class DeepseekConfig(LlamaConfig):
    """Llama's, and `n_routed_experts`, `num_experts_per_tok`, and `n_shared_experts` (0, 1 or None)."""

    model_type = "deepseek"


class Router(nn.Module):
    """Which experts a token goes to, and how much each of them counts."""

    def __init__(self, config):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))  # [E, H]

    def forward(self, x):
        logits, chosen = nn.functional.linear(x, self.weight).float().topk(self.top_k)  # [n, k] both
        return logits.softmax(-1).to(x.dtype), chosen


class Mixture(nn.Module):
    """What a layer has instead of one feed-forward network."""

    def __init__(self, config):
        super().__init__()
        self.gate = Router(config)
        self.experts = nn.ModuleList(LlamaMLP(config) for _ in range(config.n_routed_experts))
        self.shared_experts = LlamaMLP(config) if config.n_shared_experts else None

    def forward(self, x):
        tokens = x.flatten(0, -2)  # [n, H]
        weights, chosen = self.gate(tokens)
        out = torch.zeros_like(tokens) if self.shared_experts is None else self.shared_experts(tokens)
        for number, expert in enumerate(self.experts):
            token, place = (chosen == number).nonzero(as_tuple=True)
            if len(token):
                out = out.index_add(0, token, expert(tokens[token]) * weights[token, place, None])
        return out.view_as(x)


class DeepseekModel(LlamaModel):
    config_class = DeepseekConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.layers:
            layer.mlp = Mixture(config)
        self.post_init()


class DeepseekForCausalLM(LlamaForCausalLM):
    config_class = DeepseekConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = DeepseekModel(config)
        self.post_init()
