"""What is worked out before the writing: routers, ``[experts, hidden]`` for each layer, and weights that experts share.

One file for each method; `compute` calls them.
"""

from collections.abc import Iterable

ROUTERS = "router.safetensors"  # the files that hold what was worked out
SHARED = "shared-{}.safetensors"
CORRECTED = "corrected-{source:05}-{layer:05}.safetensors"
STATES = "states-{}.safetensors"  # what a sweep goes on from, after so many layers


def shared_files(layers: int) -> list[str]:
    """Name the files of shared weights: one for each layer, then that of what is outside the layers.

    Args:
        layers: how many there are.
    """
    return [SHARED.format(place) for place in (*(f"{layer:05}" for layer in range(layers)), "outer")]


def corrected_files(experts: Iterable[int], layers: int) -> list[list[str]]:
    """Name the files of corrected experts, for each layer one for each expert.

    Args:
        experts: their numbers.
        layers: how many there are.
    """
    return [[CORRECTED.format(source=expert + 1, layer=layer) for expert in experts] for layer in range(layers)]
