"""One dense checkpoint: its config, its tokenizer files and the header of every tensor.

Opening a source reads a few kilobytes, also where the weights are still on the Hub; `fetch` brings the weights, and
bytes of a tensor are read only when asked for. Nothing here knows what a checkpoint is for.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lazymoe.dialect import translate
from lazymoe.errors import LazyMoEError, Problem, error
from lazymoe.header import Tensor, read_header
from lazymoe.read import described, load_pickle, read_bytes, read_elements
from lazymoe.recipe import Reference

if TYPE_CHECKING:
    import torch

    from lazymoe.gguf import Gguf
    from lazymoe.lora import Adapter
    from lazymoe.packed import Packed

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tekken.json", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
SMALL_FILES = (*TOKENIZER_FILES, "config.json", "generation_config.json", "*.index.json")
CARD = "README.md"
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Source:
    """A dense checkpoint, opened.

    Attributes:
        reference: what the recipe calls it.
        folder: where its files are, or will be once fetched.
        revision: the commit, for a model from the Hub.
        config: its config.json.
        tensors: every tensor by name.
        weights: the files that hold the tensors, with their sizes in bytes.
        packed: what reads the tensors that are stored in fewer bits.
        adapter: a LoRA adapter on top; ``tensors`` are those with it.
    """

    reference: Reference
    folder: Path
    revision: str | None
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    weights: dict[str, int]
    packed: Packed | Gguf | None = None
    adapter: Adapter | None = None

    @property
    def missing(self) -> dict[str, int]:
        """The files that are still to be downloaded, with their sizes in bytes."""
        return {file: size for file, size in self.weights.items() if not (self.folder / file).exists()}

    @property
    def pinned(self) -> str:
        """The reference with its commit, so that it names the same weights for ever."""
        adapter = str(self.adapter.reference) if self.adapter else None
        return str(replace(self.reference, revision=self.revision or self.reference.revision, adapter=adapter))

    def files(self, patterns: Sequence[str]) -> list[str]:
        """Names of the small files here that match one of the patterns, sorted."""
        found = (p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())
        return sorted(name for name in found if any(fnmatch(name, pattern) for pattern in patterns))

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file of this checkpoint, empty if it has none."""
        path = self.folder / name
        return _json(path, self.reference.model) if path.is_file() else {}

    @property
    def license(self) -> str | None:
        """The licence that its model card states, as the Hub spells it."""
        key = "license_name" if self._card.get("license") == "other" else "license"
        stated = _first(self._card.get(key))
        return stated.lower() if isinstance(stated, str) and stated else None

    @property
    def languages(self) -> list[str]:
        """The languages that its model card states."""
        stated = self._card.get("language") or []
        return [code for code in ([stated] if isinstance(stated, str) else stated) if isinstance(code, str)]

    @property
    def made_from(self) -> str | None:
        """The model that its model card says it was made from."""
        stated = _first(self._card.get("base_model"))
        return stated if isinstance(stated, str) and HUB_ID.fullmatch(stated) else None

    @functools.cached_property
    def _card(self) -> dict[str, Any]:
        """The front matter of its model card, empty if there is none that can be read."""
        if not (self.folder / CARD).is_file():  # nothing to import huggingface_hub for
            return {}
        from huggingface_hub import metadata_load

        try:
            return metadata_load(self.folder / CARD) or {}
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            return {}

    def elements(self, tensor: Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Elements start to stop of a tensor, flat: ``[stop - start]``, in its own dtype, or wider under an adapter."""
        stop = tensor.elements if stop is None else stop
        if self.adapter and tensor.name in self.adapter.tensors:
            return self.adapter.elements(replace(self, adapter=None), tensor.name, start, stop)
        if self.packed and tensor.name in self.packed.tensors:
            return self.packed.elements(self.folder, tensor.name, start, stop)
        if tensor.offset is None:
            return load_pickle(self.folder / tensor.file)[tensor.name].reshape(-1)[start:stop]
        return read_elements(self.folder, tensor, start, stop)

    def load(self, name: str) -> torch.Tensor:
        """A whole tensor, in the dtype that `elements` gives."""
        tensor = self.tensors[name]
        return self.elements(tensor).reshape(tensor.shape)

    def rows(self, name: str, indices: Iterable[int]) -> torch.Tensor:
        """Rows of a matrix [N, H], such as the embeddings of a few tokens, without reading the others: ``[n, H]``."""
        import torch

        tensor = self.tensors[name]
        width = tensor.shape[1]
        return torch.stack([self.elements(tensor, i * width, (i + 1) * width) for i in indices])

    def digest(self, patterns: Sequence[str]) -> str:
        """A hash of the small files here that match one of the patterns, names and contents."""
        digest = hashlib.sha256()
        for name in self.files(patterns):
            digest.update(name.encode() + hashlib.sha256((self.folder / name).read_bytes()).digest())
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """Changes when the checkpoint's layout, config or tokenizer does; cheap, since no weight is read."""
        layout = repr((sorted(self.tensors.values(), key=lambda t: t.name), self.weights, self.packed, self.adapter))
        return hashlib.sha256(f"{layout} {self.digest(SMALL_FILES)}".encode()).hexdigest()


def nowhere(ref: Reference, where: str) -> Problem | None:
    """What is wrong with a model's name that is no path here and can't be one on the Hub; None if it may be either."""
    if ref.path.exists() or HUB_ID.fullmatch(ref.model):
        return None
    return Problem(where, f"there is no folder '{ref.model}'", "Check the path, or use a Hub id such as 'org/name'.")


def open_source(reference: str, where: str = "model", allow_pickle: bool = False) -> Source:
    """Open a checkpoint by its configs and headers.

    Args:
        reference: a folder, or a Hub id, as :class:`Reference` reads it.
        where: how messages name the place it was asked for.
        allow_pickle: also take ``.bin`` weights, read with ``weights_only=True``. From the Hub these must be
            downloaded before their tensors are known.

    Raises:
        LazyMoEError: if it can't be found, reached or read, or isn't whole.
    """
    ref = Reference.parse(reference)
    if ref.adapter:
        from lazymoe.lora import WEIGHTS, open_adapter

        below = open_source(str(replace(ref, adapter=None)), where, allow_pickle)
        adapter = open_adapter(ref.adapter, where, below.tensors)
        file = adapter.folder / WEIGHTS
        weights = below.weights | {str(file): file.stat().st_size}
        tensors = below.tensors | adapter.tensors
        return replace(below, reference=ref, tensors=tensors, weights=weights, adapter=adapter)
    path = ref.path
    if path.suffix == ".gguf" and path.is_file():
        return _open_gguf(ref, path, None, where)
    if path.is_dir():
        sizes = {p.name: p.stat().st_size for p in path.iterdir() if p.is_file()}
        if file := _only_gguf(sizes, ref, where):
            return _open_gguf(ref, path / file, None, where)
        return _open(ref, where, path.resolve(), None, sizes, allow_pickle, None)
    if path.exists():
        raise error(where, f"'{ref.model}' is a file", "Name the folder with config.json and the safetensors in it.")
    if problem := nowhere(ref, where):
        raise LazyMoEError([problem])
    from lazymoe import hub

    folder, commit, sizes, read = hub.open_model(ref, where, (*SMALL_FILES, CARD))
    if gguf := ref.file or _only_gguf(sizes, ref, where):
        if gguf not in sizes:
            raise error(where, f"{ref.model} has no file {gguf}", "Look its files up on the Hub.")
        hub.download(ref, commit, [gguf], where)
        return _open_gguf(ref, folder / gguf, commit, where)
    files, _ = _weights(sizes, folder, allow_pickle, where, ref.model)
    if files[0].endswith(".bin"):
        hub.download(ref, commit, files, where)
    return _open(ref, where, folder, commit, sizes, allow_pickle, read)


def fetch(source: Source, where: str = "model") -> None:
    """Download the weights that aren't here yet, and nothing else."""
    if source.missing:
        from lazymoe import hub

        hub.download(source.reference, source.revision, list(source.missing), where)


def _open(
    ref: Reference,
    where: str,
    folder: Path,
    commit: str | None,
    sizes: dict[str, int],
    allow_pickle: bool,
    remote: Callable[[str, int, int], bytes] | None,
) -> Source:
    config = _json(folder / "config.json", where)
    tensors: dict[str, Tensor] = {}
    files, named = _weights(sizes, folder, allow_pickle, where, ref.model)
    for file in files:
        if file not in sizes:
            raise error(where, f"{ref.model} lacks the file {file}, which its index names", "Download it again, whole.")
        path = folder / file
        try:
            if file.endswith(".bin"):
                tensors |= {name: described(name, t, file) for name, t in load_pickle(path).items()}
            elif path.exists():
                tensors |= read_header(file, path.stat().st_size, functools.partial(read_bytes, path))
            else:
                assert remote is not None
                tensors |= read_header(file, sizes[file], functools.partial(remote, file))
        except ValueError as e:
            raise error(where, f"{ref.model}, {file}: {e}", "Download or save this file again.") from None
    if lost := sorted(named - set(tensors)):
        raise error(where, f"{ref.model}: its index names '{lost[0]}', which no file has", "Download it again, whole.")
    from lazymoe.packed import find_packed

    config, tensors = translate(config, tensors)
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)  # some have it all the same, and nothing reads it
    packed, tensors = find_packed(config, tensors)
    if packed:
        config = {key: value for key, value in config.items() if key != "quantization_config"}
    return Source(ref, folder, commit, config, tensors, {file: sizes[file] for file in files}, packed)


def _open_gguf(ref: Reference, file: Path, commit: str | None, where: str) -> Source:
    from lazymoe.gguf import open_gguf

    return open_gguf(ref, file, commit, where)


def _only_gguf(sizes: dict[str, int], ref: Reference, where: str) -> str | None:
    """The GGUF file of a model that has nothing else."""
    files = sorted(name for name in sizes if name.endswith(".gguf"))
    if not files or any(name.endswith((".safetensors", ".bin")) for name in sizes):
        return None
    if len(files) > 1:
        what = f"{ref.model} has {len(files)} GGUF files"
        raise error(where, what, f"Name one of them, the largest you can: {ref.model}/{files[-1]}")
    return files[0]


def _weights(
    sizes: dict[str, int], folder: Path, allow_pickle: bool, where: str, model: str
) -> tuple[list[str], set[str]]:
    """Which files hold the weights (safetensors before pickles, an index before a single file) and what it names."""
    for single, allowed in (("model.safetensors", True), ("pytorch_model.bin", allow_pickle)):
        index = f"{single}.index.json"
        if allowed and index in sizes:
            weight_map = _json(folder / index, where).get("weight_map")
            files: list[Any] = list(weight_map.values()) if isinstance(weight_map, dict) else []
            if not files or not all(isinstance(file, str) and Path(file).name == file for file in files):
                raise error(where, f"{model}: {index} has no usable weight_map", "Download it again.")
            return sorted(set(files)), set(weight_map or ())
        if allowed and single in sizes:
            return [single], set()
    if any(name.endswith(".bin") for name in sizes) and not allow_pickle:
        raise error(
            where,
            f"{model} has only .bin weights, and a pickle can run code when it is loaded",
            "If you trust its author, allow them with --allow-pickle.",
        )
    raise error(
        where,
        f"{model} has no model.safetensors and no model.safetensors.index.json",
        "Name a model whose weights are safetensors, unquantised.",
    )


def _first(stated: Any) -> Any:
    """A card's value, or the first where it states a list of them."""
    return stated[0] if isinstance(stated, list) and stated else stated


def _json(path: Path, where: str) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(data, dict):
            return data
        what = f"{path} isn't a JSON object"
    except FileNotFoundError:
        what = f"{path.parent} has no {path.name}"
    except (OSError, ValueError, RecursionError):
        what = f"{path} can't be read as JSON"
    raise error(where, what, "Name a folder or repository that holds a whole model, or download it again.")
