"""One dense checkpoint, opened: its config, its small files, its tensors unread. Nothing here knows what it is for."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lazymoe.architectures.records import Dense
from lazymoe.checkpoint.lfs import START, refusal
from lazymoe.checkpoint.lora import Adapter
from lazymoe.checkpoint.tensors import TensorInfo
from lazymoe.errors import error
from lazymoe.recipe.reference import HUB_ID, Reference

if TYPE_CHECKING:
    import torch

    from lazymoe.hub.reading import Repository

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tekken.json", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
GENERATION = "generation_config.json"
SMALL_FILES = (*TOKENIZER_FILES, "config.json", GENERATION, "*.index.json")
CARD = "README.md"


@dataclass(frozen=True)
class Source:
    """A dense checkpoint.

    Attributes:
        reference: what the recipe calls it.
        folder: where its files are, or will be once fetched.
        origin: the repository, for a model from the Hub.
        config: its config.json.
        tensors: every tensor by name.
        weights: the files that hold the tensors, with their sizes in bytes.
        dtype: the format's name of the dtype that a mixture is written in where a recipe doesn't say: the config's,
            else that of most weights; of quantized weights what they had before.
        unread: names of tensors that nothing here can read.
        ignored: names of tensors in its files that no model of its kind reads, left out of ``tensors``.
        behind: names of its tensors for pictures or sound, left out likewise.
        dense: the record of its architecture; None if there is none, as for a mixture.
        remarks: what was found odd in it and how it was taken, in words.
        adapter: a LoRA adapter on top; ``tensors`` are those with it.
        kind: its model_type as its config.json has it, which may be another spelling of the one in ``config``.
    """

    reference: Reference
    folder: Path
    origin: Repository | None
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    weights: dict[str, int]
    dtype: str = ""
    unread: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    adapter: Adapter | None = None
    ignored: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()
    dense: Dense | None = None
    kind: str = ""

    @property
    def embeddings(self) -> str:
        """Name of the token embeddings' weight; empty if the architecture has no record."""
        return self.dense.embeddings if self.dense else ""

    @property
    def head(self) -> str:
        """Name of the output head's weight; empty if the architecture has no record."""
        return self.dense.head if self.dense else ""

    @property
    def revision(self) -> str | None:
        """The commit, for a model from the Hub."""
        return self.origin.commit if self.origin else None

    def path(self, file: str) -> Path:
        """Tell where a file of weights is, or will be once fetched.

        Args:
            file: as ``weights`` has it.
        """
        return (self.origin.folder if self.origin and file in self.origin.sizes else self.folder) / file

    @property
    def missing(self) -> dict[str, int]:
        """The files that are still to be downloaded, with their sizes in bytes."""
        return {file: size for file, size in self.weights.items() if not self.path(file).exists()}

    @property
    def readable_there(self) -> dict[str, int]:
        """The files that can be read on the Hub, where they are, with their sizes in bytes."""
        sizes = self.origin.sizes if self.origin else {}
        return {file: size for file, size in self.weights.items() if file in sizes and file.endswith(".safetensors")}

    @property
    def away(self) -> dict[str, int]:
        """The files that aren't here and can be read where they are, with their sizes in bytes."""
        return {file: size for file, size in self.missing.items() if file.endswith(".safetensors")}

    @property
    def stamps(self) -> dict[str, str]:
        """What tells each file of weights from another of its name: size and commit, or size and time of change."""
        found = {}
        for file, size in self.weights.items():
            own = self.adapter.reference if self.adapter and file == str(self.adapter.file) else None
            commit, path = own.revision if own else self.revision, self.path(file)
            changed = commit or (str(path.stat().st_mtime_ns) if path.exists() else "gone")
            found[Path(file).name] = f"{size} bytes, {changed}"
        return found

    @property
    def pinned(self) -> str:
        """The reference with its commit, so that it names the same weights for ever."""
        adapter = str(self.adapter.reference) if self.adapter else None
        return str(replace(self.reference, revision=self.revision or self.reference.revision, adapter=adapter))

    def tensor(self, name: str) -> TensorInfo:
        """Give a tensor by its name; for the output head of a model that ties it, its embeddings.

        Args:
            name: of the tensor.

        Raises:
            KeyError: if there is none.
        """
        return self.tensors[name if name in self.tensors or not self.has(name) else self.embeddings]

    def has(self, name: str) -> bool:
        """Tell whether `tensor` finds a tensor of this name."""
        return name in self.tensors or (name == self.head and bool(self.config.get("tie_word_embeddings")))

    def load(self, name: str) -> torch.Tensor:
        """Read a whole tensor, in its dtype, or wider under an adapter.

        Args:
            name: of the tensor.
        """
        return self.tensor(name).load()

    def rows(self, name: str, indices: Iterable[int]) -> torch.Tensor:
        """Read rows of a matrix, such as the embeddings of a few tokens, without the others.

        Args:
            name: of the matrix ``[N, H]``.
            indices: of the rows, n of them.

        Returns:
            The rows ``[n, H]``, in its dtype, or wider under an adapter.

        Raises:
            SourceError: if there is no such row.
        """
        import torch

        tensor = self.tensor(name)
        length, width = tensor.shape
        wanted = list(indices)
        if beyond := [i for i in wanted if not 0 <= i < length]:
            what = f"its tokenizer has a token {max(beyond)}, which its embeddings lack: they have {length} rows"
            raise error("source.tokenizer", self.folder, what, "Use the tokenizer that belongs to this model.")
        return torch.stack([tensor.read(i * width, (i + 1) * width) for i in wanted])

    def files(self, patterns: Sequence[str]) -> list[str]:
        """List the names of the small files here that match one of the patterns, sorted.

        Args:
            patterns: as `Path.glob` takes them; no other folder is looked into than those that they name.
        """
        found = {path for pattern in patterns for path in self.folder.glob(pattern) if path.is_file()}
        return sorted(path.relative_to(self.folder).as_posix() for path in found)

    def json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of this checkpoint; empty if it has none.

        Args:
            name: of the file.

        Raises:
            SourceError: if it can't be read, or holds no object.
        """
        path = self.folder / name
        return read_json(path, self.reference.model) if path.is_file() else {}

    @property
    def license(self) -> str | None:
        """The licence that its model card states, as the Hub spells it."""
        stated = _first(self._card.get("license"))
        if stated == "other":
            stated = _first(self._card.get("license_name"))
        return stated.lower() if isinstance(stated, str) and stated else None

    @property
    def languages(self) -> list[str]:
        """The languages that its model card states."""
        stated = self._card.get("language")
        codes = ["no" if code is False else code for code in (stated if isinstance(stated, list) else [stated])]
        return [code for code in codes if isinstance(code, str) and code]  # YAML reads Norwegian, a bare no, as false

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
            card = metadata_load(self.folder / CARD)
        except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError, RecursionError):
            return {}
        return card if isinstance(card, dict) else {}

    def digest(self, patterns: Sequence[str]) -> str:
        """Hash the small files here that match one of the patterns, names and contents.

        Args:
            patterns: as in `files`.

        Returns:
            The hash, SHA-256, in hexadecimal.
        """
        digest = hashlib.sha256()
        for name in self.files(patterns):
            digest.update(name.encode() + hashlib.sha256((self.folder / name).read_bytes()).digest())
        return digest.hexdigest()

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes when the checkpoint's layout, config or tokenizer does; cheap, since no weight is read."""
        sizes = {Path(file).name: size for file, size in self.weights.items()}
        layout = repr((sorted(self.tensors.values(), key=lambda t: t.name), sizes, self.adapter))
        return hashlib.sha256(f"{layout} {self.digest(SMALL_FILES)}".encode()).hexdigest()


def read_json(path: Path, where: str) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: of the file.
        where: how messages name the place that its model was asked for.

    Raises:
        SourceError: if there is none, it can't be read, or it holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if text.startswith(START.decode()):
            raise refusal(path, where)
        data = json.loads(text or "null")
        if isinstance(data, dict):
            return data
        what = f"{path} isn't a JSON object" if text else f"{path} is empty"
    except FileNotFoundError:
        what = f"{path.parent} has no {path.name}"
    except (OSError, ValueError, RecursionError):
        what = f"{path} can't be read as JSON"
    remedy = "Name a folder or repository that holds a whole model, or download it again."
    raise error("source.incomplete", where, what, remedy)


def _first(stated: Any) -> Any:
    """Give a card's value, or the first where it states a list of them."""
    return stated[0] if isinstance(stated, list) and stated else stated
