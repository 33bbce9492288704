"""A LoRA adapter in PEFT's format, added to its base model's tensors while they are read: no merged copy is made.

``W + scale * B A`` with A ``[r, in]`` and B ``[out, r]``; for embeddings the transpose. Tensors that the adapter holds
whole (``modules_to_save``) replace the base model's. Format: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazymoe.errors import LazyMoEError, error
from lazymoe.header import Tensor, read_header
from lazymoe.read import read_bytes, read_elements
from lazymoe.recipe import Reference
from lazymoe.source import Source, nowhere

if TYPE_CHECKING:
    import torch

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(.+?)\.(?:lora_(?:embedding_)?([AB]))(?:\.weight)?")
WHOLE = re.compile(r"base_model\.model\.(.+?)(?:\.modules_to_save|\.base_layer)?\.(weight|bias)")


@dataclass(frozen=True)
class Pair:
    """The two factors of a change, and what their product is multiplied by."""

    a: Tensor
    b: Tensor
    scale: float
    embedding: bool


@dataclass(frozen=True)
class Adapter:
    """An adapter on a model, opened.

    Attributes:
        reference: what the recipe calls it, with its commit if it is from the Hub.
        folder: where its files are.
        pairs: the changes, by the name of the tensor that they are added to.
        whole: the tensors that it replaces, by name.
        changed: the base model's own tensors under both, by name.
    """

    reference: Reference
    folder: Path
    pairs: dict[str, Pair]
    whole: dict[str, Tensor]
    changed: dict[str, Tensor]

    @functools.cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a model has otherwise with it: none of their bytes can be copied as they lie."""
        return {name: replace(t, name=name, offset=None) for name, t in (self.changed | self.whole).items()}

    def elements(self, model: Source, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements start to stop of one of its tensors, flat; of a changed one in float32 or wider.

        Args:
            model: what the adapter is on, without it.
        """
        import torch

        if name in self.whole:
            base = read_elements(self.folder, self.whole[name], start, stop)
        else:
            base = model.elements(self.changed[name], start, stop)
        if name not in self.pairs:
            return base
        pair, width = self.pairs[name], self.tensors[name].shape[1]
        first, last = start // width, -(-stop // width)  # rows
        stamp = (self.folder / WEIGHTS).stat().st_mtime_ns
        a, b = _load(self.folder, pair.a, stamp), _load(self.folder, pair.b, stamp)
        delta = (a[:, first:last].T @ b.T) if pair.embedding else (b[first:last] @ a)
        delta = delta.reshape(-1)[start - first * width : stop - first * width] * pair.scale
        return base.to(torch.promote_types(base.dtype, torch.float32)) + delta


@functools.lru_cache(maxsize=64)
def _load(folder: Path, tensor: Tensor, stamp: int) -> torch.Tensor:
    """A factor in float32; the file's time of change keeps one that was trained anew from being taken for the old."""
    return read_elements(folder, tensor, 0, tensor.elements).reshape(tensor.shape).float()


def open_adapter(text: str, where: str, tensors: Mapping[str, Tensor]) -> Adapter:
    """Open the adapter of a reference on a model with these tensors.

    Args:
        text: a folder, or a Hub id with ``@revision`` if wanted.
        where: how messages name the place it was asked for.
        tensors: the base model's, by name.

    Raises:
        LazyMoEError: if it can't be found or read, is of a kind that isn't LoRA's plain product, or belongs to another
            model.
    """
    reference, folder = _find(text, where)
    if not (folder / WEIGHTS).is_file():
        raise error(where, f"the adapter {reference} has no {WEIGHTS}", "Name a PEFT adapter saved as safetensors.")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        size = (folder / WEIGHTS).stat().st_size
        held = read_header(WEIGHTS, size, functools.partial(read_bytes, folder / WEIGHTS))
    except (OSError, ValueError, RecursionError) as e:
        raise error(where, f"the adapter {reference} can't be read ({e})", "Download it again.") from None
    _check_kind(config, reference, where)

    halves: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for key, tensor in held.items():
        if match := KEY.fullmatch(key):
            halves.setdefault(match[1], {})[match[2] + ("e" if "lora_embedding" in key else "")] = tensor
        elif (match := WHOLE.fullmatch(key)) and "lora_" not in key:
            whole[f"{match[1]}.{match[2]}"] = tensor
        else:
            raise error(where, f"the adapter {reference} holds '{key}', which isn't plain LoRA", _MERGE_IT)
    pairs = {f"{module}.weight": _pair(parts, module, config) for module, parts in halves.items()}
    known = {**tensors, **whole}
    for name, pair in pairs.items():
        rows, columns = (pair.a.shape[1], pair.b.shape[0]) if pair.embedding else (pair.b.shape[0], pair.a.shape[1])
        if name not in known or known[name].shape != (rows, columns):
            made_for = config.get("base_model_name_or_path") or "another model"
            what = f"the adapter {reference} changes '{name}' [{rows}, {columns}], which this model doesn't have"
            raise error(where, what, f"It was made for {made_for}: name that before the '+'.")
    changed = {name: tensors[name] for name in (*pairs, *whole) if name in tensors}
    return Adapter(reference, folder, pairs, whole, changed)


_MERGE_IT = "Merge it first with PEFT's merge_and_unload() and name the result."


def _find(text: str, where: str) -> tuple[Reference, Path]:
    """The adapter's reference, pinned, and the folder of its files."""
    reference = Reference.parse(text)
    if reference.path.is_dir():
        return reference, reference.path.resolve()
    if problem := nowhere(reference, where):
        raise LazyMoEError([problem])
    from lazymoe import hub

    folder, commit, _, _ = hub.open_model(reference, where, (CONFIG, WEIGHTS))
    return Reference(reference.model, commit), folder


def _check_kind(config: Any, reference: Reference, where: str) -> None:
    """Whether it is LoRA as it was first described, whose product can just be added."""
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise error(where, f"{reference} is an adapter of the kind {kind}, not LoRA", _MERGE_IT)
    for key, words in (("use_dora", "DoRA"), ("fan_in_fan_out", "transposed weights"), ("lora_bias", "biases")):
        if config.get(key):
            raise error(
                where, f"the adapter {reference} uses {words}, which can't be added tensor by tensor", _MERGE_IT
            )


def _pair(parts: dict[str, Tensor], module: str, config: Mapping[str, Any]) -> Pair:
    """The change of one module; its rank is that of its factors."""
    embedding = "Ae" in parts
    a, b = (parts["Ae"], parts["Be"]) if embedding else (parts["A"], parts["B"])
    rank = a.shape[0]
    alpha = next(
        (value for key, value in (config.get("alpha_pattern") or {}).items() if re.match(rf"(.*\.)?({key})$", module)),
        config.get("lora_alpha", rank),
    )
    return Pair(a, b, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), embedding)
