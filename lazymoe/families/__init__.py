"""The registry: which mixture-of-experts architecture a set of dense models can become.

A family is one file here, a record of data; add it to `FAMILIES` and the rest of the code knows it.
"""

from __future__ import annotations

import re

from lazymoe.errors import error, nearest
from lazymoe.families.cohere import COHERE2_MOE
from lazymoe.families.deepseek import DEEPSEEK
from lazymoe.families.ernie import ERNIE4_5_MOE
from lazymoe.families.gemma import GEMMA4_MOE
from lazymoe.families.glm import GLM4_MOE
from lazymoe.families.granite import GRANITE_MOE
from lazymoe.families.lfm2 import LFM2_MOE
from lazymoe.families.mixtral import MIXTRAL
from lazymoe.families.olmo import FLEX_OLMO
from lazymoe.families.phixtral import PHIXTRAL
from lazymoe.families.qwen import QWEN2_MOE, QWEN3_MOE
from lazymoe.families.types import Config, Dense, Family
from lazymoe.recipe import Recipe

__all__ = ["FAMILIES", "Dense", "Family", "dense_of", "find"]

FAMILIES = (  # the first that takes a model is its own
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
    "phi-msft": "this is Phi-2's first layout in a pickle; as safetensors it could be read",
    "olmo3": "OLMo 3 has layers with a sliding window, FlexOlmo has none",
}


def dense_of(model_type: object) -> Dense | None:
    """The record of a dense architecture, if there is one."""
    return next((d for family in FAMILIES for d in family.takes if d.model_type == model_type), None)


def find(config: Config, recipe: Recipe) -> tuple[Dense, Family]:
    """What a base model can become: its record, and the first family that takes it and all that the recipe wants.

    Args:
        config: the base model's config.json.
        recipe: what is wanted: `architecture`, and whether there is a shared expert, with prompts or without.

    Raises:
        LazyMoEError: if there is no such family, or none that fits; it says of each why.
    """
    named = [f for f in FAMILIES if recipe.architecture is None or _key(recipe.architecture) in map(_key, _names(f))]
    if not named:
        names = [family.name for family in FAMILIES]
        what = f"there is no architecture '{recipe.architecture}'"
        raise error("architecture", what, nearest(str(recipe.architecture), names))
    dense = dense_of(config.get("model_type"))
    if dense is None:
        what = f"no mixture of experts can be made of the architecture '{config.get('model_type')}'"
        sparse = any(key in config for key in ("num_local_experts", "num_experts", "n_routed_experts"))
        why = "it is one already" if sparse else INEXACT.get(str(config.get("model_type")))
        fits = "; ".join(f"{f.name} takes {', '.join(d.model_type for d in f.takes)}" for f in named)
        raise error("base_model", f"{what}: {why}" if why else what, f"What fits: {fits}.")
    reasons = []
    for family in named:
        if dense in family.takes:
            reason = _misfit(family, dense, config, recipe)
            if not reason:
                return dense, family
            reasons.append(f"{family.name}: {reason}")
        elif recipe.architecture:
            reasons.append(f"{family.name} takes {', '.join(d.model_type for d in family.takes)}")
    others = [f.name for f in FAMILIES if dense in f.takes and f not in named]
    remedy = f"This model can become {' or '.join(others)}." if others else "Change the recipe, or the base model."
    where = "architecture" if recipe.architecture else "shared_experts" if recipe.shared_experts else "base_model"
    raise error(where, f"a {dense.model_type} model doesn't fit ({'; '.join(reasons)})", remedy)


def _misfit(family: Family, dense: Dense, config: Config, recipe: Recipe) -> str | None:
    """Why a family that takes this kind of model can't be made of this one by this recipe."""
    shared = recipe.shared_experts or []
    if shared:
        if len(shared) > 1:
            return "it has one shared expert at most"
        if not family.shared:
            return "it has no shared expert"
        prompted, random = bool(shared[0].positive_prompts or shared[0].negative_prompts), "random" in recipe.gate_mode
        if prompted and not family.shared_gate:
            return "every token passes its shared expert, so that can't have prompts"
        if family.shared_gate and not prompted and not random:
            return "its shared expert has a gate, so it needs prompts"
    experts = len(recipe.experts)
    return family.unfit(dense.complete(config), experts, min(recipe.experts_per_token, experts), len(shared))


def _names(family: Family) -> tuple[str, ...]:
    return family.name, *family.aliases


def _key(name: str) -> str:
    """A family's name as people write it (``Qwen MoE``, ``deepseek``), in the letters that count."""
    return re.sub(r"[^a-z0-9]", "", name.lower()).removesuffix("moe")
