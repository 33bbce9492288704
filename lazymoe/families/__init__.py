"""The registry: which mixture-of-experts architecture a set of dense models can become.

A family is one file here, a record of data; add it to `FAMILIES` and the rest of the code knows it.
"""

from __future__ import annotations

from lazymoe.errors import error, nearest
from lazymoe.families.mixtral import MIXTRAL
from lazymoe.families.olmo import FLEX_OLMO
from lazymoe.families.qwen import QWEN2_MOE, QWEN3_MOE
from lazymoe.families.types import Dense, Family

__all__ = ["FAMILIES", "Dense", "Family", "find"]

FAMILIES = (MIXTRAL, QWEN2_MOE, QWEN3_MOE, FLEX_OLMO)  # the first that takes a model is its own


def find(model_type: str, architecture: str | None = None) -> tuple[Dense, Family]:
    """The dense record of a model_type and the family it goes into, the first that takes it.

    Raises:
        LazyMoEError: if there is no such family, or none that takes it.
    """
    named = [family for family in FAMILIES if architecture in (None, family.name, *family.aliases)]
    if not named:
        names = [family.name for family in FAMILIES]
        raise error("architecture", f"there is no architecture '{architecture}'", nearest(str(architecture), names))
    for family in named:
        for dense in family.takes:
            if dense.model_type == model_type:
                return dense, family
    fits = "; ".join(f"{f.name} takes {', '.join(d.model_type for d in f.takes)}" for f in named)
    raise error(
        "base_model", f"no mixture of experts can be made of the architecture '{model_type}'", f"What fits: {fits}."
    )
