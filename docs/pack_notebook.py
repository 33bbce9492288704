"""Make the notebook that is one file: LazyMoE.ipynb with LazyMoE itself inside.

    python docs/pack_notebook.py [FILE]     # dist/LazyMoE-VERSION.ipynb if no file is named

Its first cell carries the wheel, so it needs neither a checkout nor a package index to have LazyMoE; what LazyMoE
needs is still installed from the index where the machine lacks it. The other cells are those of LazyMoE.ipynb. The same
files, packed with the same tools, give the same bytes.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "LazyMoE.ipynb"
PACKED = ("lazymoe", "recipes", "templates", "pyproject.toml", "requirements.txt", "README.md", "LICENSE")
FORM = 'source = ""  # @param {type:"string"}\n'
OWN = """\
import base64, pathlib, tempfile

own = pathlib.Path(tempfile.mkdtemp(), "{name}")  # LazyMoE itself
own.write_bytes(base64.b64decode("{data}"))
source = source or str(own)
"""


def build_wheel(folder: Path) -> Path:
    """Build the wheel in a folder, from a copy: what earlier builds left in the checkout doesn't get into it."""
    copy = folder / "lazymoe"
    for name in PACKED:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(copy)]
    dated = os.environ | {"SOURCE_DATE_EPOCH": "315532800"}  # 1980, where zip files begin
    subprocess.run(command, check=True, env=dated, umask=0o022)
    [wheel] = folder.glob("*.whl")
    return wheel


def pack(wheel: Path) -> str:
    """Give LazyMoE.ipynb with a wheel in its first cell, as JSON."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    setup = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    at = setup["source"].index(FORM) + 1
    own = OWN.format(name=wheel.name, data=base64.b64encode(wheel.read_bytes()).decode())
    setup["source"][at:at] = own.splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the notebook, and say where."""
    parser = argparse.ArgumentParser(description="Make the notebook that is one file.")
    parser.add_argument("file", nargs="?", type=Path, help="where to write it (default dist/LazyMoE-VERSION.ipynb)")
    file: Path | None = parser.parse_args().file
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder))
        file = file or ROOT / "dist" / f"LazyMoE-{wheel.name.split('-')[1]}.ipynb"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(pack(wheel), encoding="utf-8")
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
