"""Which files of a checkpoint hold its weights: those that transformers itself would load.

One file before an index, safetensors before pickles. Numbered shards without an index, which transformers doesn't know
how to load, are taken where none is missing. Pickles go by permission, whatever the index that names them is called.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lazymoe.checkpoint.source import read_json
from lazymoe.errors import LazyMoEError, error

SINGLE = ("model.safetensors", "pytorch_model.bin")  # the one that comes first is taken
SHARD = re.compile(r"(model|pytorch_model)-(\d{5})-of-(\d{5})(\.safetensors|\.bin)")
NAMED = "transformers_weights"  # the config key that names the file to load, before all else
ADAPTER = "adapter_config.json"
COMPANIONS = ("mmproj", "imatrix")  # GGUF files that lie beside a model's own


class Chosen(NamedTuple):
    """The files of a checkpoint's weights.

    Attributes:
        files: their names, in the order in which transformers reads them.
        tensors: names of the tensors that the index lists; empty where there is none.
    """

    files: list[str]
    tensors: frozenset[str]

    @property
    def pickles(self) -> list[str]:
        """Those that are pickles: all that don't end as safetensors do."""
        return [file for file in self.files if not file.endswith(".safetensors")]


def choose(
    listed: Collection[str], folder: Path, config: Mapping[str, Any], allow_pickle: bool, where: str, model: str
) -> Chosen:
    """Find which files hold a checkpoint's weights.

    Args:
        listed: the names of its files, a folder's or those that the Hub gives.
        folder: where its small files are.
        config: its config.json.
        allow_pickle: whether files that aren't safetensors may be read.
        where: how messages name the place it was asked for.
        model: what messages call it.

    Raises:
        SourceError: if there are none, some are missing, the index is no use, or pickles would have to be read.
    """
    names = {name for name in listed if "/" not in name}  # what lies deeper is another model, or the same for others
    chosen = _named(names, folder, config, where, model) or _usual(names, folder, where, model)
    if chosen is None:
        raise _nothing(names, where, model)
    if chosen.pickles and not allow_pickle:
        what = f"{model} has only .bin weights, and a pickle can run code when it is loaded"
        if len(chosen.pickles) < len(chosen.files) or (chosen.tensors and f"{SINGLE[0]}.index.json" in names):
            what = f"{model}: its index names {chosen.pickles[0]}, and a pickle can run code when it is loaded"
        remedy = "If you trust its author, allow them: with --allow-pickle, or by the box below the recipe's form."
        raise error("source.pickle", where, what, remedy)
    if lost := [file for file in chosen.files if file not in names]:
        what = f"{model} lacks the file {lost[0]}, which its index names"
        raise error("source.incomplete", where, what, "Download it again, whole.")
    return chosen


def only_gguf(sizes: Mapping[str, int], where: str, model: str) -> str | None:
    """Find the GGUF file of a model that has nothing else; None if it has none, or has other weights.

    Args:
        sizes: of its files, by name.
        where: how messages name the place it was asked for.
        model: what messages call it.

    Raises:
        SourceError: if there are several.
    """
    indices = [f"{single}.index.json" for single in SINGLE]
    if any(name in (*SINGLE, *indices) or SHARD.fullmatch(name) for name in sizes):
        return None
    files = sorted(name for name in sizes if name.endswith(".gguf"))
    files = [name for name in files if not any(word in name.lower() for word in COMPANIONS)] or files
    if len(files) > 1:
        what = f"{model} has {len(files)} GGUF files"
        largest = max(files, key=lambda name: sizes[name])
        raise error("source.ambiguous", where, what, f"Name one of them, the largest you can: {model}/{largest}")
    return files[0] if files else None


def _named(names: set[str], folder: Path, config: Mapping[str, Any], where: str, model: str) -> Chosen | None:
    """Give the file that the config names; None if it names none.

    Raises:
        SourceError: if transformers wouldn't load it, or it isn't there.
    """
    file = config.get(NAMED)
    if file is None:
        return None
    if not isinstance(file, str) or not file.endswith((".safetensors", ".safetensors.index.json")) or file not in names:
        what = f"{model}: its config.json has {NAMED} {file!r}, and no such safetensors file is in its folder"
        raise error("source.incomplete", where, what, f"Take {NAMED} out of config.json, or put the file there.")
    return _index(file, folder, where, model) if file.endswith(".json") else Chosen([file], frozenset())


def _usual(names: set[str], folder: Path, where: str, model: str) -> Chosen | None:
    """Give the files with the usual names; None if there are none.

    Raises:
        SourceError: if the index is no use, or some of the shards are missing.
    """
    problems: list[LazyMoEError] = []
    for single in SINGLE:
        if single in names:
            return Chosen([single], frozenset())
        if f"{single}.index.json" in names:
            return _index(f"{single}.index.json", folder, where, model)
        try:
            if shards := _shards(names, Path(single), where, model):
                return Chosen(shards, frozenset())
        except LazyMoEError as e:
            problems.append(e)
    if problems:
        raise problems[0]
    return None


def _index(index: str, folder: Path, where: str, model: str) -> Chosen:
    """Read an index.

    Raises:
        SourceError: if it can't be read, or names files elsewhere.
    """
    weight_map = read_json(folder / index, where).get("weight_map")
    files: list[Any] = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not files or not all(isinstance(file, str) and Path(file).name == file and file.strip(".") for file in files):
        what = f"{model}: {index} has no usable weight_map"
        raise error("source.incomplete", where, what, "Download it again.")
    return Chosen(sorted(set(files)), frozenset(weight_map or ()))


def _shards(names: set[str], single: Path, where: str, model: str) -> list[str]:
    """Give the shards of a set that is whole; empty if there are no shards at all.

    Args:
        single: the name of what they are the shards of.

    Raises:
        SourceError: if none of the sets is whole, or more than one is.
    """
    sets: dict[int, set[str]] = {}
    for name in names:
        if (match := SHARD.fullmatch(name)) and (match[1], match[4]) == (single.stem, single.suffix):
            sets.setdefault(int(match[3]), set()).add(name)
    wanted = {n: [f"{single.stem}-{i:05}-of-{n:05}{single.suffix}" for i in range(1, n + 1)] for n in sorted(sets)}
    whole = [shards for n, shards in wanted.items() if sets[n] == set(shards)]
    if len(whole) > 1:
        what = f"{model} has no index, and two sets of shards that are whole: {whole[0][0]} and {whole[1][0]}"
        raise error("source.ambiguous", where, what, "Remove the shards of one of them.")
    if sets and not whole:
        n = max(sets, key=lambda n: len(sets[n]))
        lost = [name for name in wanted[n] if name not in sets[n]]
        more = f" and {len(lost) - 1} more of its {n} shards" if len(lost) > 1 else f", one of its {n} shards"
        raise error("source.incomplete", where, f"{model} lacks the file {lost[0]}{more}", "Download it again, whole.")
    return whole[0] if whole else []


def _nothing(names: set[str], where: str, model: str) -> LazyMoEError:
    """Make the exception for a model that has no weights which transformers would load."""
    if ADAPTER in names:
        what = f"{model} is an adapter, not a whole model"
        return error("source.incomplete", where, what, f"Name it after the model that it belongs to: MODEL+{model}")
    what = f"{model} has no model.safetensors and no model.safetensors.index.json"
    others = sorted(name for name in names if name.endswith(".safetensors"))
    if others:
        what += f", only {others[0]}{f' and {len(others) - 1} more' if len(others) > 1 else ''}"
    remedy = "Name a model whose weights are safetensors, unquantized."
    if len(others) == 1:
        remedy = "If that file is the whole model, rename it to model.safetensors; else name another model."
    return error("source.incomplete", where, what, remedy)
