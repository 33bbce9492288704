"""A LoRA adapter in PEFT's format, added to its base model's tensors while they are read: no merged copy is made.

``W + scale * B A`` with A ``[r, in]`` and B ``[out, r]``; transposed where W lies as ``[in, out]``, as embeddings do.
Tensors that the adapter holds whole (``modules_to_save``) replace the base model's. Format:
https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazymoe.architectures.records import Dense
from lazymoe.architectures.values import is_number
from lazymoe.checkpoint.lfs import refuse_pointer
from lazymoe.checkpoint.multimodal import NAMED
from lazymoe.checkpoint.safetensors import open_file
from lazymoe.checkpoint.tensors import FLOATS, TensorInfo
from lazymoe.checkpoint.wrappers import BEFORE
from lazymoe.errors import error, failure
from lazymoe.recipe.reference import Reference

if TYPE_CHECKING:
    import torch

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(.+?)\.(?:lora_(?:embedding_)?([AB]))(?:\.weight)?")
WHOLE = re.compile(r"base_model\.model\.(.+?)(?:\.modules_to_save|\.base_layer)?\.(weight|bias)")
ROWS = 256  # of a change that are worked out at a time
# of a pattern that is run: its letters, how often it may repeat something, and that with its groups; a name's letters
LONGEST, REPEATS, CHOICES, NAME = 200, 2, 3, 100
_MERGE_IT = "Merge it first with PEFT's merge_and_unload() and name the result."


@dataclass(frozen=True)
class Pair:
    """The two factors of a change, what their product is multiplied by, and whether it is transposed."""

    a: TensorInfo
    b: TensorInfo
    scale: float
    turned: bool


@dataclass(frozen=True)
class Adapted:
    """Reads a tensor that an adapter changes, in float32 or wider.

    Attributes:
        below: the tensor without the change.
        pair: the change.
    """

    below: TensorInfo
    pair: Pair

    def span(self, start: int, stop: int) -> None:
        """Give nothing: it lies nowhere, it is worked out."""

    def stamp(self) -> tuple[object, ...]:
        """Give what changes when one of the files does."""
        parts = (self.below, self.pair.a, self.pair.b)
        return tuple(part.reader.stamp() for part in parts)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Read elements start to stop, flat: ``[stop - start]``, with the change, in float32 or wider."""
        import torch

        base, (length, width) = self.below.read(start, stop), self.below.shape
        read = base.to(torch.promote_types(base.dtype, torch.float32), copy=True)
        a, b = _load(self.pair.a), _load(self.pair.b)  # [r, in], [out, r]; of embeddings [r, tokens], [H, r]
        left, right = (a.T, b.T) if self.pair.turned else (b, a)
        at = start // width // ROWS * ROWS  # always the same products, however much is read: their bits may differ
        while at * width < stop:
            delta = left[at : at + ROWS] @ right * self.pair.scale  # [rows, width]
            begin, end = max(start, at * width), min(stop, min(at + ROWS, length) * width)
            read[begin - start : end - start] += delta.reshape(-1)[begin - at * width : end - at * width]
            at += ROWS
        return read


@dataclass(frozen=True)
class Adapter:
    """An adapter on a model, opened.

    Attributes:
        reference: what the recipe calls it, with its commit if it is from the Hub.
        file: that holds its weights.
        tensors: those of the model that are others with it, by name.
    """

    reference: Reference
    file: Path = field(repr=False)  # a checkpoint is the same wherever it lies
    tensors: dict[str, TensorInfo]


def _load(tensor: TensorInfo) -> torch.Tensor:
    """Read a factor in float32."""
    return _kept(tensor, tensor.reader.stamp())


@functools.lru_cache(maxsize=64)
def _kept(tensor: TensorInfo, stamp: tuple[object, ...]) -> torch.Tensor:
    """Read a factor in float32, and keep it.

    The file's time of change keeps a factor that was trained anew from being taken for the old.
    """
    return tensor.load().float()


def open_adapter(
    text: str, where: str, tensors: Mapping[str, TensorInfo], dense: Dense | None, behind: Sequence[str] = ()
) -> Adapter:
    """Open the adapter of a reference on a model with these tensors.

    Args:
        text: a folder, or a Hub id with ``@revision`` if wanted.
        where: how messages name the place it was asked for.
        tensors: the base model's, by name.
        dense: the record of its architecture, if there is one.
        behind: names of tensors that it has besides and that aren't taken, for pictures or sound.

    Raises:
        SourceError: if it can't be found or read, is of a kind that isn't LoRA's plain product, changes what isn't
            taken, or belongs to another model.
        HubError: if the Hub has no such adapter, refuses or can't be reached.
    """
    reference, folder = _find(text, where)
    if not (folder / WEIGHTS).is_file():
        what = f"the adapter {reference} has no {WEIGHTS}"
        raise error("source.adapter", where, what, "Name a PEFT adapter saved as safetensors.")
    for file in (CONFIG, WEIGHTS):
        refuse_pointer(folder / file, where)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        held = open_file(folder / WEIGHTS)
    except (OSError, ValueError, RecursionError) as e:
        what = f"the adapter {reference} can't be read ({e})"
        raise error("source.adapter", where, what, "Download it again.") from None
    _check_kind(config, reference, where)

    halves: dict[str, dict[str, TensorInfo]] = {}
    whole: dict[str, TensorInfo] = {}
    apart = {_part(name) for name in behind} - {_part(name) for name in tensors}
    for key, tensor in held.items():
        if _part(key) in apart:
            what = f"the adapter {reference} changes '{_part(key)}' too, which is for pictures or sound and isn't taken"
            raise error("source.adapter", where, what, _MERGE_IT)
        if match := KEY.fullmatch(key):
            module = _bare(f"{match[1]}.weight", tensors, dense).removesuffix(".weight")
            halves.setdefault(module, {})[match[2] + ("e" if "lora_embedding" in key else "")] = tensor
        elif (match := WHOLE.fullmatch(key)) and "lora_" not in key:
            whole[_bare(f"{match[1]}.{match[2]}", tensors, dense)] = tensor
        else:
            what = f"the adapter {reference} holds '{key}', which isn't plain LoRA"
            raise error("source.adapter", where, what, _MERGE_IT)
    try:
        pairs = {f"{module}.weight": _pair(parts, module, config, dense) for module, parts in halves.items()}
    except ValueError as e:
        what = f"the adapter {reference} isn't sound: {e}"
        raise error("source.adapter", where, what, "Download it again, or save it again with PEFT.") from None
    known = {**tensors, **whole}
    for name, pair in pairs.items():
        rows, columns = (pair.a.shape[1], pair.b.shape[0]) if pair.turned else (pair.b.shape[0], pair.a.shape[1])
        if name not in known or known[name].shape != (rows, columns):
            made_for = config.get("base_model_name_or_path") or "another model"
            what = f"the adapter {reference} changes '{name}' [{rows}, {columns}], which this model doesn't have"
            raise error("source.adapter", where, what, f"It was made for {made_for}: name that before the '+'.")
    for name, tensor in whole.items():
        if tensor.dtype not in FLOATS or (name in tensors and tensors[name].shape != tensor.shape):
            what = (
                f"the adapter {reference} holds '{name}' as {list(tensor.shape)} of {tensor.dtype}, which doesn't fit"
            )
            raise error("source.adapter", where, what, "Name the model that it was made for before the '+'.")
    changed = {name: replace(tensor, name=name) for name, tensor in whole.items()}
    for name, pair in pairs.items():
        below = changed.get(name) or tensors[name]
        changed[name] = replace(below, reader=Adapted(below, pair), start=0)
    return Adapter(reference, folder / WEIGHTS, changed)


def _bare(name: str, tensors: Mapping[str, TensorInfo], dense: Dense | None) -> str:
    """Name a tensor as the text model by itself does, where the adapter was trained on a multimodal one."""
    outer, rest = dense.prefix.partition(".")[0] + "." if dense else "", name
    while rest not in tensors and outer + rest not in tensors:
        first, _, rest = rest.partition(".")
        if first not in BEFORE | NAMED:
            return name
    return rest if rest in tensors else outer + rest


def _part(name: str) -> str:
    """Name the part of a multimodal model that a tensor belongs to, such as ``vision_tower``."""
    return next((part for part in name.split(".") if part not in BEFORE | NAMED), "")


def _find(text: str, where: str) -> tuple[Reference, Path]:
    """Find the adapter: its reference, pinned, and the folder of its files."""
    reference = Reference.parse(text)
    if reference.path.is_dir():
        return reference, reference.path.resolve()
    if problem := reference.nowhere(where):
        raise failure([problem])
    from lazymoe.hub.downloading import Wanted, download
    from lazymoe.hub.reading import find_model

    found = find_model(reference.model, reference.revision, where, (CONFIG,))
    download([Wanted(found, file, where) for file in (CONFIG, WEIGHTS) if file in found.sizes])
    return Reference(reference.model, found.commit), found.folder


def _check_kind(config: Any, reference: Reference, where: str) -> None:
    """Check that it is LoRA as it was first described, whose product can just be added.

    Raises:
        SourceError: if it isn't.
    """
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        what = f"{reference} is an adapter of the kind {kind}, not LoRA"
        raise error("source.adapter", where, what, _MERGE_IT)
    for key, words in (("use_dora", "DoRA"), ("lora_bias", "biases")):
        if config.get(key):
            what = f"the adapter {reference} uses {words}, which can't be added tensor by tensor"
            raise error("source.adapter", where, what, _MERGE_IT)


def _pair(parts: Mapping[str, TensorInfo], module: str, config: Mapping[str, Any], dense: Dense | None) -> Pair:
    """Pair the factors of one module's change; its rank is that of its factors.

    Raises:
        ValueError: if they don't make a product, or the config's numbers aren't any; the message says how.
    """
    embedding = "Ae" in parts or "Be" in parts
    names = ("Ae", "Be") if embedding else ("A", "B")
    if parts.keys() != set(names):
        raise ValueError(f"'{module}' has one factor of two")
    a, b = (parts[name] for name in names)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        raise ValueError(f"the factors of '{module}' are {list(a.shape)} and {list(b.shape)}")
    if a.dtype not in FLOATS or b.dtype not in FLOATS:
        raise ValueError(f"the factors of '{module}' are {a.dtype} and {b.dtype}")
    rank = a.shape[0]
    alpha = _alpha(config, module, rank)
    turned = embedding or (dense is not None and dense.is_turned(f"{module}.weight"))  # whatever fan_in_fan_out says
    return Pair(a, b, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), turned)


def _alpha(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Find what a module's change is multiplied by before it is divided by the rank.

    Raises:
        ValueError: if that isn't a number, or takes a pattern that might never be done with.
    """
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ValueError("its alpha_pattern isn't a list of patterns and numbers")
    found = [value for pattern, value in patterns.items() if _matches(pattern, module)]
    stated = config.get("lora_alpha")
    alpha = found[0] if found else rank if stated is None else stated
    if not is_number(alpha):
        raise ValueError(f"its lora_alpha is {str(alpha)[:40]!r}")
    return float(alpha)


def _matches(pattern: str, module: str) -> bool:
    """Tell whether PEFT's pattern means a module.

    It is a regular expression of somebody else's, and some of these take for ever. Those that can't are literal names,
    or repeat single characters twice at most, where an optional one is a repeated one too, and have few alternatives.
    """
    literal = pattern.replace("\\.", ".")
    if re.fullmatch(r"[\w.]+", literal):  # dots are meant as dots
        return module == literal or module.endswith(f".{literal}")
    repeats, groups = len(re.findall(r"[*+?{]", pattern)), pattern.count("(")
    much = len(pattern) > LONGEST or len(module) > NAME or repeats > REPEATS or repeats + groups > CHOICES
    if much or re.search(r"\)[*+?{]", pattern):
        raise ValueError(f"the pattern '{pattern[:40]}' of its alpha_pattern is too intricate to be run")
    try:
        return bool(re.match(rf"(.*\.)?({pattern})$", module))
    except re.error as e:
        raise ValueError(f"the pattern '{pattern[:40]}' of its alpha_pattern is none ({e})") from None
