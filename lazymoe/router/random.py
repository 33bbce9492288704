"""Random routers, for a mixture to be trained: `random` is N(0, 1), `uniform_random` like nn.Linear's start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def random_gates(mode: str, shape: tuple[int, int, int], generator: np.random.Generator) -> torch.Tensor:
    """Routers of a shape ``[layers, experts, hidden]``, float32."""
    import torch

    if mode == "random":
        return torch.from_numpy(generator.standard_normal(shape, np.float32))
    bound = shape[-1] ** -0.5
    return torch.from_numpy(generator.random(shape, np.float32) * 2 * bound - bound)
