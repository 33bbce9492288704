"""Random routers, for a mixture to be trained: `random` is N(0, 1), `uniform_random` like nn.Linear's start.

Where sigmoids make weights of the logits, rows of N(0, 1) would make all of them vanish at real widths, and hosts add a
little to the sum that they are divided by: there `random` has rows of length about 1.
"""

from __future__ import annotations

import numpy as np


def random_gates(mode: str, shape: tuple[int, int, int], scores: str, generator: np.random.Generator) -> np.ndarray:
    """Draw random routers.

    Args:
        mode: `random` or `uniform_random`.
        shape: ``[L, gates, H]``.
        scores: what makes weights of the logits, see `Host.scores`.
        generator: where the numbers come from.

    Returns:
        The rows of each layer ``[L, gates, H]``, float32.
    """
    if mode == "random":
        rows: np.ndarray = generator.standard_normal(shape, np.float32)
        return rows * np.float32(shape[-1] ** -0.5) if scores == "sigmoid" else rows
    bound = np.float32(shape[-1] ** -0.5)
    values: np.ndarray = generator.random(shape, np.float32) * 2 * bound - bound
    return values
