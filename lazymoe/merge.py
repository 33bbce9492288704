"""From a recipe to a checkpoint: check, download, route, write, verify.

Everything half-made lies in ``OUT/.lazymoe`` or lacks a config.json, so it can't be taken for a model; running the same
merge again goes on from there and gives the same bytes.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lazymoe.assets import folder as assets
from lazymoe.check import absolute, check
from lazymoe.errors import LazyMoEError, Problem, error
from lazymoe.plan import Plan
from lazymoe.progress import Progress, silent
from lazymoe.prompts import pin, read_prompts
from lazymoe.recipe import Recipe
from lazymoe.router import compute, degenerate
from lazymoe.source import TOKENIZER_FILES, fetch, open_source
from lazymoe.version import __version__
from lazymoe.write import write_shards, write_whole

WORK = ".lazymoe"  # folder in the output for what is half-made
RECORD = "lazymoe.json"  # what a complete output says of itself
RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class Merged:
    """A finished merge: the folder, the plan it was made by, and what a user should know about it."""

    folder: Path
    plan: Plan
    warnings: tuple[Problem, ...]


def merge(
    recipe: Recipe,
    out: str | Path,
    *,
    seed: int = 0,
    shard_size: int = 4_000_000_000,
    allow_pickle: bool = False,
    device: str | None = None,
    progress: Progress = silent,
) -> Merged:
    """Make the mixture of experts that a recipe describes.

    Args:
        recipe: what is wanted.
        out: a new or empty folder, or one where the same merge was interrupted.
        seed: of random routers and of the experts' noise.
        shard_size: the most bytes of tensors in one file.
        allow_pickle: also take ``.bin`` weights.
        device: where routers are computed; a CUDA device if there is one by default.
        progress: called with (stage, done, total); stages are ``share`` and ``route`` (layers) and ``write`` (bytes).

    Raises:
        LazyMoEError: with everything that is wrong; nothing was written then. If the disk fills up or the merge is
            interrupted, complete files stay for a rerun to go on from.

    Example:
        >>> merge(Recipe.from_yaml(Path("recipe.yaml")), "my-moe").plan.parameters  # doctest: +SKIP
    """
    out = absolute(out)
    found = check(recipe, out, shard_size=shard_size, allow_pickle=allow_pickle)
    if found.errors or found.plan is None:
        raise LazyMoEError(found.errors)
    plan, recipe = found.plan, pin(recipe)
    prompted = read_prompts(recipe)
    fingerprint = plan.fingerprint(recipe=prompted.model_dump(), seed=seed)
    if _is_done(out, fingerprint):
        return Merged(out, plan, found.warnings)

    for (where, _), source in zip(recipe.models(), plan.sources, strict=True):
        fetch(source, where)
    work = _claim(out, fingerprint, plan)
    try:
        computed = compute(prompted, plan, work, seed, device, progress)
        write_shards(plan, computed, out, work, seed, progress)
        _finish(recipe, plan, out, fingerprint, seed)
        _verify(plan, out)
    except LazyMoEError:
        _discard(plan, out)
        raise
    except OSError as e:
        again = "run the same command again: it goes on from the last complete file."
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise error(out, f"writing failed: {e.strerror}", f"Make room and {again}") from None
        raise error(e.filename or out, f"the merge stopped: {e.strerror or e}", f"Mend that and {again}") from None
    warnings = (*found.warnings, *degenerate(plan, work))
    shutil.rmtree(work)
    return Merged(out, plan, warnings)


def _is_done(out: Path, fingerprint: str) -> bool:
    """Has this very merge been finished here?

    Raises:
        LazyMoEError: if the folder holds anything but this merge, finished or not.
    """
    if out.exists() and not out.is_dir():
        raise error(out, "this is a file", "Name another output folder.")
    names = {p.name for p in out.iterdir()} if out.is_dir() else set()
    if names <= {WORK} and not (out / WORK / RECORD).exists():
        return False
    for record in (out / WORK / RECORD, out / RECORD):
        if record.exists():
            try:
                if json.loads(record.read_text())["fingerprint"] == fingerprint:
                    return record.parent == out
            except (ValueError, KeyError, TypeError):
                pass
            raise error(out, "this folder holds another merge", "Name another output folder, or delete this one.")
    raise error(out, "this folder isn't empty, and what is in it isn't this merge", "Name another output folder.")


def _claim(out: Path, fingerprint: str, plan: Plan) -> Path:
    """Mark the folder as this merge's; the folder for what is half-made.

    Raises:
        LazyMoEError: if a source was changed since the merge began here.
    """
    work = out / WORK
    stamps = {str(s.folder / f): (s.folder / f).stat().st_mtime_ns for s in plan.sources for f in s.weights}
    try:
        work.mkdir(parents=True, exist_ok=True)
        if (work / RECORD).exists():
            changed = [f for f, t in json.loads((work / RECORD).read_text())["stamps"].items() if stamps.get(f) != t]
            if changed:
                raise error(
                    changed[0],
                    f"this file has changed since the merge into {out} began",
                    f"Delete {out} and start anew.",
                )
        else:
            write_whole(work / RECORD, json.dumps({"fingerprint": fingerprint, "stamps": stamps}))
    except OSError as e:
        raise error(out, f"this folder can't be written: {e.strerror}", "Name another output folder.") from None
    return work


def _finish(recipe: Recipe, plan: Plan, out: Path, fingerprint: str, seed: int) -> None:
    """The small files, config.json and the index last: only they make the folder a model."""
    base = plan.sources[0]
    for name in base.files(TOKENIZER_FILES):
        data = (base.folder / name).read_bytes()
        if name == "tokenizer_config.json":
            data = _for_transformers_4(_without_code(data, bool(plan.family.code)))
        write_whole(out / name, data)
    generation = base.folder / "generation_config.json"
    ids = {key: plan.config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in plan.config}
    write_whole(out / "generation_config.json", generation.read_bytes() if generation.exists() else _dump(ids))

    if plan.family.code:
        write_whole(out / plan.family.code, (assets("templates") / plan.family.code).read_bytes())
    pinned = [source.pinned for source in plan.sources]
    experts = [e.model_copy(update={"source_model": p}) for e, p in zip(recipe.every_expert, pinned[1:], strict=True)]
    write_whole(out / RECIPE, recipe.with_experts(experts).model_copy(update={"base_model": pinned[0]}).to_yaml())
    write_whole(out / RECORD, _dump(_record(plan, fingerprint, seed)))

    weight_map = {o.name: file for file, outputs in plan.shards for o in outputs}
    metadata = {"total_size": plan.nbytes, "total_parameters": plan.parameters}
    write_whole(out / "model.safetensors.index.json", _dump({"metadata": metadata, "weight_map": weight_map}))
    write_whole(out / "config.json", _dump(plan.config))


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a finished mixture."""
    return all((folder / name).is_file() for name in (RECORD, RECIPE, "config.json"))


def _record(plan: Plan, fingerprint: str, seed: int) -> dict[str, Any]:
    """What a finished mixture says of itself, for its card and for a rerun."""
    return {
        "fingerprint": fingerprint,
        "versions": {"LazyMoE": __version__} | {name: version(name) for name in ("torch", "transformers")},
        "seed": seed,
        "shard_size": plan.shard_size,
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
    """A tokenizer_config.json that leads to no code but transformers' own; comes back as it is if it did so already.

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


def _for_transformers_4(tokenizer_config: bytes) -> bytes:
    """A tokenizer_config.json of transformers 5 in words that transformers 4 knows as well: its general class, which
    by default makes token_type_ids, and these no decoder takes. Any other is returned as it is."""
    known = rb'\1"PreTrainedTokenizerFast"'
    if b'"model_input_names"' not in tokenizer_config:
        known += b',\n  "model_input_names": ["input_ids", "attention_mask"]'
    return re.sub(rb'("tokenizer_class":\s*)"TokenizersBackend"', known, tokenizer_config)


def _verify(plan: Plan, out: Path) -> None:
    """Read the output back, as anyone's checkpoint, and hold it against the plan."""
    found = {t.name: (t.dtype, t.shape) for t in open_source(str(out), str(out)).tensors.values()}
    if found != {o.name: (o.dtype, o.shape) for o in plan.outputs}:
        raise error(out, "what was written isn't what was planned", "Please report this as a bug of LazyMoE.")


def _discard(plan: Plan, out: Path) -> None:
    """Remove what this merge wrote, and nothing else."""
    shutil.rmtree(out / WORK, ignore_errors=True)
    for name, _ in plan.shards:
        (out / name).unlink(missing_ok=True)
    if not any(out.iterdir()):
        out.rmdir()


def _dump(data: Any) -> str:
    return json.dumps(data, indent=2) + "\n"
