"""What a rented machine is sent: this package and no other, what it needs, and nothing besides."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from hub_server import Hub
from packaging.requirements import Requirement
from small_models import Make, recipe

import lazymoe
from lazymoe import LazyMoEError, Recipe, Texts
from lazymoe.jobs import parcel
from lazymoe.jobs.orders import merging
from lazymoe.jobs.parcel import check_sendable
from lazymoe.planning.prepared import Prepared, prepare

HEADER = re.compile(r"^# /// script\n(?P<lines>(?:#(?: .*)?\n)+?)# ///$", re.MULTILINE)  # as PEP 723 has it


@pytest.fixture
def prepared(clean_hub: Hub, make: Make) -> Prepared:
    clean_hub.add("acme/parcel", make("m"))
    return prepare(recipe("acme/parcel", "acme/parcel", "acme/parcel"))


def pack(prepared: Prepared, gpu: bool, folder: Path) -> tuple[Path, list[Path]]:
    """What is sent for a merge."""
    order = merging(prepared, "you/x")
    return parcel.pack(order.asked, order.files, order.needed, gpu, folder)


def needs(script: Path) -> tuple[set[str], str]:
    """The names of the packages that a script says it needs, and its header."""
    match = HEADER.search(script.read_text())
    assert match
    lines = "".join(line[2:] if line.startswith("# ") else line[1:] for line in match["lines"].splitlines(True))
    listed = re.search(r"dependencies = \[\n(.*?)\]", lines, re.DOTALL)
    assert listed
    return {Requirement(line.strip(' ",')).name for line in listed[1].splitlines()}, lines


def test_the_same_gives_the_same_bytes(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one = pack(prepared, False, tmp_path)
    two = pack(prepared, False, tmp_path / "other")
    assert [path.read_bytes() for path in (one[0], *one[1])] == [path.read_bytes() for path in (two[0], *two[1])]


def test_it_is_this_package_with_its_data(prepared: Prepared, tmp_path: Path) -> None:
    _, [sent] = pack(prepared, False, tmp_path)
    shutil.unpack_archive(sent, tmp_path / "there")
    script = f"""
import sys; sys.path.insert(0, {str(tmp_path / "there")!r})
import lazymoe.jobs.there
from lazymoe.data import folder, ready_made
print(lazymoe.__version__, lazymoe.__file__, *ready_made(), *(p.name for p in folder("templates").iterdir()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    version, place, *names = done.stdout.split()
    assert (version, Path(place)) == (lazymoe.__version__, tmp_path / "there" / "lazymoe" / "__init__.py")
    assert {"beyonder-4x7b-v3", "model_card.md.jinja"} <= set(names)
    files = [path for path in (tmp_path / "there").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} - {".pyc"} == {".py", ".yaml", ".jinja", ".json"}


def test_the_script_says_what_it_needs(prepared: Prepared, tmp_path: Path) -> None:
    listed = [Requirement(text) for text in requires("lazymoe") or []]
    always = {requirement.name for requirement in listed if requirement.marker is None}
    named, header = needs(pack(prepared, False, tmp_path)[0])
    assert named == always and "torch" in named and 'torch = { index = "pytorch-cpu" }' in header
    assert "pytorch-cpu" not in needs(pack(prepared, True, tmp_path)[0])[1]
    compile((tmp_path / "lazymoe-merge.py").read_text(), "script", "exec")


def test_texts_of_files_go_along(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("A text.\n")
    prompts = {"positive_prompts": [Texts(file=str(tmp_path / "own.txt"))]}
    given = prepared.recipe.with_experts([e.model_copy(update=prompts) for e in prepared.recipe.experts])
    script, [sent] = pack(prepare(given), False, tmp_path)
    assert "pyarrow" not in needs(script)[0]  # they are read here
    shutil.unpack_archive(sent, tmp_path / "there")
    assert [path.read_text() for path in (tmp_path / "there").glob("*.jsonl")] == ['"A text."\n']  # once
    assert str(tmp_path) not in (tmp_path / "there" / "recipe.yaml").read_text()


def test_models_go_by_their_commits(prepared: Prepared, clean_hub: Hub, tmp_path: Path) -> None:
    _, [sent] = pack(prepared, False, tmp_path)
    shutil.unpack_archive(sent, tmp_path / "there")
    commit = clean_hub.repos["acme/parcel"].commits[-1].oid
    there = Recipe.from_file(tmp_path / "there" / "recipe.yaml")
    assert {str(model.reference) for model in there.models} == {f"acme/parcel@{commit}"}


def test_what_cannot_be_sent(prepared: Prepared, make: Make) -> None:
    check_sendable(prepared)
    with pytest.raises(LazyMoEError) as raised:
        check_sendable(prepare(recipe("acme/parcel", str(make("m")), str(make("m")))))
    assert [(p.code, p.where.split()[0]) for p in raised.value.problems] == [
        ("recipe.here", "experts[0].source_model"), ("recipe.here", "experts[1].source_model"),
    ]  # fmt: skip
