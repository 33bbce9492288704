"""A newcomer's Python: it has what LazyMoE needs, but not LazyMoE."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Newcomer(NamedTuple):
    """An environment of its own into which pip installs without an index, and an empty folder."""

    home: Path
    folder: Path
    variables: dict[str, str]

    @property
    def python(self) -> str:
        return str(self.home / "bin" / "python")

    def run(self, code: str, *options: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run code in Python, in the empty folder if no other is given."""
        command, where = [self.python, *options, "-"], folder or self.folder
        return subprocess.run(command, input=code, cwd=where, env=self.variables, capture_output=True, text=True)


PLACES = "import sys; print(*(p for p in sys.path if p.endswith('-packages')), sys.prefix, sep='\\n')"


def make_newcomer(where: Path, python: str = sys.executable) -> Newcomer:
    """Make the environment: a Python's packages are linked into it, all but LazyMoE."""
    home, packages, folder = where / "newcomer", where / "packages", where / "empty"
    subprocess.run([python, "-m", "venv", "--without-pip", home], check=True)
    folder.mkdir()
    told = subprocess.run([python, "-c", PLACES], capture_output=True, text=True, check=True).stdout
    *sites, prefix = map(Path, told.splitlines())
    for i, place in enumerate(sites):
        links = packages / str(i)
        links.mkdir(parents=True)
        for path in place.iterdir():
            if "lazymoe" not in path.name:
                (links / path.name).symlink_to(path)
    [site] = home.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text("".join(f"{packages / str(i)}\n" for i in range(len(sites))))
    for name in ("etc", "share"):  # where Jupyter looks for its own files
        if (prefix / name).exists():
            (home / name).symlink_to(prefix / name)
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON", "COLAB_"))}
    mine["VIRTUAL_ENV"] = str(home)  # IPython takes the packages of whatever this names
    pip = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "false", "PIP_CONFIG_FILE": os.devnull}  # false: no isolation
    return Newcomer(home, folder, mine | pip)


def pack(file: Path, checkout: Path = ROOT) -> Path:
    """Make the notebook that is one file, without an index."""
    offline = os.environ | {"PIP_NO_BUILD_ISOLATION": "false"}
    subprocess.run([sys.executable, checkout / "docs" / "pack_notebook.py", file], check=True, env=offline)
    return file
