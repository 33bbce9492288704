"""README does what it says: its commands and its Python, as written, in order, from an empty folder.

The models that it names are on the Hub on loopback, where they are the demo's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hub_server import Hub
from jobs_server import Jobs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?P<before>[^\n]*)\n\n```(?P<language>sh|python|yaml|jsonl)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
FILE = re.compile(r"`([\w.-]+\.(?:yaml|jsonl|txt))`:$")  # "... into `recipe.yaml`:" says where a block belongs
OWN = ("pip install -e", "git clone")  # what starts these tests, or needs a network
ARC = ("A question?", {"text": ["yes", "no"], "label": ["A", "B"]}, "B")  # one of its questions, as its files have them
MODELS = {  # the models that the pages name, and the demo's that stands in for each
    "mlabonne/AlphaMonarch-7B": "base",
    "beowolx/CodeNinja-1.0-OpenChat-7B": "python",
    "SanjiWatsuki/Kunoichi-DPO-v2-7B": "english",
    "mlabonne/NeuralDaredevil-7B": "bytecode",
}


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """The blocks of a page that are to be run or written: language, code, and the line before it."""
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [(m["language"], m["code"], m["before"]) for m in found]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout for `pip install .`, which is run in it."""
    copy = tmp_path_factory.mktemp("checkout") / "lazymoe"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


def make_questions(folder: Path) -> Path:
    """The data set of lm-eval's arc_easy, as it lies on the Hub, with questions of our own."""
    folder.mkdir()
    question, choices, answer = ARC
    lines = [{"id": str(i), "question": f"{i}. {question}", "choices": choices, "answerKey": answer} for i in range(9)]
    files = []
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        files.append({"split": split, "path": f"{split}.jsonl"})
    front = json.dumps({"configs": [{"config_name": "ARC-Easy", "data_files": files}]})
    (folder / "README.md").write_text(f"---\n{front}\n---\n")
    return folder


@pytest.fixture
def environment(hub: Hub, demo_models: Path, installed: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A user's: pip installs into a folder of its own, what it needs being here already; the Hub is on loopback."""
    for name, stand_in in MODELS.items():
        hub.add(name, demo_models / stand_in)
    hub.add("allenai/ai2_arc", make_questions(tmp_path / "questions"))
    site = installed.parent / "site"
    variables = {
        **os.environ,
        "PIP_TARGET": str(site),
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "false",  # as pip reads it: no isolation
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_UPGRADE": "1",
        "PYTHONPATH": str(site),
        "PATH": f"{site / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_TOKEN": "hf_you",
        "HF_HOME": str(tmp_path / "hf"),
    }
    with Jobs(hub):
        yield variables


LONG = {"evaluate.md", "gguf.md", "jobs.md", "python.md", "routers.md"}  # README.md has some of it


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.name, marks=[pytest.mark.slow] * (page.name in LONG)) for page in PAGES]
)
def test_what_a_page_says_can_be_typed(
    page: Path, installed: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    for language, code, before in blocks(page):
        if language in ("yaml", "jsonl"):
            if name := FILE.search(before):
                (folder / name[1]).write_text(code, encoding="utf-8")
            continue
        if code.startswith(OWN) or ("evaluate" in code and not find_spec("lm_eval")):
            continue
        command = ["bash", "-e", "-c", code] if language == "sh" else [sys.executable, "-c", code]
        where = installed if code.startswith("pip install .") else folder
        done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


def test_the_pages_are_looked_at_in_earnest() -> None:
    code = "".join(code for page in PAGES for _, code, _ in blocks(page))
    for command in ("check", "merge", "report", "evaluate", "publish", "gguf", "demo"):
        assert f"lazymoe {command}" in code
    assert "import lazymoe" in code and "base_model:" in code
