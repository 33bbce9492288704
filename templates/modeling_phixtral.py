"""Phixtral: Phi-2 whose feed-forward networks are mixtures of experts.

For transformers 4.57 and 5, which have no class for it: load with ``trust_remote_code=True``. All but the mixture is
transformers' own Phi, and so are the tensors' names.
"""

import torch
from torch import nn
from transformers import PhiConfig, PhiForCausalLM, PhiModel
from transformers.models.phi.modeling_phi import PhiMLP


class PhixtralConfig(PhiConfig):
    """Phi's, and `num_local_experts` and `num_experts_per_tok`."""

    model_type = "phixtral"


class Router(nn.Module):
    """Which experts a token goes to, and how much each of them counts."""

    def __init__(self, config):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.weight = nn.Parameter(torch.empty(config.num_local_experts, config.hidden_size))  # [E, H]

    def forward(self, x):
        logits, chosen = nn.functional.linear(x, self.weight).float().topk(self.top_k)  # [n, k] both
        return logits.softmax(-1).to(x.dtype), chosen


class Mixture(nn.Module):
    """What a layer has instead of one feed-forward network."""

    def __init__(self, config):
        super().__init__()
        self.gate = Router(config)
        self.experts = nn.ModuleList(PhiMLP(config) for _ in range(config.num_local_experts))

    def forward(self, x):
        tokens = x.flatten(0, -2)  # [n, H]
        weights, chosen = self.gate(tokens)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            token, place = (chosen == number).nonzero(as_tuple=True)
            if len(token):
                out = out.index_add(0, token, expert(tokens[token]) * weights[token, place, None])
        return out.view_as(x)


class PhixtralModel(PhiModel):
    config_class = PhixtralConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.layers:
            layer.mlp = Mixture(config)
        self.post_init()


class PhixtralForCausalLM(PhiForCausalLM):
    config_class = PhixtralConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = PhixtralModel(config)
        self.post_init()
