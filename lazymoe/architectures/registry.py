"""The registry: which mixture-of-experts architecture a set of dense models can become.

A host is one file of `hosts`, a record of data; add it to `HOSTS` and the rest of the code knows it.
"""

from __future__ import annotations

import re

from lazymoe.architectures.hosts.cohere import COHERE2_MOE
from lazymoe.architectures.hosts.deepseek import DEEPSEEK
from lazymoe.architectures.hosts.ernie import ERNIE4_5_MOE
from lazymoe.architectures.hosts.gemma import GEMMA4_MOE
from lazymoe.architectures.hosts.glm import GLM4_MOE
from lazymoe.architectures.hosts.granite import GRANITE_MOE
from lazymoe.architectures.hosts.lfm2 import LFM2_MOE
from lazymoe.architectures.hosts.mixtral import MIXTRAL
from lazymoe.architectures.hosts.olmo import FLEX_OLMO
from lazymoe.architectures.hosts.phixtral import PHIXTRAL
from lazymoe.architectures.hosts.qwen import QWEN2_MOE, QWEN3_MOE
from lazymoe.architectures.records import Config, Dense, Host, MoE
from lazymoe.errors import error, nearest
from lazymoe.recipe.schema import Recipe

HOSTS = (  # the first that takes a model is its own
    MIXTRAL, DEEPSEEK, QWEN2_MOE, QWEN3_MOE, PHIXTRAL, GRANITE_MOE, FLEX_OLMO, ERNIE4_5_MOE, COHERE2_MOE, LFM2_MOE,
    GLM4_MOE, GEMMA4_MOE,
)  # fmt: skip
INEXACT = {  # dense architectures that look as if they had a home, and why they don't
    "gemma": "Gemma's norms and embeddings are scaled as in no mixture",
    "gemma2": "Gemma 2 has norms before and after its feed-forward network, and no mixture has its attention too",
    "gemma3_text": "Gemma 3 has norms before and after its feed-forward network, and no mixture has its attention too",
    "gemma4": "only its text model fits; load it with AutoModelForCausalLM and save a Gemma4ForCausalLM, made from its "
    "config.text_config, that was given its model.language_model as model and its lm_head",
    "olmo": "OLMo 1 has norms without weights and none of queries and keys, OLMoE has both",
    "olmo3": "OLMo 3 has layers with a sliding window, FlexOlmo has none",
}


def dense_of(model_type: object) -> Dense | None:
    """Find the record of a dense architecture; None if there is none.

    Args:
        model_type: as config.json has it.
    """
    return next((d for host in HOSTS for d in host.takes if d.model_type == model_type), None)


def host_of(model_type: object) -> Host | None:
    """Find the record of a mixture's architecture; None if there is none.

    Args:
        model_type: as the mixture's config.json has it.
    """
    return next((host for host in HOSTS if host.name == model_type), None)


def find_host(config: Config, recipe: Recipe) -> tuple[Dense, Host]:
    """Find what a base model can become: its record, and the first host that takes it and all that the recipe wants.

    Args:
        config: the base model's config.json.
        recipe: what is wanted: `architecture`, top-k, and whether there is a shared expert, with prompts or without.

    Raises:
        RecipeError: if the recipe names an architecture that isn't known.
        SourceError: if no host fits; it says of each why.
    """
    named = [h for h in HOSTS if recipe.architecture is None or _key(recipe.architecture) in map(_key, _names(h))]
    if not named:
        what = f"there is no architecture '{recipe.architecture}'"
        remedy = nearest(str(recipe.architecture), [host.name for host in HOSTS])
        raise error("recipe.unknown-value", "architecture", what, remedy)
    dense = dense_of(config.get("model_type"))
    if dense is None:
        what = f"no mixture of experts can be made of the architecture '{config.get('model_type')}'"
        counts = [config.get(key) for key in ("num_local_experts", "num_experts", "n_routed_experts")]
        sparse = any(isinstance(n, int) and n > 1 for n in counts)
        why = "it is one already" if sparse else INEXACT.get(str(config.get("model_type")))
        fits = "; ".join(f"{h.name} takes {_taken(h)}" for h in named)
        raise error("source.architecture", "base_model", f"{what}: {why}" if why else what, f"What fits: {fits}.")
    reasons = []
    for host in named:
        if dense in host.takes:
            reason = _misfit(host, dense, config, recipe)
            if not reason:
                return dense, host
            reasons.append(f"{host.name}: {reason}")
        elif recipe.architecture:
            reasons.append(f"{host.name} takes {_taken(host)}")
    others = [h for h in HOSTS if dense in h.takes and h not in named]
    fitting = [h.name for h in others if not _misfit(h, dense, config, recipe)]
    what = f"a {dense.model_type} model doesn't fit ({'; '.join(reasons)})"
    remedy = f"This model can become {' or '.join(fitting)}." if fitting else "Change the recipe, or the base model."
    where = "architecture" if recipe.architecture else "shared_experts" if recipe.shared_experts else "base_model"
    raise error("source.architecture", where, what, remedy)


def _misfit(host: Host, dense: Dense, config: Config, recipe: Recipe) -> str | None:
    """Say why a host that takes this kind of model can't be made of this one by this recipe; None if it can."""
    shared = recipe.shared_experts or []
    if shared:
        if len(shared) > 1:
            return "it has one shared expert at most"
        if not host.shared:
            return "it has no shared expert"
        prompted, random = bool(shared[0].positive_prompts or shared[0].negative_prompts), "random" in recipe.gate_mode
        if prompted and not host.shared_gate:
            return "every token passes its shared expert, so that can't have prompts"
        if host.shared_gate and not prompted and not random:
            return "its shared expert has a gate, so it needs prompts"
    experts = len(recipe.experts)
    return host.unfit(MoE(config, experts, min(recipe.experts_per_token, experts), len(shared)))


def _taken(host: Host) -> str:
    return ", ".join(dense.model_type for dense in host.takes)


def _names(host: Host) -> tuple[str, ...]:
    return host.name, *host.aliases


def _key(name: str) -> str:
    """Spell a host's name as people write it (``Qwen MoE``, ``deepseek``) in the letters that count."""
    return re.sub(r"[^a-z0-9]", "", name.lower()).removesuffix("moe")
