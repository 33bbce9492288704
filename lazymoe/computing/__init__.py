"""What is worked out of models and prompts: weights that experts share, and routers, ``[experts, hidden]`` for each
layer.

One file for each method; `compute` calls them.
"""

from lazymoe.errors import LazyMoEError, error

ROUTERS = "router.safetensors"  # the file that holds the routers
ROUTING = "routing.json"  # where the prompts' tokens went
STATES = "states-{}.safetensors"  # what a sweep goes on from, after so many layers


def broken() -> LazyMoEError:
    """Say that routers aren't numbers."""
    what = "the routers came out as NaN"
    return error("source.broken", "gate_mode", what, "The base model may be broken: try it by itself.")
