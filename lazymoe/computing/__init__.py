"""What is worked out before the writing: routers, ``[experts, hidden]`` for each layer, and weights that experts share.

One file for each method; `compute` calls them.
"""

ROUTERS = "router.safetensors"  # the files that hold what was worked out
SHARED = "shared-{layer}.safetensors"
OUTER = SHARED.format(layer="outer")
