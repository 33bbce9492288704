"""What every way of making a mixture has in common, into safetensors, onto the Hub or into GGUF."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazymoe.checkpoint.source import GENERATION, TOKENIZER_FILES
from lazymoe.computing import ROUTING
from lazymoe.data import folder as data
from lazymoe.errors import ClusterError, HubError, LazyMoEError, Problem, error
from lazymoe.files import readable, unwritten
from lazymoe.output.folder import CONFIG, INDEX, RECIPE, TOKENIZER_CONFIG, Record, SourceRecord
from lazymoe.output.tokenizer_config import carried
from lazymoe.planning.plan import Plan
from lazymoe.planning.prepared import Prepared, Where
from lazymoe.planning.remote import Remote
from lazymoe.progress import Progress
from lazymoe.recipe.schema import PROMPTED
from lazymoe.reporting.report import Report
from lazymoe.version import versions

if TYPE_CHECKING:
    from lazymoe.computing.places import Places

REMOTE = "remote"  # a folder among what is half-made: what was just read of models that stay on the Hub


def fingerprint_of(prepared: Prepared, seed: int) -> str:
    """Tell a merge from any other, by its models, its prompts and its options.

    Args:
        prepared: the recipe.
        seed: of random routers and of the experts' noise.
    """
    return prepared.sound_plan.fingerprint(recipe=prepared.prompts.model_dump(), seed=seed)


def doubtful(prepared: Prepared, plan: Plan) -> list[Problem]:
    """List the prompts that are read and may not do what they should.

    Args:
        prepared, plan: what is wanted.
    """
    if prepared.recipe.gate_mode in PROMPTED or plan.shared == "regmean" or plan.corrected:
        from lazymoe.forward.tokens import doubtful_prompts

        return list(doubtful_prompts(prepared, plan))
    return []


def source_on(on: str | None, source: Where) -> Where:
    """Choose where the weights of models on the Hub are read: on a cluster by its machines.

    Args:
        on: as `lazymoe.merge` has it.
        source: what is asked for.

    Raises:
        LazyMoEError: if that isn't possible there, or there is no such place.
    """
    _check_place(on)
    if on is None:
        return source
    if source == "local":
        what = "a cluster's machines read models where they are, and none of them is downloaded"
        raise error("input.usage", "source", what, "Leave it out.")
    return "remote"


def _check_place(on: str | None) -> None:
    """Look whether a place other than this machine is a cluster."""
    if on is not None and on.partition(":")[0] != "ray":
        remedy = "Say ray, or ray:ADDRESS such as ray:10.0.0.1:6379."
        raise error("input.usage", "on", f"'{on}' isn't a cluster", remedy)


def device_on(on: str | None, device: str | None) -> str | None:
    """Choose where it is computed: on a cluster by processors. What isn't there is told before the downloads.

    Args:
        on: as `lazymoe.merge` has it.
        device: what is asked for.

    Raises:
        LazyMoEError: if it isn't there, or there is no such place.
    """
    _check_place(on)
    if on and device not in (None, "cpu"):
        raise error("input.usage", "device", "a cluster computes on processors", "Leave it out, or say 'cpu'.")
    if device:
        from lazymoe.forward.device import pick_device

        pick_device(device)
    return "cpu" if on else device


def connected(on: str | None) -> AbstractContextManager[None]:
    """Be part of a cluster, if one is asked for.

    Args:
        on: as `lazymoe.merge` has it.

    Raises:
        ClusterError: if Ray isn't installed, or there is no such cluster.
    """
    if on is None:
        return nullcontext()
    if find_spec("ray") is None:
        raise error("cluster.ray", "--on", "a cluster takes the package ray", "Run: pip install 'ray>=2.44'")
    from lazymoe.cluster.asking import connected

    return connected(on.partition(":")[2])


@contextmanager
def places_for(
    prepared: Prepared, plan: Plan, remote: Remote | None, work: Path, on: str | None, progress: Progress
) -> Iterator[Places]:
    """Have models read and work done: here, where models on the Hub are read ahead if they stay there, or on a cluster.

    Args:
        prepared, plan: what is made.
        remote: what is read of models on the Hub; None if they don't stay there.
        work: the folder for what is half-made.
        on, progress: as in `lazymoe.merge`.

    Raises:
        LazyMoEError: if a machine of the cluster can't have its model.
    """
    if on:
        from lazymoe.cluster.nodes import seated

        with seated(prepared, plan, remote, progress) as cluster:
            yield cluster
        return
    from lazymoe.computing.places import Here

    if remote is None:
        yield Here(plan.sources)
        return
    from lazymoe.hub.ahead import Ahead

    models = [source.origin.ranges for source in plan.sources if source.origin and source.origin.ranges]
    place = work / REMOTE if remote.disk else None
    room = remote.disk - remote.held or remote.memory
    with Ahead(models, place, room, remote.nbytes, progress, remote.kept):
        yield Here(plan.sources)


@contextmanager
def undone(folder: Path, undo: Callable[[], None]) -> Iterator[None]:
    """Undo what was made of a mixture that can't be one. What the network or the disk does is no reason to.

    Args:
        folder: where it is made.
        undo: removes what was written.

    Raises:
        LazyMoEError: that of the mixture, or what the system said in words.
    """
    try:
        yield
    except (HubError, ClusterError):
        raise  # what was made is none the worse for it
    except LazyMoEError:
        undo()
        raise
    except OSError as e:
        raise unwritten(e, folder, "the merge stopped", "run it again: it goes on from there.") from None


def routing_of(prepared: Prepared, plan: Plan, work: Path) -> Report | None:
    """Tell where the tokens of the prompts went, if they went through the mixture while it was made.

    Args:
        prepared, plan: what was made.
        work: the folder for what is half-made.
    """
    if not (found := readable(work / ROUTING)):
        return None
    active = [plan.active(k) for k in range(1, plan.experts + 1)]
    return Report(prepared.recipe.names, False, {}, active=active, top_k=plan.top_k, **found)


def small_files(prepared: Prepared, plan: Plan) -> Iterator[tuple[str, bytes | str]]:
    """Yield the files beside weights and record, name and content; config.json last.

    Args:
        prepared, plan: what is made.
    """
    base = plan.sources[0]
    for name in base.files(TOKENIZER_FILES):
        content = (base.folder / name).read_bytes()
        if name == TOKENIZER_CONFIG:
            content = carried(content, base.json("tokenizer.json"), bool(plan.host.code))
        yield name, content
    generation = base.folder / GENERATION
    ids = {key: plan.config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in plan.config}
    yield GENERATION, generation.read_bytes() if generation.exists() else dump(ids)

    if plan.host.code:
        yield plan.host.code, (data("templates") / plan.host.code).read_bytes()
    recipe, texts = prepared.kept
    yield RECIPE, recipe.to_yaml()
    yield from texts.items()

    weight_map = {o.name: file for file, outputs in plan.shards for o in outputs}
    metadata = {"total_size": plan.nbytes, "total_parameters": plan.parameters}
    yield INDEX, dump({"metadata": metadata, "weight_map": weight_map})
    yield CONFIG, dump(plan.config)


def chats(plan: Plan) -> bool:
    """Tell whether the mixture's tokenizer has a chat template.

    Args:
        plan: what is made.
    """
    base = plan.sources[0]
    return bool(base.files(["chat_template.jinja"]) or base.json(TOKENIZER_CONFIG).get("chat_template"))


def record_of(prepared: Prepared, plan: Plan, fingerprint: str, seed: int, files: dict[str, str]) -> Record:
    """Gather what a finished mixture says of itself, for its card, for a report and for a rerun.

    Args:
        prepared, plan: what was made.
        fingerprint: of it, see `fingerprint_of`.
        seed: of random routers and of the experts' noise.
        files: the seal of each of its files, by name.
    """
    return Record(
        fingerprint=fingerprint,
        versions=versions(),
        seed=seed,
        shard_size=plan.shard_size,
        allow_pickle=prepared.allow_pickle,
        shared_weights=plan.shared,
        experts_per_token=plan.top_k,
        parameters=plan.parameters,
        active_parameters=plan.active_parameters,
        bytes=plan.nbytes,
        bytes_16bit=plan.bytes_16bit,
        bytes_4bit=plan.bytes_4bit,
        sources=[SourceRecord(license=s.license, languages=s.languages, stamps=s.stamps) for s in plan.sources],
        files=files,
    )


def dump(fields: Any) -> str:
    """Write out JSON as a person reads it.

    Args:
        fields: what JSON can hold.
    """
    return json.dumps(fields, indent=2) + "\n"
