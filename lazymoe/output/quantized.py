"""A folder of GGUF files: the mixture that they are of, which of them are whole, and what was measured of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lazymoe.errors import error
from lazymoe.files import readable, write_whole
from lazymoe.output.folder import RECIPE, WORK, Finished, Record, open_finished
from lazymoe.quantizing.file_types import FILE_TYPES
from lazymoe.recipe.schema import Recipe

GGUF = "gguf.json"  # what such a folder says of the mixture
QUALITY = "quality.json"
ENDING = "-GGUF"  # of the names of folders and repositories of GGUF files
MATRIX = ".imatrix.gguf"  # ends the name of an importance matrix
NAMED = re.compile(r"(?P<name>.+)-(?P<kind>[A-Z0-9_]+?)(-[0-9]{5}-of-(?P<shards>[0-9]{5}))?\.gguf")
AGAIN = "Write the GGUF files again: what is whole is left alone."
KV_BYTES = 2  # of an element of what attention keeps of a token
Figure = Annotated[float, Field(allow_inf_nan=False)]


class Listed(BaseModel):
    """The files of one type, by name, and their bytes together."""

    model_config = ConfigDict(strict=True, frozen=True)

    names: list[str]
    nbytes: int


class About(BaseModel):
    """What `GGUF` holds: a mixture's record, config.json, whether it chats, and on the Hub the files by type."""

    model_config = ConfigDict(strict=True, frozen=True)

    record: Record
    config: dict[str, Any]
    chats: bool
    files: dict[str, Listed] = {}


class Measured(BaseModel):
    """What was measured of the files of one type.

    Attributes:
        losses: mean loss per token of each domain, nats ``[D]``.
        apart: how far the log-probabilities of the texts' tokens are from those of the mixture in 16 bit, mean, nats;
            None if that wasn't there to measure.
        same: for what part of the tokens it would have chosen the same one.
        stamps: tell the files from others.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    losses: list[Figure]
    apart: Figure | None
    same: Figure | None
    stamps: list[str]


class Quality(BaseModel):
    """What was measured of GGUF files, in D domains.

    Attributes:
        names: of the experts, whose domains these are.
        held_out: whether the texts were given for measuring; otherwise they are the experts' own prompts.
        texts: tells these texts from others.
        exact: losses of the mixture in 16 bit ``[D]``, if it was there to measure.
        types: what was measured of each, the largest first.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    names: list[str]
    held_out: bool
    texts: str
    exact: list[Figure] | None
    types: dict[str, Measured]

    def to_dict(self) -> dict[str, Any]:
        """Give its fields by name, for programs, and for JSON."""
        return self.model_dump()

    def __str__(self) -> str:
        """Write out a table: the losses of each type, and how far it is from 16 bit."""
        text = "held-out text" if self.held_out else "the experts' own prompts (give --texts for an honest figure)"
        wide = max(12, *(len(name) + 2 for name in self.names))

        def row(name: str, *cells: str) -> str:
            return f"{name:<10}" + "".join(f"{cell:>{wide}}" for cell in cells)

        def figures(losses: list[float]) -> list[str]:
            mean = sum(losses) / len(losses)
            return [f"{x:.3f}" for x in [*losses, mean]] + [f"{math.exp(mean):.2f}"]

        lines = [f"Loss on {text}, by llama.cpp; lower is better:", ""]
        lines.append(row("", *self.names, "mean", "perplexity", *(["apart", "same"] if self.exact else [])))
        lines += [row("16 bit", *figures(self.exact))] if self.exact else []
        for kind, found in self.types.items():
            far = [f"{found.apart:.3f}", f"{found.same:.1%}"] if found.apart is not None else []
            lines.append(row(kind, *figures(found.losses), *far))
        if self.exact:
            lines += [
                "",
                "apart: of log-probabilities from 16 bit, mean; same: tokens for which it would choose as 16 bit does.",
            ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Quantized:
    """A folder of GGUF files.

    Attributes:
        mixture: what its own folder said of the mixture; as its `folder`, this one.
        files: those that are whole, by type, the largest type first.
        matrix: the importance matrix that lies beside them, if there is one.
        quality: what was measured of these very files; None if nothing was.
    """

    mixture: Finished
    files: dict[str, list[Path]]
    matrix: Path | None
    quality: Quality | None

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self.mixture.folder

    def stamps(self, kind: str) -> list[str]:
        """Give what tells the files of a type from those that were or will be in their place.

        Args:
            kind: the type.
        """
        return [str(_noted(path)) for path in self.files[kind]]

    @property
    def listed(self) -> dict[str, Listed]:
        """Its files by type, for a card."""
        return {
            kind: Listed(names=[path.name for path in files], nbytes=sum(path.stat().st_size for path in files))
            for kind, files in self.files.items()
        }

    @property
    def about(self) -> About:
        """What a repository of them says of the mixture and of them."""
        mixture = self.mixture
        return About(record=mixture.record, config=mixture.config, chats=mixture.chats, files=self.listed)


def kept_bytes(config: dict[str, Any], context: int) -> int:
    """Count the bytes of what attention keeps of a text, in 16 bit.

    Args:
        config: the mixture's config.json.
        context: tokens of the text.
    """
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    kinds = config.get("layer_types") or ["full_attention"] * config["num_hidden_layers"]
    layers = sum(kind in ("full_attention", "sliding_attention", "attention") for kind in kinds)
    return int(layers * context * 2 * config["num_key_value_heads"] * head * KV_BYTES)


def describe(
    folder: Path, recipe: Recipe, texts: Mapping[str, bytes], record: Record, config: dict[str, Any], chats: bool
) -> None:
    """Say in a folder of GGUF files what mixture they are of, for its card.

    Args:
        folder: the folder.
        recipe: with revisions pinned to commits.
        texts: the files beside it, name to contents.
        record: of the merge.
        config: the mixture's config.json.
        chats: whether its tokenizer has a chat template.
    """
    about = About(record=record, config=config, chats=chats)
    for name, content in texts.items():
        write_whole(folder / name, content)
    write_whole(folder / RECIPE, recipe.to_yaml())
    write_whole(folder / GGUF, json.dumps(about.model_dump(), indent=2) + "\n")


def is_quantized(folder: Path) -> bool:
    """Tell whether a folder holds GGUF files of a mixture.

    Args:
        folder: the folder.
    """
    return (folder / GGUF).is_file() and (folder / RECIPE).is_file()


def open_quantized(folder: Path) -> Quantized:
    """Read what a folder of GGUF files says, and look which of them are whole.

    Args:
        folder: the folder, absolute.

    Raises:
        OutputError: if it isn't one, or its files can't be read.
        RecipeError: if the recipe in it can't be read.
    """
    if not is_quantized(folder):
        what = "this isn't a folder of GGUF files that LazyMoE made"
        raise error("output.unfinished", folder, what, "Name one that 'lazymoe gguf' has completed.")
    try:
        about = About.model_validate(readable(folder / GGUF))
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        what = f"its {GGUF} isn't as LazyMoE wrote it ({place}: {first['msg']})"
        raise error("output.damaged", folder, what, AGAIN) from None
    recipe = Recipe.from_file(folder / RECIPE)
    if len(about.record.sources) != len(recipe.models):
        what = f"its {GGUF} tells of {len(about.record.sources)} models, its {RECIPE} of {len(recipe.models)}"
        raise error("output.damaged", folder, what, AGAIN)
    mixture = Finished(folder, recipe, about.record, about.config, {}, {}, about.chats)
    files = _whole(folder)
    matrix = next((path for path in sorted(folder.glob(f"*{MATRIX}")) if _noted(path)), None)
    found = Quantized(mixture, files, matrix, None)
    return replace(found, quality=_measured(found, len(recipe.experts)))


def open_either(folder: Path) -> Finished:
    """Read what a folder says of its mixture, which is there in 16 bit or as GGUF.

    Args:
        folder: the folder, absolute.

    Raises:
        LazyMoEError: as `open_finished` and `open_quantized`.
    """
    return open_quantized(folder).mixture if is_quantized(folder) else open_finished(folder)


def joined(quality: Quality | None, before: Mapping[str, Any], files: Mapping[str, list[str] | None]) -> Quality | None:
    """Join what was measured of GGUF files, and of others before, if that was on the same texts.

    Args:
        quality: what was measured now; None if nothing was.
        before: what a `QUALITY` file says.
        files: the types, in the order in which they are to stand, each with what tells its files from others; None
            for one that isn't here.
    """
    try:
        other = Quality.model_validate(before)
    except ValidationError:
        return quality
    others = {k: of for k, of in other.types.items() if k in files and files[k] in (None, of.stamps)}
    if quality is None:
        types, quality = others, other
    elif (quality.texts, quality.held_out, quality.exact is None) == (other.texts, other.held_out, other.exact is None):
        types = others | quality.types
    else:
        types = quality.types
    ordered = {kind: types[kind] for kind in files if kind in types}
    return quality.model_copy(update={"types": ordered}) if ordered else None


def _whole(folder: Path) -> dict[str, list[Path]]:
    """List the files that are whole, by type; of those by several names the newest."""
    found: dict[tuple[str, str, int], list[Path]] = {}  # by type, name and how many there should be
    for path in sorted(folder.glob("*.gguf"), key=lambda path: (path.stat().st_mtime_ns, path.name)):
        named = NAMED.fullmatch(path.name)
        if named and named["kind"] in FILE_TYPES and _noted(path):
            found.setdefault((named["kind"], named["name"], int(named["shards"] or 1)), []).append(path)
    whole = {kind: sorted(files) for (kind, _, shards), files in found.items() if len(files) == shards}
    return dict(sorted(whole.items(), key=lambda item: -sum(path.stat().st_size for path in item[1])))


def _noted(path: Path) -> str | None:
    """Give what tells a file from others, if it is as long as it was when it was finished."""
    is_long_enough = seal_when_made(path).startswith(f"{path.stat().st_size} ")
    return _note(path).get("whole") if is_long_enough else None


def seal_when_made(path: Path) -> str:
    """Give the seal that a file had when it was finished; nothing if it never was.

    Args:
        path: of the file.
    """
    return str(_note(path).get("seal", ""))


def _note(path: Path) -> dict[str, Any]:
    return readable(path.parent / WORK / f"{path.name}.json")


def _measured(quantized: Quantized, experts: int) -> Quality | None:
    """Read what was measured of the files of a folder; None if that is nothing, or if it can't be read."""
    try:
        found = Quality.model_validate(readable(quantized.folder / QUALITY))
    except ValidationError:
        return None
    losses = [*([found.exact] if found.exact else []), *(of.losses for of in found.types.values())]
    if len(found.names) != experts or any(len(row) != experts for row in losses):
        return None
    return joined(None, found.to_dict(), {kind: quantized.stamps(kind) for kind in quantized.files})
