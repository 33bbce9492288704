"""Memory that this process has no use for any more."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Give memory that was freed back to the system, where the C library would keep it for later, as glibc does."""
    with suppress(OSError, AttributeError, TypeError):  # another one, or Windows
        ctypes.CDLL(None).malloc_trim(0)
