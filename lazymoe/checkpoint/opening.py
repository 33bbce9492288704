"""Opening a checkpoint, however its weights are stored: the only room that knows every reader.

It takes a few kilobytes, also where the weights are still on the Hub. `fetch` brings these; without it they are read
where they are.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lazymoe.architectures.registry import dense_of
from lazymoe.checkpoint import gguf
from lazymoe.checkpoint.choosing import choose, only_gguf
from lazymoe.checkpoint.dialects import take_apart, translate
from lazymoe.checkpoint.gguf_header import bring_head
from lazymoe.checkpoint.leftovers import LEFTOVER, without_leftovers
from lazymoe.checkpoint.legacy import open_pickle
from lazymoe.checkpoint.lfs import refuse_pointer
from lazymoe.checkpoint.lora import open_adapter
from lazymoe.checkpoint.multimodal import text_part
from lazymoe.checkpoint.quantized import unpacked
from lazymoe.checkpoint.safetensors import open_file, read_header
from lazymoe.checkpoint.source import CARD, SMALL_FILES, Source, read_json
from lazymoe.checkpoint.tensors import CODES, FLOATS, Remote, TensorInfo, same_bytes, some
from lazymoe.checkpoint.wrappers import unwrapped
from lazymoe.errors import error, failure
from lazymoe.progress import Progress, silent
from lazymoe.recipe.reference import Reference

if TYPE_CHECKING:
    from lazymoe.hub.reading import Repository


def open_source(reference: Reference, where: str, allow_pickle: bool = False) -> Source:
    """Open a checkpoint by its configs and headers.

    Args:
        reference: what names it.
        where: how messages name the place it was asked for.
        allow_pickle: also take ``.bin`` weights, read with ``weights_only=True``. From the Hub these must be
            downloaded before their tensors are known.

    Raises:
        SourceError: if it can't be found or read, or isn't whole.
        HubError: if the Hub has no such model, refuses or can't be reached.
    """
    source = _opened(reference, where, allow_pickle)
    return replace(source, tensors=take_apart(source.kind, source.config, source.tensors))


def _opened(reference: Reference, where: str, allow_pickle: bool) -> Source:
    """Open a checkpoint as `open_source` does, its tensors as its own class has them: so an adapter fits them."""
    if reference.adapter:
        return _with_adapter(reference, _opened(replace(reference, adapter=None), where, allow_pickle), where)
    path = reference.path
    if path.suffix == ".gguf" and os.path.isfile(path):
        return _open_gguf(reference, path, None, where)
    if os.path.isdir(path):  # False, and no error, if the name is too long
        sizes = {p.name: p.stat().st_size for p in path.iterdir() if p.is_file()}
        if file := only_gguf(sizes, where, reference.model):
            return _open_gguf(reference, path / file, None, where)
        return _open(reference, where, path.resolve(), None, sizes, allow_pickle)
    if os.path.exists(path):
        remedy = "Name the folder with config.json and the safetensors in it."
        raise error("source.not-found", where, f"'{reference.model}' is a file", remedy)
    if problem := reference.nowhere(where):
        raise failure([problem])
    return _open_remote(reference, where, allow_pickle)


def _with_adapter(reference: Reference, below: Source, where: str) -> Source:
    """Put a reference's adapter on its model.

    Raises:
        LazyMoEError: as `lora.open_adapter`.
    """
    adapter = open_adapter(str(reference.adapter), where, below.tensors, below.dense, below.behind)
    config, head = below.config, below.head
    if head in adapter.tensors and head not in below.tensors:  # a head was trained apart from the embeddings
        config = config | {"tie_word_embeddings": False}
    return replace(
        below,
        reference=reference,
        config=config,
        tensors=below.tensors | adapter.tensors,
        weights=below.weights | {str(adapter.file): adapter.file.stat().st_size},
        adapter=adapter,
    )


def open_folder(folder: Path) -> Source:
    """Open a checkpoint that lies in a folder.

    Args:
        folder: where it is, absolute.

    Raises:
        SourceError: if it isn't one, or isn't whole.
    """
    return open_source(Reference(str(folder)), str(folder))


def fetch(sources: Iterable[tuple[Source, str]], progress: Progress = silent, remote: bool = False) -> None:
    """Download the weights that aren't here yet, and nothing else; look whether all of them are whole.

    Args:
        sources: the checkpoints, each with how messages name the place it was asked for.
        progress: told of the bytes that are there, stage ``download``.
        remote: leave those where they are that aren't here yet.

    Raises:
        HubError: if the Hub can't be reached, or refuses.
        SourceError: if a file isn't as long as it should be.
    """
    wanted: dict[Path, tuple[Repository, str, str]] = {}
    for source, where in sources:
        for file, size in source.weights.items():
            path = source.path(file)
            if source.origin and file in source.origin.sizes:
                if not remote or file not in source.away:
                    wanted[path] = source.origin, file, where
            elif path.exists() and path.stat().st_size != size:
                what = f"{path.name} of {source.reference} has {path.stat().st_size:,} bytes here instead of {size:,}"
                raise error("source.cut", where, what, f"Delete {path.resolve()} and try again.")
    if wanted:
        from lazymoe.hub.downloading import Wanted, download

        download([Wanted(*file) for file in wanted.values()], progress)


def _open_remote(reference: Reference, where: str, allow_pickle: bool) -> Source:
    from lazymoe.hub.reading import find_model

    name = reference.model
    found = find_model(name, reference.revision, where, (*SMALL_FILES, CARD))
    small = [file for file in found.sizes if any(Path(file).match(pattern) for pattern in SMALL_FILES)]
    _bring(found, [file for file in small if (found.folder / file).is_file()], where)  # looks whether they are whole
    if file := reference.file or only_gguf(found.sizes, where, name):
        if file not in found.sizes:
            raise error("source.not-found", where, f"{name} has no file {file}", "Look its files up on the Hub.")
        return _open_gguf(reference, found.folder / file, found, where)
    return _open(reference, where, found.folder, found, found.sizes, allow_pickle)


def _bring(model: Repository, files: Sequence[str], where: str) -> None:
    """Download files that are to be read before anything is planned."""
    from lazymoe.hub.downloading import Wanted, download

    download([Wanted(model, file, where) for file in files])


def _open(
    reference: Reference,
    where: str,
    folder: Path,
    origin: Repository | None,
    sizes: dict[str, int],
    allow_pickle: bool,
) -> Source:
    remote = origin.ranges.read if origin and origin.ranges else None
    name, config = reference.model, read_json(folder / "config.json", where)
    tensors: dict[str, TensorInfo] = {}
    chosen = choose(sizes, folder, config, allow_pickle, where, name)
    if origin:
        _bring(origin, chosen.pickles, where)
    for file in chosen.files:
        refuse_pointer(folder / file, where)
        try:
            tensors |= _open_weights(folder, file, sizes[file], origin)
        except ValueError as e:
            remedy = "Download or save this file again."
            raise error("source.broken", where, f"{name}, {file}: {e}", remedy) from None
    if lost := sorted(name for name in chosen.tensors - set(tensors) if not LEFTOVER.fullmatch(name)):
        what = f"{name}: its index names '{lost[0]}', which no file has"
        raise error("source.incomplete", where, what, "Download it again, whole.")

    whole = str(config.get("model_type"))
    config, tensors, left = text_part(config, tensors)
    remarks = (f"it is a {whole}, and only its text model is taken: {some(left)} stay behind",) if left else ()
    config, tensors = unwrapped(config, tensors, where, name)
    kind = str(config.get("model_type"))
    config, tensors = translate(config, tensors)
    tensors, ignored = without_leftovers(config, tensors)
    weights = {file: sizes[file] for file in chosen.files}
    source = Source(
        reference, folder, origin, config, tensors, weights, remarks=remarks, ignored=ignored, behind=tuple(left),
        kind=kind,
    )  # fmt: skip
    return _settle(source, where, remote)


def _settle(source: Source, where: str, remote: Remote | None) -> Source:
    """Work out what the config only implies, and hold it against the tensors: these decide.

    Raises:
        SourceError: if a value of the config can't be meant.
    """
    dense, config = dense_of(source.config), source.config
    if dense is None:
        return source  # `find_host` says what can be made of which
    try:
        config = dense.complete(config)
        quantized, tensors = unpacked(config, source.tensors)
    except ValueError as e:
        what = f"the config.json of {source.reference} has no usable {e}"
        raise error("source.config", where, what, "Mend it, or download it again.") from None
    remarks = list(source.remarks)
    plain = all(tensor.dtype in FLOATS for tensor in tensors.values())
    if plain and config.pop("quantization_config", None) and not quantized:
        remarks.append("its config.json says that it is quantized, but no weight is: that is ignored")
    if config["tie_word_embeddings"] and (head := tensors.get(dense.head)):
        embeddings = tensors.get(dense.embeddings)
        if embeddings is None or same_bytes(embeddings, head, remote):
            del tensors[dense.head]  # some store it all the same, and nothing reads it
        else:  # transformers 5 doesn't tie these
            config["tie_word_embeddings"] = False
            remarks.append("its output head differs from its embeddings, though its config.json ties them: it is kept")
    stated = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    dtype = source.dtype or quantized or CODES.get(stated) or _most(tensors)
    return replace(source, config=config, tensors=tensors, dtype=dtype, remarks=tuple(remarks), dense=dense)


def _most(tensors: Mapping[str, TensorInfo]) -> str:
    """Find the dtype of most weights among those that a mixture can have."""
    elements = Counter[str]()
    for tensor in tensors.values():
        if tensor.dtype in FLOATS:
            elements[tensor.dtype] += tensor.elements
    return elements.most_common(1)[0][0] if elements else "BF16"


def _open_weights(folder: Path, file: str, size: int, origin: Repository | None) -> dict[str, TensorInfo]:
    """List the tensors of one file, which lies in the folder or can be read from the Hub.

    Raises:
        ValueError: if it isn't what its name says; the message says how.
    """
    path = folder / file
    if not file.endswith(".safetensors"):
        return open_pickle(path)
    if path.exists() or origin is None or (ranges := origin.ranges) is None:
        return open_file(path)
    found = read_header(folder, file, size, functools.partial(ranges.read, file), ranges.read)
    ranges.learn(file, ((t.name, lies.offset, lies.nbytes) for t in found.values() if (lies := t.span())))
    return found


def _open_gguf(reference: Reference, file: Path, origin: Repository | None, where: str) -> Source:
    """Open a GGUF file; of one on the Hub that isn't here, no more is brought than it says of itself."""
    file, head = file.absolute(), None
    if origin:
        name = file.relative_to(origin.folder.absolute()).as_posix()
        size = origin.sizes[name]
        if file.exists() or origin.ranges is None:
            _bring(origin, [name], where)  # looks whether it is whole
        else:
            head = bring_head(f"{file} {size}", size, functools.partial(origin.ranges.read, name))
    else:
        name, size = str(file), file.stat().st_size
    opened = gguf.open_gguf(file, where, head)
    weights = {name: size}
    source = Source(reference, opened.folder, origin, opened.config, opened.tensors, weights, gguf.DTYPE, opened.unread)
    return _settle(source, where, None)
