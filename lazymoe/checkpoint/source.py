"""One dense checkpoint, opened: its config, its small files, its tensors unread. Nothing here knows what it is for."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lazymoe.checkpoint.lora import Adapter
from lazymoe.checkpoint.tensors import TensorInfo
from lazymoe.errors import error
from lazymoe.recipe.reference import HUB_ID, Reference

if TYPE_CHECKING:
    import torch

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tekken.json", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
SMALL_FILES = (*TOKENIZER_FILES, "config.json", "generation_config.json", "*.index.json")
CARD = "README.md"


@dataclass(frozen=True)
class Source:
    """A dense checkpoint.

    Attributes:
        reference: what the recipe calls it.
        folder: where its files are, or will be once fetched.
        revision: the commit, for a model from the Hub.
        config: its config.json.
        tensors: every tensor by name.
        weights: the files that hold the tensors, with their sizes in bytes.
        dtype: the format's name of the dtype that quantized weights had before; None where none is quantized.
        unread: names of tensors that nothing here can read.
        adapter: a LoRA adapter on top; ``tensors`` are those with it.
    """

    reference: Reference
    folder: Path
    revision: str | None
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    weights: dict[str, int]
    dtype: str | None = None
    unread: tuple[str, ...] = ()
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

    def load(self, name: str) -> torch.Tensor:
        """A whole tensor, in its dtype, or wider under an adapter."""
        return self.tensors[name].load()

    def rows(self, name: str, indices: Iterable[int]) -> torch.Tensor:
        """Rows of a matrix [N, H], such as the embeddings of a few tokens, without reading the others: ``[n, H]``."""
        import torch

        tensor = self.tensors[name]
        width = tensor.shape[1]
        return torch.stack([tensor.read(i * width, (i + 1) * width) for i in indices])

    def files(self, patterns: Sequence[str]) -> list[str]:
        """Names of the small files here that match one of the patterns, sorted."""
        found = (p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())
        return sorted(name for name in found if any(fnmatch(name, pattern) for pattern in patterns))

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file of this checkpoint, empty if it has none."""
        path = self.folder / name
        return read_json(path, self.reference.model) if path.is_file() else {}

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

    def digest(self, patterns: Sequence[str]) -> str:
        """A hash of the small files here that match one of the patterns, names and contents."""
        digest = hashlib.sha256()
        for name in self.files(patterns):
            digest.update(name.encode() + hashlib.sha256((self.folder / name).read_bytes()).digest())
        return digest.hexdigest()

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes when the checkpoint's layout, config or tokenizer does; cheap, since no weight is read."""
        layout = repr((sorted(self.tensors.values(), key=lambda t: t.name), self.weights, self.adapter))
        return hashlib.sha256(f"{layout} {self.digest(SMALL_FILES)}".encode()).hexdigest()


def read_json(path: Path, where: str) -> dict[str, Any]:
    """A JSON file that holds an object.

    Args:
        path: of the file.
        where: how messages name the place that its model was asked for.

    Raises:
        SourceError: if there is none, or it holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(data, dict):
            return data
        what = f"{path} isn't a JSON object"
    except FileNotFoundError:
        what = f"{path.parent} has no {path.name}"
    except (OSError, ValueError, RecursionError):
        what = f"{path} can't be read as JSON"
    remedy = "Name a folder or repository that holds a whole model, or download it again."
    raise error("source.incomplete", where, what, remedy)


def _first(stated: Any) -> Any:
    """A card's value, or the first where it states a list of them."""
    return stated[0] if isinstance(stated, list) and stated else stated
