"""How a model lies on the disk: shards, an index, tensors of other names; opening it, or seeing it refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_models import tensors_of

from lazymoe import LazyMoEError
from lazymoe.checkpoint.opening import open_source
from lazymoe.checkpoint.source import Source
from lazymoe.errors import Problem
from lazymoe.recipe.reference import Reference

Tensors = dict[str, torch.Tensor]
EMBEDDINGS = "model.embed_tokens.weight"


def opened(name: Path | str, allow_pickle: bool = False) -> Source:
    return open_source(Reference.parse(str(name)), "base_model", allow_pickle)


def refused(name: Path | str, allow_pickle: bool = False) -> Problem:
    with pytest.raises(LazyMoEError) as e:
        opened(name, allow_pickle)
    [problem] = e.value.problems
    assert len(str(problem).splitlines()) == 1
    return problem


def same(source: Source, expected: Tensors) -> bool:
    return source.tensors.keys() == expected.keys() and all(
        source.tensors[name].name == name and torch.equal(source.load(name), tensor)
        for name, tensor in expected.items()
    )


def shards(folder: Path, tensors: Tensors, n: int = 2, stem: str = "model", end: str = ".safetensors") -> list[str]:
    """Write tensors as numbered shards; their names."""
    names, files = sorted(tensors), []
    for i in range(n):
        part = {name: tensors[name] for name in names[i::n]}
        files.append(f"{stem}-{i + 1:05}-of-{n:05}{end}")
        if end == ".bin":
            torch.save(part, folder / files[-1])
        else:
            save_file(part, folder / files[-1], metadata={"format": "pt"})
    return files


def index(folder: Path, tensors: Tensors, files: list[str], name: str = "model.safetensors.index.json") -> None:
    """An index of shards as `shards` writes them."""
    weight_map = {tensor: files[i % len(files)] for i, tensor in enumerate(sorted(tensors))}
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def renamed(folder: Path, change: Callable[[str], str | None]) -> Path:
    """A model whose tensors are called otherwise; those that get no name are left out."""
    tensors = {change(name): tensor for name, tensor in tensors_of(folder).items()}
    save_file({k: v for k, v in tensors.items() if k}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
