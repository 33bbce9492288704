"""Floats by their bits: torch's own casts, and every kind of number that isn't finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lazymoe.checkpoint.tensors import FLOATS
from lazymoe.floats import decode, encode, finite

DTYPES = sorted(FLOATS)


def as_bytes(tensor: torch.Tensor) -> np.ndarray:
    return tensor.view(torch.uint8).numpy()


@pytest.mark.parametrize("dtype", DTYPES)
def test_encoding_and_decoding_are_torchs_casts(dtype: str) -> None:
    values = np.random.default_rng(0).standard_normal(100_000, np.float32)
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 0.0, -0.0, 2.0**-130], np.float32)  # halfway in bfloat16
    values = np.concatenate([values, ties])
    cast = torch.from_numpy(values).to(getattr(torch, FLOATS[dtype]))
    assert np.array_equal(encode(values, dtype), as_bytes(cast))
    assert np.array_equal(decode(as_bytes(cast).tobytes(), dtype), cast.float().numpy())


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_nan_and_infinity_are_not_finite(dtype: str) -> None:
    kind = getattr(torch, FLOATS[dtype])
    info = torch.finfo(kind)
    edges = torch.tensor([0.0, -0.0, info.max, info.min, info.tiny, -info.tiny], dtype=kind)
    assert finite(as_bytes(edges), dtype)
    for value in (float("nan"), -float("nan"), float("inf"), -float("inf")):
        assert not finite(as_bytes(torch.cat([edges, torch.tensor([value], dtype=kind)])), dtype)
