"""The pages that are made from the program are as it is now."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")


def test_the_pages_of_commands_and_codes_are_current() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_constant_says_where_this_repository_is() -> None:
    """Set, it is in the badge, the notebook and the package's metadata, once each; emptied again, it is in none."""
    script = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    names = script["with_badge"].__globals__
    pages = {name: (ROOT / name).read_text(encoding="utf-8") for name in script["MADE"] if name != "docs/cli.md"}

    def made(address: str, pages: dict[str, str]) -> dict[str, str]:
        names["REPOSITORY"] = address
        return {name: script["MADE"][name](page) for name, page in pages.items()}

    address = "https://github.com/somebody/lazymoe"
    full, bare = made(address, pages), made("", pages)
    assert made(address, full) == full and made("", full) == bare
    opened = "(https://colab.research.google.com/github/somebody/lazymoe/blob/main/LazyMoE.ipynb)"
    assert full["README.md"].startswith("# LazyMoE\n\n[![Open in Colab](") and full["README.md"].count(opened) == 1
    cells = json.loads(full["LazyMoE.ipynb"])["cells"]
    assert sum(f'repository = "{address}"' in line for cell in cells for line in cell["source"]) == 1
    tomllib = pytest.importorskip("tomllib")
    assert tomllib.loads(full["pyproject.toml"])["project"]["urls"]["Repository"] == address
    assert "somebody/lazymoe" not in "".join(bare.values())


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    links = [(page, link) for page in pages for link in LINK.findall(page.read_text(encoding="utf-8"))]
    assert links
    assert not [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()]
