"""From a recipe to a checkpoint: prepare, check, download, compute, write, verify.

Running the same merge again goes on from where it stopped and gives the same bytes; `output.folder` says what keeps the
half-made from being taken for a model.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lazymoe.checkpoint.opening import open_folder
from lazymoe.checkpoint.source import TOKENIZER_FILES
from lazymoe.computing.compute import compute, degenerate
from lazymoe.data import folder as data
from lazymoe.errors import LazyMoEError, Problem, error, failure
from lazymoe.files import absolute, shown, write_whole
from lazymoe.forward.device import pick_device
from lazymoe.output.folder import CONFIG, GENERATION, INDEX, RECIPE, RECORD, WORK
from lazymoe.output.shards import write_shards
from lazymoe.planning.checking import judge
from lazymoe.planning.plan import Plan
from lazymoe.planning.prepared import SHARD_SIZE, Prepared, prepare
from lazymoe.progress import Progress, silent
from lazymoe.recipe.schema import PROMPTED, Recipe
from lazymoe.units import billions
from lazymoe.version import __version__

EXTRA_4, EXTRA_5 = "additional_special_tokens", "extra_special_tokens"  # what both versions read, and what 5 writes
BEGINNERS = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer")
FULL = (errno.ENOSPC, errno.EDQUOT)  # what the kernel says of a full disk


@dataclass(frozen=True)
class Merged:
    """A finished merge.

    Attributes:
        folder: where the mixture is, absolute.
        plan: what it was made by.
        warnings: what a user should know about it.
    """

    folder: Path
    plan: Plan
    warnings: tuple[Problem, ...]

    def to_dict(self) -> dict[str, Any]:
        """Give its fields by name, for programs: figures in bytes or numbers of parameters."""
        warnings = [problem.to_dict() for problem in self.warnings]
        return {"folder": str(self.folder), **self.plan.to_dict(), "warnings": warnings}

    def __str__(self) -> str:
        plan = self.plan
        return (
            f"{shown(self.folder)} holds a {plan.architecture} with {plan.experts} experts, "
            f"{plan.top_k} of them for each token.\n"
            f"It has {billions(plan.parameters)} parameters, {billions(plan.active_parameters)} active per token; "
            "every tensor was checked against the plan."
        )


def merge(
    recipe: Recipe | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    shard_size: int = SHARD_SIZE,
    allow_pickle: bool = False,
    device: str | None = None,
    progress: Progress = silent,
) -> Merged:
    """Make the mixture of experts that a recipe describes.

    Args:
        recipe: what is wanted: a recipe, its file, or the name of a ready-made one.
        folder: for the mixture: a new or empty one, or one where the same merge was interrupted.
        seed: of random routers and of the experts' noise.
        shard_size: the most bytes of tensors in one file.
        allow_pickle: also take ``.bin`` weights.
        device: where routers and shared weights are computed, as torch names it; a CUDA device if there is one by
            default.
        progress: called with (stage, done, total); stages are ``share`` and ``route`` (layers) and ``write`` (bytes).

    Returns:
        What was made, where, and what a user should know about it.

    Raises:
        LazyMoEError: with everything that is wrong, as the subclass of its kind if it is of one; nothing was written
            then. If the disk fills up or the merge is interrupted, complete files stay for a rerun to go on from.

    Example:
        >>> merge("recipe.yaml", "my-moe").plan.parameters  # doctest: +SKIP
    """
    prepared = prepare(recipe, shard_size=shard_size, allow_pickle=allow_pickle)
    return carry_out(prepared, absolute(folder), seed=seed, device=device, progress=progress)


def carry_out(
    prepared: Prepared, folder: Path, *, seed: int = 0, device: str | None = None, progress: Progress = silent
) -> Merged:
    """Make the mixture of a prepared recipe.

    Args:
        prepared: the recipe.
        folder: as `merge` has it, absolute.
        seed, device, progress: as in `merge`.

    Raises:
        LazyMoEError: as `merge`.
    """
    if device:
        pick_device(device)  # before the downloads, if it isn't there
    found = judge(prepared, folder)
    if found.errors:
        raise failure(found.errors)
    plan = prepared.sound_plan
    fingerprint = plan.fingerprint(recipe=prepared.prompts.model_dump(), seed=seed)
    if _is_done(folder, fingerprint):
        return Merged(folder, plan, found.warnings)

    prepared.fetch()
    work = _claim(folder, fingerprint, plan)
    try:
        doubts: list[Problem] = []
        if prepared.recipe.gate_mode in PROMPTED or plan.shared == "regmean":
            from lazymoe.forward.tokens import doubtful_prompts

            doubts += doubtful_prompts(prepared, plan)
        computed = compute(prepared, plan, work, seed, device, progress)
        write_shards(plan, computed, folder, work, seed, progress)
        _finish(prepared, plan, folder, fingerprint, seed)
        _verify(plan, folder)
    except LazyMoEError:
        _discard(plan, folder)
        raise
    except OSError as e:
        again = "run the same command again: it goes on from the last complete file."
        if e.errno in FULL:
            raise error("output.full", folder, f"writing failed: {e.strerror}", f"Make room and {again}") from None
        what = f"the merge stopped: {e.strerror or e}"
        raise error("output.failed", e.filename or folder, what, f"Mend that and {again}") from None
    warnings = (*found.warnings, *doubts, *degenerate(plan, work))
    shutil.rmtree(work)
    return Merged(folder, plan, warnings)


def _is_done(folder: Path, fingerprint: str) -> bool:
    """Tell whether this very merge has been finished here.

    Raises:
        OutputError: if the folder holds anything but this merge, finished or not.
    """
    if folder.exists() and not folder.is_dir():
        raise error("output.taken", folder, "this is a file", "Name another output folder.")
    names = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    if names <= {WORK} and not (folder / WORK / RECORD).exists():
        return False
    for record in (folder / WORK / RECORD, folder / RECORD):
        if record.exists():
            try:
                if json.loads(record.read_text())["fingerprint"] == fingerprint:
                    return record.parent == folder
            except (ValueError, KeyError, TypeError):
                pass
            remedy = "Name another output folder, or delete this one."
            raise error("output.taken", folder, "this folder holds another merge", remedy)
    what = "this folder isn't empty, and what is in it isn't this merge"
    raise error("output.taken", folder, what, "Name another output folder.")


def _claim(folder: Path, fingerprint: str, plan: Plan) -> Path:
    """Mark the folder as this merge's, and give the folder for what is half-made.

    Raises:
        SourceError: if a source was changed since the merge began here.
        OutputError: if nothing can be written.
    """
    work = folder / WORK
    stamps = {str(s.folder / f): (s.folder / f).stat().st_mtime_ns for s in plan.sources for f in s.weights}
    try:
        work.mkdir(parents=True, exist_ok=True)
        if (work / RECORD).exists():
            changed = [f for f, t in json.loads((work / RECORD).read_text())["stamps"].items() if stamps.get(f) != t]
            if changed:
                what = f"this file has changed since the merge into {folder} began"
                raise error("source.changed", changed[0], what, f"Delete {folder} and start anew.")
        else:
            write_whole(work / RECORD, json.dumps({"fingerprint": fingerprint, "stamps": stamps}))
    except OSError as e:
        what = f"this folder can't be written: {e.strerror}"
        raise error("output.unwritable", folder, what, "Name another output folder.") from None
    return work


def _finish(prepared: Prepared, plan: Plan, folder: Path, fingerprint: str, seed: int) -> None:
    """Write the small files, config.json and the index last: only they make the folder a model."""
    base, recipe = plan.sources[0], prepared.recipe
    for name in base.files(TOKENIZER_FILES):
        content = (base.folder / name).read_bytes()
        if name == "tokenizer_config.json":
            content = _for_transformers_4(_without_code(content, bool(plan.host.code)), base.json("tokenizer.json"))
        write_whole(folder / name, content)
    generation = base.folder / GENERATION
    ids = {key: plan.config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in plan.config}
    write_whole(folder / GENERATION, generation.read_bytes() if generation.exists() else _dump(ids))

    if plan.host.code:
        write_whole(folder / plan.host.code, (data("templates") / plan.host.code).read_bytes())
    pinned = [source.pinned for source in plan.sources]
    experts = [e.model_copy(update={"source_model": p}) for e, p in zip(recipe.every_expert, pinned[1:], strict=True)]
    write_whole(folder / RECIPE, recipe.with_experts(experts).with_fields(base_model=pinned[0]).to_yaml())
    write_whole(folder / RECORD, _dump(_record(prepared, plan, fingerprint, seed)))

    weight_map = {o.name: file for file, outputs in plan.shards for o in outputs}
    metadata = {"total_size": plan.nbytes, "total_parameters": plan.parameters}
    write_whole(folder / INDEX, _dump({"metadata": metadata, "weight_map": weight_map}))
    write_whole(folder / CONFIG, _dump(plan.config))


def _record(prepared: Prepared, plan: Plan, fingerprint: str, seed: int) -> dict[str, Any]:
    """Gather what a finished mixture says of itself, for its card, for a report and for a rerun."""
    return {
        "fingerprint": fingerprint,
        "versions": {"LazyMoE": __version__} | {name: version(name) for name in ("torch", "transformers")},
        "seed": seed,
        "shard_size": plan.shard_size,
        "allow_pickle": prepared.allow_pickle,
        "shared_weights": plan.shared,
        "experts_per_token": plan.top_k,
        "parameters": plan.parameters,
        "active_parameters": plan.active_parameters,
        "bytes": plan.nbytes,
        "bytes_16bit": plan.bytes_16bit,
        "bytes_4bit": plan.bytes_4bit,
        "sources": [{"license": source.license, "languages": source.languages} for source in plan.sources],
    }


def _without_code(tokenizer_config: bytes, named: bool) -> bytes:
    """Make a tokenizer_config.json lead to no code but transformers' own; give it as it is if it did so already.

    Args:
        tokenizer_config: the base model's.
        named: whether it must name its class, since config.json leads to code of a model, which transformers would
            otherwise ask for the class.
    """
    try:
        fields = json.loads(tokenizer_config)
    except (ValueError, RecursionError):
        return tokenizer_config  # no program can read it
    if not isinstance(fields, dict) or not ("auto_map" in fields or (named and not fields.get("tokenizer_class"))):
        return tokenizer_config
    fields.pop("auto_map", None)
    return _dump(({"tokenizer_class": "PreTrainedTokenizerFast"} if named else {}) | fields).encode()


def _for_transformers_4(tokenizer_config: bytes, tokenizer: dict[str, Any]) -> bytes:
    """Put a tokenizer_config.json of transformers 5 into words that transformers 4 knows as well: its general class,
    which by default makes token_type_ids, and these no decoder takes; and a list of further special tokens. Any other
    is returned as it is.

    Args:
        tokenizer_config: the base model's.
        tokenizer: its tokenizer.json; empty if it has none.
    """
    known = rb'\1"PreTrainedTokenizerFast"'
    if b'"model_input_names"' not in tokenizer_config:
        known += b',\n  "model_input_names": ["input_ids", "attention_mask"]'
    if _begins_otherwise(tokenizer_config, tokenizer):
        tokenizer_config = re.sub(rb'("tokenizer_class":\s*)"\w+"', rb'\1"TokenizersBackend"', tokenizer_config)
    tokenizer_config = re.sub(rb'("tokenizer_class":\s*)"TokenizersBackend"', known, tokenizer_config)
    fields = _fields(tokenizer_config)
    if not isinstance(extra := fields.get(EXTRA_5), list):
        return tokenizer_config
    before = fields.get(EXTRA_4)
    every = extra + [token for token in (before if isinstance(before, list) else []) if token not in extra]
    return _dump(
        {key: value for key, value in fields.items() if key not in (EXTRA_4, EXTRA_5)} | {EXTRA_4: every}
    ).encode()


def _begins_otherwise(tokenizer_config: bytes, tokenizer: dict[str, Any]) -> bool:
    """Tell whether transformers 4 would put other tokens around a text than the tokenizer.json of transformers 5 says.

    Some of its classes add a begin-of-text token, unless a field says otherwise that transformers 5 doesn't write.
    """
    fields = _fields(tokenizer_config)
    kind = str(fields.get("tokenizer_class")).removesuffix("Fast")
    if not tokenizer or "backend" not in fields or "add_bos_token" in fields or kind not in BEGINNERS:
        return False
    whole = tokenizer.get("post_processor")
    parts = whole.get("processors", [whole]) if isinstance(whole, dict) else []
    templates = [p["single"] for p in parts if isinstance(p, dict) and "single" in p] if isinstance(parts, list) else []
    pieces = [piece for template in templates if isinstance(template, list) for piece in template]
    return [list(piece) for piece in pieces if isinstance(piece, dict)] != [["SpecialToken"], ["Sequence"]]


def _fields(content: bytes) -> dict[str, Any]:
    """Read a JSON object; empty if it is anything else."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _verify(plan: Plan, folder: Path) -> None:
    """Read the output back, as anyone's checkpoint, and hold it against the plan.

    Raises:
        OutputError: if they differ.
    """
    found = {t.name: (t.dtype, t.shape) for t in open_folder(folder).tensors.values()}
    if found != {o.name: (o.dtype, o.shape) for o in plan.outputs}:
        what = "what was written isn't what was planned"
        raise error("output.damaged", folder, what, "Please report this as a bug of LazyMoE.")


def _discard(plan: Plan, folder: Path) -> None:
    """Remove what this merge wrote, and nothing else."""
    shutil.rmtree(folder / WORK, ignore_errors=True)
    for name, _ in plan.shards:
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _dump(fields: Any) -> str:
    return json.dumps(fields, indent=2) + "\n"
