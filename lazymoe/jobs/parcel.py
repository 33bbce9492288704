"""What a rented machine is sent: this very package, what was asked for with its files, and a few lines that run it.

The same package and the same order give the same bytes.
"""

from __future__ import annotations

import json
import os
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
from lazymoe.planning.prepared import Prepared, at_commits
from lazymoe.recipe.schema import SIDES, Recipe, Texts

LARGEST = 256_000_000  # bytes of a file of prompts
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
        RecipeError: with each model that is here alone, and each file of prompts that is too large to be sent.
    """
    if problems := list(_left_here(prepared)):
        raise failure(problems)


def with_recipe(prepared: Prepared) -> dict[str, bytes]:
    """Give the recipe and its files of prompts, as they are sent: name to contents.

    Args:
        prepared: the recipe.
    """
    recipe, texts = _with_texts(at_commits(prepared.recipe, prepared.sources))
    return {name: path.read_bytes() for path, name in texts.items()} | {RECIPE: recipe.to_yaml().encode()}


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
    for path, where in _texts(prepared.recipe):
        if path.stat().st_size > LARGEST:
            what = f"'{path.name}' is too large to be sent to a rented machine"
            yield Problem("recipe.here", where, what, "Put the texts that are wanted into a file of their own.")


def _texts(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """Yield the files of prompts that are here, each with its place in the recipe."""
    for i, expert in enumerate(recipe.every_expert):
        for side in SIDES:
            for prompt in getattr(expert, side) or ():
                if isinstance(prompt, Texts) and prompt.file and not prompt.dataset:
                    yield Path(os.path.expanduser(prompt.file)), recipe.place(i, side)


def _with_texts(recipe: Recipe) -> tuple[Recipe, dict[Path, str]]:
    """Name the files of prompts by where they lie in the parcel; give these names too."""
    names = {path: f"texts/{i}/{path.name}" for i, path in enumerate(dict.fromkeys(p for p, _ in _texts(recipe)))}

    def renamed(prompt: str | Texts) -> str | Texts:
        if isinstance(prompt, str) or prompt.dataset:
            return prompt
        return prompt.model_copy(update={"file": names[Path(os.path.expanduser(prompt.file or ""))]})

    experts = []
    for expert in recipe.every_expert:
        sides = {side: getattr(expert, side) for side in SIDES if getattr(expert, side)}
        experts.append(expert.model_copy(update={side: list(map(renamed, found)) for side, found in sides.items()}))
    return recipe.with_experts(experts), names


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
    if any(isinstance(p, Texts) for e in prepared.recipe.every_expert for s in SIDES for p in getattr(e, s) or ()):
        found.append("pyarrow")  # their files may be .parquet
    return found
