"""Packages that a panel needs and that aren't here yet."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Sequence

from lazymoe.errors import error


def install(packages: Sequence[str], code: str) -> None:
    """Install packages into this kernel; nothing that is here already is changed but where it must be.

    Args:
        packages: as pip takes them.
        code: of the problem if it fails.

    Raises:
        LazyMoEError: if it fails.
    """
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", *packages]
    done = subprocess.run(pip, capture_output=True, text=True)
    importlib.invalidate_caches()  # so that they are found without a restart
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1][:150]
        spelled = " ".join(f"'{package}'" for package in packages)
        what = f"{' and '.join(packages)} can't be installed ({why})"
        raise error(code, "pip", what, f"Run in a cell: %pip install {spelled}")
