"""Memory that this process has no use for any more."""

from __future__ import annotations

import ctypes
import functools
from contextlib import suppress

MMAP_THRESHOLD = -3  # glibc's number of it, see mallopt(3)
LARGE = 1 << 20  # bytes


def give_back() -> None:
    """Give memory that was freed back to the system, where the C library would keep it for later, as glibc does."""
    with suppress(OSError, AttributeError, TypeError):  # another one, or Windows
        ctypes.CDLL(None).malloc_trim(0)


@functools.cache
def give_back_large() -> None:
    """Have large blocks given back as soon as they are freed.

    glibc does so with what is above a threshold, which it raises to the size of each such block: then the tensors of
    layers, which are of many sizes, leave holes behind that the next ones don't fit into.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, LARGE)
