"""A mixture's folder: the names of its files, what makes it finished, and what it says of itself.

Everything half-made lies in ``.lazymoe`` or lacks a config.json, so it can't be taken for a model.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from lazymoe.architectures.records import Host
from lazymoe.architectures.registry import host_of
from lazymoe.architectures.values import unusable_rope
from lazymoe.checkpoint.safetensors import open_file
from lazymoe.checkpoint.source import CARD as CARD
from lazymoe.checkpoint.source import GENERATION, TOKENIZER_FILES
from lazymoe.checkpoint.tensors import TensorInfo
from lazymoe.data import folder as data
from lazymoe.errors import LazyMoEError, error
from lazymoe.files import is_sealed, readable, shown
from lazymoe.output.measured import Count, Read, Text, sound_evaluation, sound_report
from lazymoe.planning.plan import SHARD_SIZE
from lazymoe.planning.plan import WORK as WORK
from lazymoe.planning.prepared import Prepared, Where, prepare
from lazymoe.recipe.beside import files_beside
from lazymoe.recipe.reference import HUB_ID
from lazymoe.recipe.schema import Recipe, SharedWeights

RECORD = "lazymoe.json"  # what a complete output says of itself
RECIPE = "recipe.yaml"
TEXTS = "prompts-*.jsonl"  # beside it, if it was given files of prompts
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = "model-*.safetensors"
SHARD = re.compile(r"model-[0-9]{5}-of-[0-9]{5}\.safetensors")
TOKENIZER_CONFIG = "tokenizer_config.json"
REPORT = "report.json"
EVALUATION = "evaluation.json"
PICTURE = "routing.png"
PICTURES = {PICTURE: False, "routing-dark.png": True}  # name to whether it is for a dark page
SMALL = (CONFIG, GENERATION, INDEX, *TOKENIZER_FILES, RECIPE, RECORD)  # that is published, and the code of some hosts
AGAIN = "Delete it, and merge again."


class SourceRecord(Read):
    """What a mixture keeps of one of its models: what its card states, and what tells its files from later ones."""

    license: Text | None
    languages: list[Text]
    stamps: dict[Text, Text] = Field(default_factory=dict)


class Record(Read):
    """What a finished mixture says of itself in lazymoe.json, for its card, for a report and for a rerun.

    Attributes:
        fingerprint: of what was merged.
        versions: of the programs that made it, by name.
        seed, shard_size, allow_pickle: as they were given.
        shared_weights: where attention, norms and embeddings came from.
        experts_per_token: top-k.
        parameters, active_parameters: how many.
        bytes: of its weights' files; bytes_16bit and bytes_4bit of memory to run it.
        sources: of each model, in the order of `Recipe.models`.
        files: the seal of each other file that the merge wrote, by name.
    """

    fingerprint: Text
    versions: dict[Text, Text]
    seed: int
    shard_size: Annotated[int, Field(ge=1)] | None = None
    allow_pickle: bool = False
    shared_weights: SharedWeights
    experts_per_token: Count
    parameters: Count
    active_parameters: Count
    bytes: Count
    bytes_16bit: Count
    bytes_4bit: Count
    sources: list[SourceRecord]
    files: dict[Text, Text] = Field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """What a finished mixture's folder says of it.

    Attributes:
        folder: where it is.
        recipe: with revisions pinned to commits.
        record: of the merge: versions, seed, sizes, the sources' licences.
        config: its config.json.
        report: its report.json; empty if it wasn't measured, or if that can't be read.
        evaluation: its evaluation.json; empty likewise, or if it is another mixture's.
        chats: whether its tokenizer has a chat template.
    """

    folder: Path
    recipe: Recipe
    record: Record
    config: dict[str, Any]
    report: dict[str, Any]
    evaluation: dict[str, Any]
    chats: bool

    @property
    def host(self) -> Host:
        """The record of its architecture.

        Raises:
            OutputError: if it is none of LazyMoE's, or its config.json can't be meant.
        """
        named, host = self.config.get("model_type"), host_of(self.config)
        if host is None:
            says = f"says '{named}', which LazyMoE doesn't make" if isinstance(named, str) else "names no model_type"
            raise error("output.damaged", self.folder, f"its config.json {says}", AGAIN)
        if odd := unusable_rope(self.config):
            raise error("output.damaged", self.folder, f"its config.json has no usable {odd}", AGAIN)
        return host

    @property
    def carried(self) -> list[str]:
        """Names of the files of texts that lie beside its recipe."""
        return [name for name in files_beside(self.recipe) if (self.folder / name).exists()]

    @property
    def texts(self) -> dict[str, bytes]:
        """These files, name to contents.

        Raises:
            OutputError: if one can't be read.
        """
        try:
            return {name: (self.folder / name).read_bytes() for name in self.carried}
        except OSError as e:
            raise error("output.damaged", self.folder, f"its prompts can't be read ({e.strerror})", AGAIN) from None

    @property
    def weights(self) -> list[Path]:
        """The files of weights that its index names.

        Raises:
            OutputError: if it can't be read, names anything but files of weights in this folder, or one isn't there.
        """
        weights = [self.folder / name for name in sorted(set(self.weight_map.values()))]
        if lost := [path.name for path in weights if not path.is_file()]:
            raise error("output.damaged", self.folder, f"it lacks {lost[0]}", AGAIN)
        return weights

    @property
    def weight_map(self) -> dict[str, str]:
        """The names of its tensors, each with the name of its file.

        Raises:
            OutputError: if its index can't be read, or names anything but files of weights in this folder.
        """
        found = _object(self.folder, INDEX).get("weight_map")
        if not isinstance(found, dict) or not found:
            raise error("output.damaged", self.folder, f"its {INDEX} names no weights", AGAIN)
        for file in found.values():
            if not isinstance(file, str) or not SHARD.fullmatch(file):
                named = f"'{file}'" if isinstance(file, str) else "something"
                what = f"its {INDEX} names {named}, which can't be a file of its weights"
                raise error("output.damaged", self.folder, what, AGAIN)
        return found

    @property
    def small(self) -> list[Path]:
        """Its other files, those that a model on the Hub has, by a fixed list.

        Raises:
            OutputError: if its architecture is none of LazyMoE's, or something else is in place of such a file.
        """
        names = (*SMALL, *filter(None, [self.host.code]), *((REPORT, *PICTURES) if self.report else ()))
        names += (EVALUATION,) if self.evaluation else ()
        names += tuple(files_beside(self.recipe))
        there = dict.fromkeys(p for name in names for p in sorted(self.folder.glob(name)))
        if wrong := [p.name for p in there if not p.is_file() and not p.is_symlink()]:
            raise error("output.damaged", self.folder, f"{wrong[0]} isn't a file", AGAIN)
        return list(there)


def is_finished(folder: Path) -> bool:
    """Tell whether a folder holds a finished mixture.

    Args:
        folder: the folder.
    """
    return all((folder / name).is_file() for name in (RECORD, RECIPE, CONFIG))


def open_finished(folder: Path) -> Finished:
    """Read what a finished mixture says of itself.

    Args:
        folder: the mixture's, absolute.

    Raises:
        OutputError: if the folder isn't one, or its files can't be read.
        RecipeError: if the recipe in it can't be read.
    """
    if not is_finished(folder):
        remedy, name = "Name a folder that 'lazymoe merge' has completed", shown(folder).as_posix()
        if not folder.exists() and "/" in name and HUB_ID.fullmatch(name):
            remedy += f"; one on the Hub comes here by: hf download {name} --local-dir {folder.name}"
        raise error("output.unfinished", folder, "this isn't a finished mixture", f"{remedy}.")
    record, recipe, config = read_record(folder), Recipe.from_file(folder / RECIPE), _object(folder, CONFIG)
    if len(record.sources) != len(recipe.models):
        what = f"its {RECORD} tells of {len(record.sources)} models, its {RECIPE} of {len(recipe.models)}"
        raise error("output.damaged", folder, what, AGAIN)
    tokenizer = _object(folder, TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
    chats = (folder / "chat_template.jinja").is_file() or bool(tokenizer.get("chat_template"))
    report = sound_report(read_report(folder), len(recipe.experts))
    evaluation = sound_evaluation(readable(folder / EVALUATION), record.fingerprint)
    return Finished(folder, recipe, record, config, report, evaluation, chats)


def reopen(folder: Path, source: Where = "auto") -> Prepared:
    """Prepare the recipe of a finished mixture as it was for the merge.

    Args:
        folder: the mixture's, absolute.
        source: where the weights of models on the Hub are read, as `prepare` has it.

    Raises:
        OutputError: if the folder isn't such a mixture.
        RecipeError: if the recipe in it can't be read.
    """
    done = open_finished(folder)
    shard_size = done.record.shard_size or SHARD_SIZE
    return prepare(done.recipe, shard_size=shard_size, allow_pickle=done.record.allow_pickle, source=source)


def _object(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON file of a mixture.

    Raises:
        OutputError: if it can't be read, or holds no object.
    """
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is too deep" if isinstance(e, RecursionError) else e
        raise error("output.damaged", folder, f"its {name} can't be read ({reason})", AGAIN) from None
    if not isinstance(found, dict):
        raise error("output.damaged", folder, f"its {name} isn't a JSON object", AGAIN)
    return found


def read_record(folder: Path) -> Record:
    """Read what a mixture says of itself.

    Args:
        folder: the mixture's.

    Raises:
        OutputError: if it can't be read, or isn't what LazyMoE wrote.
    """
    try:
        return Record.model_validate(_object(folder, RECORD))
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        what = f"its {RECORD} isn't as LazyMoE wrote it ({place}: {first['msg']})"
        raise error("output.damaged", folder, what, AGAIN) from None


def is_unchanged(weights: Path, kept: str | None) -> bool:
    """Tell whether a file of weights is as the merge wrote it; read only if it was changed after the record was.

    Args:
        weights: the file, in a finished mixture's folder.
        kept: its seal in the record; None in one of an older version, which is believed.
    """
    with suppress(OSError):
        found, record = weights.stat(), (weights.parent / RECORD).stat()
        if kept is None or (kept.startswith(f"{found.st_size} ") and found.st_mtime_ns <= record.st_mtime_ns):
            return True
    return is_sealed(weights, kept)


def open_weights(done: Finished, path: Path, remedy: str) -> dict[str, TensorInfo]:
    """Open a file of a mixture's weights, after a look at whether it is as the merge wrote it.

    Args:
        done: the mixture.
        path: of the file.
        remedy: what to do if it isn't.

    Returns:
        Its tensors by name.

    Raises:
        OutputError: if it can't be read, or isn't.
    """
    try:
        found = open_file(path)
    except (OSError, ValueError, LazyMoEError) as e:
        reason = e.strerror if isinstance(e, OSError) else e
        raise error("output.damaged", path, f"it can't be read ({reason})", remedy) from None
    if not is_unchanged(path, done.record.files.get(path.name)):
        raise error("output.damaged", path, "its bytes aren't those that the merge wrote", remedy)
    return found


def read_report(folder: Path) -> dict[str, Any]:
    """Read the report that lies beside a mixture; empty if there is none that can be read.

    Args:
        folder: the mixture's.
    """
    return readable(folder / REPORT)


def trusted(folder: Path) -> bool:
    """Tell whether the modelling code that a mixture's config.json names is LazyMoE's own, to the byte.

    Only then it may run.

    Args:
        folder: the mixture's.
    """
    try:
        config = _object(folder, CONFIG)
    except LazyMoEError:
        return False
    host, named = host_of(config), config.get("auto_map", {})
    if not host or not host.code or not isinstance(named, dict) or not (folder / host.code).is_file():
        return False
    own = [str(name).startswith(f"{Path(host.code).stem}.") for name in named.values()]
    return all(own) and (folder / host.code).read_bytes() == (data("templates") / host.code).read_bytes()


def check_code(done: Finished) -> None:
    """Check the modelling code of a mixture whose architecture comes with some.

    Args:
        done: the mixture.

    Raises:
        OutputError: if it isn't `trusted`.
    """
    if done.host.code and not trusted(done.folder):
        what = f"{done.host.code} is missing or isn't LazyMoE's own, or {CONFIG} names other code"
        raise error("output.damaged", done.folder, what, AGAIN)
