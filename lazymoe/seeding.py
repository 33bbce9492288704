"""Random numbers that come out the same everywhere."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, name: str) -> np.random.Generator:
    """Make random numbers that depend on a seed and a name only: not on the order of calls, the machine, or torch.

    They are Philox's (https://doi.org/10.1145/2063384.2063405), keyed by a hash of the two.

    Args:
        seed: the user's.
        name: of what the numbers are for.
    """
    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))
