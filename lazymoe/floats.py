"""What the bits of floats mean, in numpy alone, which knows no bfloat16: torch's import takes longer than many a merge.

Dtypes go by the safetensors format's names of them.
"""

from __future__ import annotations

import numpy as np

# bits of a float, and the bit pattern of its infinity
INFINITY = {"F64": (64, 0x7FF << 52), "F32": (32, 0xFF << 23), "F16": (16, 0x1F << 10), "BF16": (16, 0xFF << 7)}


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """Give finite float32 values as the bytes of another dtype, rounded to the nearest, ties to even, as torch rounds.

    Args:
        values: of any shape.
        dtype: the format's name of the dtype, one of `INFINITY`.

    Returns:
        The bytes, uint8, flat.
    """
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        cast = ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)
    else:
        cast = np.ascontiguousarray(values, f"f{INFINITY[dtype][0] // 8}")
    return cast.reshape(-1).view(np.uint8)


def decode(data: bytes | bytearray, dtype: str) -> np.ndarray:
    """Read bytes of a dtype as float32 values, flat.

    Args:
        data: the bytes.
        dtype: the format's name of the dtype, one of `INFINITY`.
    """
    if dtype == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, f"f{INFINITY[dtype][0] // 8}").astype(np.float32)


def finite(data: np.ndarray, dtype: str) -> bool:
    """Tell whether bytes of a dtype hold neither NaN nor infinity.

    In IEEE formats these are the bit patterns at and above the largest exponent, whatever the sign, so two maxima over
    integers tell: of the signed ones for the positive, of the unsigned ones for the negative numbers.

    Args:
        data: the bytes, uint8, flat; at least one number.
        dtype: the format's name of the dtype, one of `INFINITY`.
    """
    bits, infinity = INFINITY[dtype]
    signed, unsigned = data.view(f"i{bits // 8}"), data.view(f"u{bits // 8}")
    return bool(signed.max() < infinity and unsigned.max() < infinity + (1 << (bits - 1)))
