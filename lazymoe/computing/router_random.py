"""Random routers, for a mixture to be trained: `random` is N(0, 1), `uniform_random` like nn.Linear's start."""

from __future__ import annotations

import numpy as np


def random_gates(mode: str, shape: tuple[int, int, int], generator: np.random.Generator) -> np.ndarray:
    """Routers of a shape ``[layers, experts, hidden]``, float32."""
    if mode == "random":
        return generator.standard_normal(shape, np.float32)
    bound = shape[-1] ** -0.5
    return generator.random(shape, np.float32) * 2 * bound - bound
