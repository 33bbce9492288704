"""The house: arrows go one way, in the order that CONTRIBUTING gives, and no name stands for two things."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lazymoe

PACKAGE = Path(lazymoe.__file__).parent
CONTRIBUTING = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
STEPS = re.findall(r"^\d+\. ([a-z_, ]+)$", CONTRIBUTING, re.MULTILINE)  # the rooms, the lowest first
ORDER = [tuple(step.split(", ")) for step in STEPS] + [("__main__",)]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
HEAVY = {"torch", "transformers", "ipywidgets", "matplotlib"}


def modules() -> dict[str, Path]:
    """Every module of the package by its full name, but for the package's own face."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts:
            found[".".join(("lazymoe", *parts))] = path
    return found


def imports(path: Path) -> set[str]:
    """The modules of the package that a module imports, at its top or inside a function; not for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typed = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typed:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= inside or {str(node.module)}
    return found & MODULES.keys()


MODULES = modules()
IMPORTS = {name: imports(path) for name, path in MODULES.items()}


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_its_place() -> None:
    assert {room(name) for name in MODULES} == RANK.keys()


def test_no_arrow_goes_up() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if room(other) != room(name) and RANK[room(other)] >= RANK[room(name)]
    ]
    assert wrong == []


def test_no_circle() -> None:
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in done:
            for other in sorted(IMPORTS[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in IMPORTS:
        visit(name, ())


def test_no_name_is_both_a_module_and_something_else() -> None:
    for name, path in MODULES.items():
        if path.name != "__init__.py":
            continue
        given = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                given.add(node.name)
            elif isinstance(node, ast.ImportFrom):
                given |= {alias.asname or alias.name for alias in node.names}
        assert not given & {child.stem for child in path.parent.iterdir()}, name
    assert not set(lazymoe.__all__) & {child.stem for child in PACKAGE.iterdir()}


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "import lazymoe; lazymoe.__version__"],
        ["-c", "import lazymoe; lazymoe.LazyMoEError, lazymoe.Recipe, lazymoe.card, lazymoe.publish, lazymoe.check"],
        ["-m", "lazymoe", "--help"],
        ["-m", "lazymoe", "card", "nowhere"],
        ["-m", "lazymoe", "card", "--help"],
        ["-m", "lazymoe", "publish", "--help"],
        ["-m", "lazymoe", "gguf", "nowhere", "Q4_K_M"],
        ["-m", "lazymoe", "publish", "nowhere", "you/nothing"],
    ],
    ids=" ".join,
)
def test_what_computes_nothing_loads_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True)
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "lazymoe" in loaded, done.stderr
    assert not loaded & HEAVY
