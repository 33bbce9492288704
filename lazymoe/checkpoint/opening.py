"""Opening a checkpoint, however its weights are stored: the only room that knows every reader.

It takes a few kilobytes, also where the weights are still on the Hub; `fetch` brings these.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lazymoe.checkpoint import gguf
from lazymoe.checkpoint.dialects import translate
from lazymoe.checkpoint.legacy import open_pickle
from lazymoe.checkpoint.lora import open_adapter
from lazymoe.checkpoint.quantized import unpacked
from lazymoe.checkpoint.safetensors import open_file, read_header
from lazymoe.checkpoint.source import CARD, SMALL_FILES, Source, read_json
from lazymoe.checkpoint.tensors import TensorInfo
from lazymoe.errors import error, failure
from lazymoe.recipe.reference import Reference

Remote = Callable[[str, int, int], bytes]  # file, offset, length


def open_source(reference: Reference, where: str, allow_pickle: bool = False) -> Source:
    """Open a checkpoint by its configs and headers.

    Args:
        reference: what names it.
        where: how messages name the place it was asked for.
        allow_pickle: also take ``.bin`` weights, read with ``weights_only=True``. From the Hub these must be
            downloaded before their tensors are known.

    Raises:
        LazyMoEError: if it can't be found, reached or read, or isn't whole.
    """
    if reference.adapter:
        below = open_source(replace(reference, adapter=None), where, allow_pickle)
        adapter = open_adapter(reference.adapter, where, below.tensors)
        return replace(
            below,
            reference=reference,
            tensors=below.tensors | adapter.tensors,
            weights=below.weights | {str(adapter.file): adapter.file.stat().st_size},
            adapter=adapter,
        )
    path = reference.path
    if path.suffix == ".gguf" and path.is_file():
        return _open_gguf(reference, path, None, where)
    if path.is_dir():
        sizes = {p.name: p.stat().st_size for p in path.iterdir() if p.is_file()}
        if file := _only_gguf(sizes, reference, where):
            return _open_gguf(reference, path / file, None, where)
        return _open(reference, where, path.resolve(), None, sizes, allow_pickle, None)
    if path.exists():
        remedy = "Name the folder with config.json and the safetensors in it."
        raise error("source.not-found", where, f"'{reference.model}' is a file", remedy)
    if problem := reference.nowhere(where):
        raise failure([problem])
    return _open_remote(reference, where, allow_pickle)


def open_folder(folder: Path) -> Source:
    """Open a checkpoint that lies in a folder.

    Raises:
        SourceError: if it isn't one, or isn't whole.
    """
    return open_source(Reference(str(folder)), str(folder))


def fetch(source: Source, where: str) -> None:
    """Download the weights that aren't here yet, and nothing else.

    Raises:
        HubError: if the Hub can't be reached, or refuses.
    """
    if source.missing:
        from lazymoe.hub.reading import download

        download(source.reference.model, source.revision, list(source.missing), where)


def _open_remote(reference: Reference, where: str, allow_pickle: bool) -> Source:
    from lazymoe.hub.reading import download, find_model

    name = reference.model
    found = find_model(name, reference.revision, where, (*SMALL_FILES, CARD))
    if file := reference.file or _only_gguf(found.sizes, reference, where):
        if file not in found.sizes:
            raise error("source.not-found", where, f"{name} has no file {file}", "Look its files up on the Hub.")
        download(name, found.commit, [file], where)
        return _open_gguf(reference, found.folder / file, found.commit, where)
    files, _ = _weights(found.sizes, found.folder, allow_pickle, where, name)
    if files[0].endswith(".bin"):
        download(name, found.commit, files, where)
    return _open(reference, where, found.folder, found.commit, found.sizes, allow_pickle, found.read)


def _open(
    reference: Reference,
    where: str,
    folder: Path,
    commit: str | None,
    sizes: dict[str, int],
    allow_pickle: bool,
    remote: Remote | None,
) -> Source:
    name, config = reference.model, read_json(folder / "config.json", where)
    tensors: dict[str, TensorInfo] = {}
    files, named = _weights(sizes, folder, allow_pickle, where, name)
    for file in files:
        if file not in sizes:
            what = f"{name} lacks the file {file}, which its index names"
            raise error("source.incomplete", where, what, "Download it again, whole.")
        try:
            tensors |= _open_weights(folder, file, sizes[file], remote)
        except ValueError as e:
            remedy = "Download or save this file again."
            raise error("source.broken", where, f"{name}, {file}: {e}", remedy) from None
    if lost := sorted(named - set(tensors)):
        what = f"{name}: its index names '{lost[0]}', which no file has"
        raise error("source.incomplete", where, what, "Download it again, whole.")

    config, tensors = translate(config, tensors)
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)  # some have it all the same, and nothing reads it
    dtype, tensors = unpacked(config, tensors)
    if dtype:
        config = {key: value for key, value in config.items() if key != "quantization_config"}
    return Source(reference, folder, commit, config, tensors, {file: sizes[file] for file in files}, dtype)


def _open_weights(folder: Path, file: str, size: int, remote: Remote | None) -> dict[str, TensorInfo]:
    """The tensors of one file, which lies in the folder or can be read from the Hub.

    Raises:
        ValueError: if it isn't what its name says; the message says how.
    """
    path = folder / file
    if file.endswith(".bin"):
        return open_pickle(path)
    if path.exists() or remote is None:
        return open_file(path)
    return read_header(folder, file, size, functools.partial(remote, file))


def _open_gguf(reference: Reference, file: Path, commit: str | None, where: str) -> Source:
    file = file.absolute()
    opened = gguf.open_gguf(file, where)
    weights = {str(file): file.stat().st_size}
    return Source(
        reference, opened.folder, commit, opened.config, opened.tensors, weights, gguf.DTYPE, opened.unread
    )  # fmt: skip


def _only_gguf(sizes: dict[str, int], reference: Reference, where: str) -> str | None:
    """The GGUF file of a model that has nothing else."""
    files = sorted(name for name in sizes if name.endswith(".gguf"))
    if not files or any(name.endswith((".safetensors", ".bin")) for name in sizes):
        return None
    if len(files) > 1:
        what = f"{reference.model} has {len(files)} GGUF files"
        remedy = f"Name one of them, the largest you can: {reference.model}/{files[-1]}"
        raise error("source.ambiguous", where, what, remedy)
    return files[0]


def _weights(
    sizes: dict[str, int], folder: Path, allow_pickle: bool, where: str, model: str
) -> tuple[list[str], set[str]]:
    """Which files hold the weights (safetensors before pickles, an index before a single file) and what it names."""
    for single, allowed in (("model.safetensors", True), ("pytorch_model.bin", allow_pickle)):
        index = f"{single}.index.json"
        if allowed and index in sizes:
            weight_map = read_json(folder / index, where).get("weight_map")
            files: list[Any] = list(weight_map.values()) if isinstance(weight_map, dict) else []
            if not files or not all(isinstance(file, str) and Path(file).name == file for file in files):
                what = f"{model}: {index} has no usable weight_map"
                raise error("source.incomplete", where, what, "Download it again.")
            return sorted(set(files)), set(weight_map or ())
        if allowed and single in sizes:
            return [single], set()
    if any(name.endswith(".bin") for name in sizes) and not allow_pickle:
        what = f"{model} has only .bin weights, and a pickle can run code when it is loaded"
        remedy = "If you trust its author, allow them: with --allow-pickle, or by the box below the recipe's form."
        raise error("source.pickle", where, what, remedy)
    what = f"{model} has no model.safetensors and no model.safetensors.index.json"
    raise error("source.incomplete", where, what, "Name a model whose weights are safetensors, unquantized.")
