"""The registry: which mixture-of-experts architecture a set of dense models can become.

A host is one file of `hosts`, a record of data; add it to `HOSTS` and the rest of the code knows it. What none of them
takes, the generic host does.
"""

from __future__ import annotations

import re
from contextlib import suppress

from lazymoe.architectures.hosts.cohere import COHERE2_MOE
from lazymoe.architectures.hosts.deepseek import DEEPSEEK
from lazymoe.architectures.hosts.ernie import ERNIE4_5_MOE
from lazymoe.architectures.hosts.gemma import GEMMA4_MOE
from lazymoe.architectures.hosts.generic import GENERIC, host_for, host_in
from lazymoe.architectures.hosts.glm import GLM4_MOE
from lazymoe.architectures.hosts.granite import GRANITE_MOE, GRANITE_MOE_HYBRID, GRANITE_MOE_SWA
from lazymoe.architectures.hosts.hunyuan import HUNYUAN_MOE
from lazymoe.architectures.hosts.lfm2 import LFM2_MOE
from lazymoe.architectures.hosts.mixtral import MIXTRAL
from lazymoe.architectures.hosts.olmo import FLEX_OLMO
from lazymoe.architectures.hosts.phixtral import PHIXTRAL
from lazymoe.architectures.hosts.qwen import QWEN2_MOE, QWEN3_5_MOE, QWEN3_MOE
from lazymoe.architectures.learned import learn
from lazymoe.architectures.records import Config, Dense, Host, MoE
from lazymoe.errors import error, nearest
from lazymoe.recipe.schema import Recipe

HOSTS = (  # the first that takes a model is its own
    MIXTRAL, DEEPSEEK, QWEN2_MOE, QWEN3_MOE, QWEN3_5_MOE, PHIXTRAL, GRANITE_MOE, FLEX_OLMO, ERNIE4_5_MOE, COHERE2_MOE,
    LFM2_MOE, GLM4_MOE, GEMMA4_MOE, HUNYUAN_MOE, GRANITE_MOE_HYBRID, GRANITE_MOE_SWA,
)  # fmt: skip


def dense_of(config: Config) -> Dense | None:
    """Find the record of a dense architecture, or learn it from transformers; None if neither can be.

    Args:
        config: a config.json.
    """
    with suppress(ValueError):
        return recorded(config) or learn(config)
    return None


def recorded(config: Config) -> Dense | None:
    """Find the record of a dense architecture; None if there is none, so that it would have to be learned.

    Args:
        config: a config.json.
    """
    return next((d for host in HOSTS for d in host.takes if d.model_type == config.get("model_type")), None)


def host_of(config: Config) -> Host | None:
    """Find the record of a mixture's architecture; None if there is none.

    Args:
        config: the mixture's config.json.
    """
    if config.get("model_type") == GENERIC.name:
        return host_in(config)
    return next((host for host in HOSTS if host.name == config.get("model_type")), None)


def find_host(config: Config, recipe: Recipe) -> tuple[Dense, Host]:
    """Find what a base model can become: its record, and the first host that takes it and all that the recipe wants.

    Args:
        config: the base model's config.json.
        recipe: what is wanted: `architecture`, top-k, and whether there is a shared expert, with prompts or without.

    Raises:
        RecipeError: if the recipe names an architecture that isn't known.
        SourceError: if no host fits; it says of each why.
    """
    every = (*HOSTS, GENERIC)
    named = [h for h in every if recipe.architecture is None or _key(recipe.architecture) in map(_key, _names(h))]
    if not named:
        what = f"there is no architecture '{recipe.architecture}'"
        remedy = nearest(str(recipe.architecture), [host.name for host in every])
        raise error("recipe.unknown-value", "architecture", what, remedy)
    reasons = []
    for host in named:
        try:
            dense, host = _taker(host, config)
        except ValueError as e:
            if recipe.architecture or host is GENERIC:
                reasons.append(f"{host.name} {e}")
            continue
        reason = _misfit(host, config, recipe)
        if not reason:
            return dense, host
        reasons.append(f"{host.name}: {reason}")
    kind = config.get("model_type")
    if dense_of(config) is None:
        why = _why(config)
        what = f"no mixture of experts can be made of the architecture '{kind}': {why}"
        remedy = "Use a dense model whose layers have a feed-forward network each; a newer transformers may know more."
        raise error("source.architecture", "base_model", what, remedy)
    others = [host for host in every if host not in named]
    fitting = [h.name for h in others if _fits(h, config, recipe)]
    what = f"a {kind} model doesn't fit ({'; '.join(reasons)})"
    remedy = f"This model can become {' or '.join(fitting)}." if fitting else "Change the recipe, or the base model."
    where = "architecture" if recipe.architecture else "shared_experts" if recipe.shared_experts else "base_model"
    raise error("source.architecture", where, what, remedy)


def _taker(host: Host, config: Config) -> tuple[Dense, Host]:
    """Give the record of a dense model for a host, and that host as it is for it.

    Raises:
        ValueError: if it doesn't take this kind of model; the message says why.
    """
    if host is GENERIC:
        try:
            dense = learn(config)
        except ValueError as e:
            raise ValueError(f"can't take it: it {e}") from None
        return dense, host_for(dense)
    for dense in host.takes:
        if dense.model_type == config.get("model_type"):
            return dense, host
    raise ValueError(f"takes {_taken(host)}")


def _why(config: Config) -> str:
    """Say why an architecture can't be learned; of a multimodal one, why its text model can't."""
    text = config.get("text_config")
    inside = text if isinstance(text, dict) and isinstance(text.get("model_type"), str) else None
    try:
        learn(inside or config)
    except ValueError as e:
        return f"its text model, a {inside['model_type']}, {e}" if inside else f"it {e}"
    return ""


def _fits(host: Host, config: Config, recipe: Recipe) -> bool:
    """Tell whether a model can become a host by a recipe."""
    try:
        return _misfit(_taker(host, config)[1], config, recipe) is None
    except ValueError:
        return False


def _misfit(host: Host, config: Config, recipe: Recipe) -> str | None:
    """Say why a host that takes this kind of model can't be made of this one by this recipe; None if it can."""
    shared = recipe.shared_experts or []
    if shared:
        if not host.shared:
            return "it has no shared expert"
        if len(shared) > 1 and not all("{shared}" in name for name in host.shared):
            return "it has one shared expert at most"
        prompted = any(expert.positive_prompts or expert.negative_prompts for expert in shared)
        if prompted and not host.shared_gate:
            return "every token passes its shared expert, so that can't have prompts"
        if host.shared_gate and not prompted and "random" not in recipe.gate_mode:
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
