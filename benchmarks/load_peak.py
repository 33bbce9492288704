"""How much does a process grow by at most while it loads a mixture? In bytes, on Linux.

python benchmarks/load_peak.py FOLDER BITS    # 0 for the mixture's own dtype
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import bitsandbytes  # noqa: F401  # loaded before the count begins

import lazymoe.forward.loading


def peak() -> int:
    """The most memory that this program alone has had, which getrusage's isn't."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


if __name__ == "__main__":
    before = peak()
    loaded = lazymoe.load(sys.argv[1], bits=int(sys.argv[2]) or None, device="cpu")  # type: ignore[arg-type]
    print(peak() - before)
