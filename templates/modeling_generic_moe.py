"""A mixture of experts of any dense model that transformers has: that model's own class, in which each layer has its
feed-forward network several times, behind a router that reads what they read.

For transformers 4.57 and 5: load with ``trust_remote_code=True``. config.json is the dense model's, and ``mixture`` in
it says which kind that is, where its layers and their feed-forward networks are, how many experts there are, and how
many of them a token goes to. All but the mixture is transformers' own, and so are the tensors' names.
"""

import copy
import functools

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING, PretrainedConfig, PreTrainedModel

MODELS = {  # of this file: by which of transformers' auto classes each is loaded, and what it is made of
    "GenericMoeModel": ("AutoModel", MODEL_MAPPING),
    "GenericMoeForCausalLM": ("AutoModelForCausalLM", MODEL_FOR_CAUSAL_LM_MAPPING),
}


class Mixture(nn.Module):
    """What a layer has instead of one feed-forward network."""

    def __init__(self, network, hidden_size, experts, experts_per_token, shared_experts, **_):
        super().__init__()
        self.top_k = experts_per_token
        self.router = nn.Linear(hidden_size, experts, bias=False)
        self.experts = nn.ModuleList(copy.deepcopy(network) for _ in range(experts))
        self.shared_experts = nn.ModuleList(copy.deepcopy(network) for _ in range(shared_experts))

    def forward(self, x):
        tokens = x.flatten(0, -2)  # [n, H]
        logits = self.router(tokens.to(self.router.weight.dtype)).float()  # [n, E]
        logits, chosen = logits.topk(self.top_k)  # [n, k] both
        weights = logits.softmax(-1).to(x.dtype)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):  # each runs on its own tokens alone
            token, place = (chosen == number).nonzero(as_tuple=True)
            if len(token):
                out.index_add_(0, token, expert(tokens[token]) * weights[token, place, None])
        for expert in self.shared_experts:
            out = out + expert(tokens)
        return out.view_as(x)


def _mix(model):
    """Put mixtures in the place of a dense model's feed-forward networks."""
    mixture = model.config.mixture
    lists = (part for name, part in model.named_modules() if f".{name}".endswith(f".{mixture['layers']}"))
    for layer in next(lists):
        network = getattr(layer, mixture["feed_forward"])
        setattr(layer, mixture["feed_forward"], Mixture(network, model.config.hidden_size, **mixture))


@functools.cache
def _config_class(kind):
    """Make the config's class, from that of a kind of dense model."""
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"this transformers has no '{kind}' models: use a newer one")
    return _derived("GenericMoeConfig", CONFIG_MAPPING[kind], model_type="generic_moe", _auto_class="AutoConfig")


@functools.cache
def _model_class(name, kind):
    """Make one of this file's two models from that of a kind of dense model."""
    auto, mapping = MODELS[name]
    dense = mapping[CONFIG_MAPPING[kind]]

    def __init__(self, config):
        dense.__init__(self, config)
        _mix(self)
        self._keep_in_fp32_modules = [*(self._keep_in_fp32_modules or ()), "router"]
        self.post_init()

    return _derived(
        name,
        dense,
        __init__=__init__,
        config_class=_config_class(kind),
        is_custom_code=classmethod(lambda cls: False),  # transformers 5 makes buffers as for its own class
        _auto_class=auto,
    )


def _derived(name, dense, **more):
    """Derive a class from one of transformers' own, by the name of one in this file."""
    return type(name, (dense,), {"__module__": __name__, **more})


class GenericMoeConfig(PretrainedConfig):
    """The dense model's config, and `mixture`."""

    model_type = "generic_moe"

    @classmethod
    def from_pretrained(cls, path, **kwargs):
        settings, _ = PretrainedConfig.get_config_dict(path, **kwargs)
        mixture = settings["mixture"]
        found = _config_class(mixture["dense"]).from_pretrained(path, **kwargs)
        if transformers.__version__ < "5":  # which has its rotary settings in another key
            config = found[0] if isinstance(found, tuple) else found
            config.rope_scaling = mixture["rope_scaling"]
        return found


class _Loaded(PreTrainedModel):
    """Loads as the dense model's class does."""

    @classmethod
    def from_pretrained(cls, path, *args, config, output_loading_info=False, **kwargs):
        own = _model_class(cls.__name__, config.mixture["dense"])
        model, info = own.from_pretrained(path, *args, config=config, output_loading_info=True, **kwargs)
        if lost := sorted(info["missing_keys"]):  # its names differ between versions; it would be random
            raise ValueError(f"this transformers finds no '{lost[0]}' in {path}: use the version that it was made with")
        return (model, info) if output_loading_info else model

    @classmethod
    def _from_config(cls, config, **kwargs):
        return _model_class(cls.__name__, config.mixture["dense"])._from_config(config, **kwargs)


class GenericMoeModel(_Loaded):
    """The dense model's decoder, with mixtures."""

    config_class = GenericMoeConfig


class GenericMoeForCausalLM(_Loaded):
    """The dense model with mixtures."""

    config_class = GenericMoeConfig
