"""What a rented machine is sent: this very package, what was asked for with its files, and a few lines that run it.

The same package and the same order give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from packaging.requirements import Requirement

import lazymoe
from lazymoe.data import folder as data
from lazymoe.errors import Problem, error, failure
from lazymoe.jobs.there import ASKED, RECIPE
from lazymoe.planning.prepared import Prepared
from lazymoe.recipe.beside import files_of, is_own
from lazymoe.recipe.schema import Texts

THERE = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"}
CPU_ONLY = """
[[tool.uv.index]]
name = "pytorch-cpu"
url = "https://download.pytorch.org/whl/cpu"
explicit = true

[tool.uv.sources]
torch = { index = "pytorch-cpu" }
"""  # without it torch brings gigabytes of CUDA
SCRIPT = """
import shutil
import sys
import tempfile

folder = tempfile.mkdtemp()
shutil.unpack_archive(sys.argv[1], folder)
sys.path.insert(0, folder)

from lazymoe.jobs.there import work

sys.exit(work(folder))
"""


def check_sendable(prepared: Prepared) -> None:
    """Check that a rented machine can read everything.

    Args:
        prepared: the recipe.

    Raises:
        RecipeError: with each model that is here alone, and each file of prompts that isn't the recipe's own.
    """
    if problems := list(_left_here(prepared)):
        raise failure(problems)


def with_recipe(prepared: Prepared) -> dict[str, bytes]:
    """Give the recipe and its files of texts, as they are sent: name to contents.

    Args:
        prepared: the recipe.
    """
    recipe, texts = prepared.kept
    return texts | {RECIPE: recipe.to_yaml().encode()}


def pack(
    asked: dict[str, Any], files: Mapping[str, bytes], needed: Sequence[str], gpu: bool, folder: Path
) -> tuple[Path, list[Path]]:
    """Write what is sent.

    Args:
        asked: what is to be done there, see `there`.
        files: that it takes, name to contents.
        needed: packages, as `requirements` gives them.
        gpu: whether the machine has one.
        folder: where it is written.

    Returns:
        The script, and the files that it is given.
    """
    sent = {**dict(_package()), **files, ASKED: json.dumps(asked).encode()}
    script, parcel = folder / f"lazymoe-{asked['do']}.py", folder / "lazymoe.zip"
    with ZipFile(parcel, "w", ZIP_DEFLATED) as archive:
        for name, content in sorted(sent.items()):
            archive.writestr(ZipInfo(name), content, ZIP_DEFLATED)  # without a time
    script.write_text(_header(needed, gpu) + SCRIPT, encoding="utf-8")
    return script, [parcel]


def _left_here(prepared: Prepared) -> Iterator[Problem]:
    """Yield what another machine can't read."""
    remedy = "Put it on the Hub, where a private repository will do, and name that."
    for model, source in zip(prepared.recipe.models, prepared.sources, strict=True):
        if source.origin is None:
            what = f"'{model.reference.model}' is on this machine, where a rented one can't read it"
            yield Problem("recipe.here", model.where, what, remedy)
        if source.adapter and not source.adapter.reference.revision:
            what = f"'{model.reference.adapter}' is on this machine, where a rented one can't read it"
            yield Problem("recipe.here", model.where, what, remedy)
    for file in files_of(prepared.recipe):
        if not is_own(prepared.recipe, file):
            what = "it lies outside the recipe's folder, and nothing goes to a rented machine from there"
            yield Problem("recipe.here", file, what, "Copy it beside the recipe, and name it there.")


def _package() -> Iterator[tuple[str, bytes]]:
    """Yield the files of this package that are needed there, by their names as they are when it is installed."""
    package = Path(str(lazymoe.__file__)).parent
    for path in package.rglob("*.py"):
        yield f"lazymoe/{path.relative_to(package).as_posix()}", path.read_bytes()
    for name in ("recipes", "templates"):
        for path in filter(Path.is_file, data(name).iterdir()):
            yield f"lazymoe/data/{name}/{path.name}", path.read_bytes()


def _header(needed: Sequence[str], gpu: bool) -> str:
    """Write what the script needs, as PEP 723 has it."""
    listed = [f'    "{requirement}",' for requirement in needed]
    lines = ['requires-python = ">=3.10"', "dependencies = [", *listed, "]"]
    lines += [] if gpu else CPU_ONLY.splitlines()
    return "\n".join(["# /// script", *(f"# {line}".rstrip() for line in lines), "# ///", ""])


def requirements(prepared: Prepared, *extras: str) -> list[str]:
    """List the packages that a recipe takes there, by this package's own metadata.

    Args:
        prepared: the recipe.
        extras: names of this package's extras that are needed besides.

    Raises:
        LazyMoEError: if LazyMoE isn't installed, so that nobody knows what it needs.
    """
    try:
        listed = [Requirement(text) for text in requires("lazymoe") or ()]
    except PackageNotFoundError:
        what = "it isn't installed here, so what it needs isn't known"
        raise error("input.installed", "lazymoe", what, "Run in its checkout: pip install .") from None
    wanted = {"", *extras, *(["gguf"] if any(file.endswith(".gguf") for file in prepared.files) else [])}
    found = []
    for requirement in listed:
        marker, requirement.marker = requirement.marker, None
        if marker is None or any(marker.evaluate({**THERE, "extra": extra}) for extra in wanted):
            found.append(str(requirement))
    if any(isinstance(prompt, Texts) and prompt.dataset for prompt in prepared.recipe.prompts):
        found.append("pyarrow")  # its files may be .parquet
    return found
