"""What can be wanted of a rented machine: a mixture on the Hub, its GGUF files there, its evaluation.

Of each an order says what runs there, what that takes of a machine, and how it is known to be done.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from lazymoe.checking_gguf import known, lay, weighted
from lazymoe.errors import error
from lazymoe.exporting import LARGEST, kinds_of
from lazymoe.files import absolute
from lazymoe.gguf_to_hub import is_there
from lazymoe.hub.uploading import Upload
from lazymoe.jobs.parcel import check_sendable, requirements, with_recipe
from lazymoe.jobs.published import find_mixture
from lazymoe.jobs.there import EVALUATE, GGUF, MERGE
from lazymoe.making import fingerprint_of
from lazymoe.output.folder import EVALUATION, RECORD, open_finished, reopen
from lazymoe.output.measured import sound_evaluation
from lazymoe.output.quantized import GGUF as ABOUT
from lazymoe.planning.duration import Rates, with_times
from lazymoe.planning.memory import evaluation_memory
from lazymoe.planning.plan import Plan
from lazymoe.planning.prepared import Prepared, Where, at_commits
from lazymoe.planning.remote import whole
from lazymoe.planning.ways import Gguf, among, find_ways
from lazymoe.reporting.measuring import Texts

QUESTIONS, TOKENS = 1000, 400  # that are counted for a task without a limit, and for a question


class Load(NamedTuple):
    """What an order takes of a machine: bytes of disk and of memory, and seconds."""

    disk: int
    memory: int
    seconds: float


@dataclass(frozen=True)
class Order:
    """What is wanted.

    Attributes:
        words: for it, in a sentence about how long it takes.
        repo: the Hub id that it is for.
        mark: the file by which a repository is known to hold such a thing.
        asked: what runs there, see `there`.
        files: that go along, name to contents.
        needed: packages that it takes.
        made: tells whether the repository has it.
        sure: whether what is there, if it is there, is the same as what would be made.
        loads: the ways to do it on a machine with so many free bytes of disk and of memory, at such rates; the best one
            first if there is room.
    """

    words: str
    repo: str
    mark: str
    asked: dict[str, Any]
    files: dict[str, bytes]
    needed: list[str]
    made: Callable[[Upload], bool]
    loads: Callable[[int, int, Rates], Iterable[Load]]
    sure: bool = True

    @property
    def fingerprint(self) -> str:
        """What tells it from any other."""
        files = sorted((name, hashlib.sha256(content).hexdigest()) for name, content in self.files.items())
        return hashlib.sha256(json.dumps([self.asked, files]).encode()).hexdigest()


def merging(prepared: Prepared, repo: str, *, private: bool = False, seed: int = 0, device: str | None = None) -> Order:
    """Order a mixture.

    Args:
        prepared: the recipe.
        repo, private, seed, device: as in `lazymoe.merge_to_hub`.

    Raises:
        LazyMoEError: if the recipe can't work, or a rented machine couldn't read everything.
    """
    plan, fingerprint = prepared.sound_plan, _checked(prepared, seed)
    asked = {
        "do": MERGE, "repo": repo, "private": private, "seed": seed, "shard_size": plan.shard_size, "device": device,
        "allow_pickle": prepared.allow_pickle, "source": prepared.source,
    }  # fmt: skip

    def made(upload: Upload) -> bool:
        return bool(upload.read(RECORD).get("fingerprint") == fingerprint)

    needed, loads = requirements(prepared), partial(_by_ways, prepared, plan, None)
    return Order("the merge", repo, RECORD, asked, with_recipe(prepared), needed, made, loads)


def gguf(
    prepared: Prepared,
    types: str | Sequence[str],
    repo: str,
    *,
    private: bool = False,
    license: str | None = None,
    imatrix: str | os.PathLike[str] | bool = True,
    seed: int = 0,
    device: str | None = None,
    largest: int = LARGEST,
) -> Order:
    """Order the GGUF files of a recipe's mixture.

    Args:
        prepared: the recipe.
        types, repo, private, license, imatrix, seed, device, largest: as in `lazymoe.merge_gguf_to_hub`.

    Raises:
        LazyMoEError: as `merging`; or as `lazymoe.merge_gguf_to_hub` for what can be told before.
    """
    kinds, matrix = kinds_of(types), known(imatrix)
    fingerprint, asked = _checked(prepared, seed), weighted(prepared, kinds, matrix)
    with TemporaryDirectory() as place:
        goal = Path(place) / repo.rpartition("/")[2]
        export = lay(asked, kinds, goal, {} if isinstance(matrix, bool) else matrix, seed, largest)
        once = export.seconds(1)
    sent = {} if isinstance(imatrix, bool) else {"imatrix.gguf": absolute(imatrix).read_bytes()}
    arguments = {
        "do": GGUF, "repo": repo, "types": kinds, "private": private, "license": license,
        "imatrix": next(iter(sent), imatrix), "seed": seed, "device": device, "largest": largest,
        "allow_pickle": prepared.allow_pickle, "source": prepared.source,
    }  # fmt: skip

    def made(upload: Upload) -> bool:
        return ABOUT in upload.remote if sent else is_there(upload, asked, kinds, fingerprint)

    plan, sizes = asked.sound_plan, export.sizes_by_type
    loads = partial(_by_ways, asked, plan, Gguf(sizes, sum(sizes.values()), once))
    files, needed = with_recipe(prepared) | sent, requirements(prepared, "gguf")
    return Order("making them", repo, ABOUT, arguments, files, needed, made, loads, sure=not sent)


def _checked(prepared: Prepared, seed: int) -> str:
    """Look whether a recipe can be sent; give what its mixture is known by."""
    check_sendable(prepared)
    pinned = replace(prepared, prompts=at_commits(prepared.prompts, prepared.sources))  # as it is there
    return fingerprint_of(pinned, seed)


def _by_ways(prepared: Prepared, plan: Plan, gguf: Gguf | None, disk: int, memory: int, rates: Rates) -> Iterable[Load]:
    """Count what it takes to make a mixture, or its GGUF files, straight to the Hub."""
    ways = find_ways(prepared, plan, Path.cwd(), disk, memory, gguf, elsewhere=True)
    for way in among(with_times(ways, prepared, plan, rates, gguf), prepared.source, True):
        yield Load(way.disk, way.memory, (way.seconds or 0) + (way.upload_seconds or 0))


def evaluating(
    repo: str,
    tasks: str | Sequence[str] = (),
    *,
    limit: int | None = None,
    models: str | Sequence[str] | None = None,
    texts: Texts | None = None,
    device: str | None = None,
    source: Where = "auto",
) -> Order:
    """Order an evaluation of a mixture that is on the Hub.

    Args:
        repo: its Hub id.
        tasks, limit, models, texts, device, source: as in `lazymoe.evaluate`.

    Raises:
        LazyMoEError: as `lazymoe.evaluate` for what can be told before; or if it isn't there.
    """
    from lazymoe.evaluating.evaluate import command_of, split
    from lazymoe.evaluating.models import choose
    from lazymoe.evaluating.suites import KINDS, SUITES
    from lazymoe.evaluating.tasks import OWN, check_asked

    if absolute(repo).is_dir():
        remedy = "Publish the mixture with 'lazymoe publish', and give its name there: USER/NAME."
        raise error("input.usage", repo, "a rented machine can't read a folder here", remedy)
    names, kinds = split(tasks), choose(split(KINDS if models is None else models))
    own = {str(path): f"questions/{i}/{path.name}" for i, path in enumerate(check_asked(names))}
    folder, commit = find_mixture(repo)
    done, prepared = open_finished(folder), reopen(folder, source)
    command, fingerprint = command_of(names, limit, kinds, bool(texts)), done.record.fingerprint
    if not names and not texts:
        raise error("input.tasks", "tasks", "there are none", f"Name lm-eval's, or a suite: {', '.join(SUITES)}.")
    named = [own[str(absolute(name))] if name.endswith(OWN) else name for name in names]
    asked = {
        "do": EVALUATE, "repo": repo, "revision": commit, "tasks": named, "limit": limit, "models": list(kinds),
        "texts": texts, "device": device, "source": source,
    }  # fmt: skip

    def made(upload: Upload) -> bool:
        found = sound_evaluation(upload.read(EVALUATION), fingerprint)
        return bool(found) and found["command"] == command

    count = len([task for name in names for task in SUITES.get(name, (name,))])
    tokens = TOKENS * (limit or QUESTIONS) * max(1, count)
    loads = partial(_to_ask, prepared, kinds, tokens)
    files, needed = {file: Path(path).read_bytes() for path, file in own.items()}, requirements(prepared, "evaluate")
    return Order("evaluating", repo, RECORD, asked, files, needed, made, loads, sure=not (own or texts))


def _to_ask(
    prepared: Prepared, kinds: Sequence[str], tokens: int, disk: int, memory: int, rates: Rates
) -> Iterable[Load]:
    """Count what it takes to ask models: the mixture is downloaded, the others too, or read where they are."""
    from lazymoe.evaluating.models import read_for
    from lazymoe.evaluating.suites import MIXTURE

    plan = prepared.sound_plan
    groups = [group for kind in kinds for group in read_for(prepared, kind)]
    dense = 2 * sum(tensor.elements for tensor in plan.sources[0].tensors.values())
    operations = tokens * (dense * len(groups) + 2 * plan.active_parameters * (MIXTURE in kinds))
    computing = operations / (rates.processor or 1)
    read = {source.reference: source for group in groups for source in group}.values()
    download = sum(sum(source.weights.values()) for source in read)
    ranges = [whole(group, elsewhere=True) for group in groups]
    ways = {
        "local": (download, download),
        "remote": (max((away.disk for away in ranges), default=0), sum(away.nbytes for away in ranges)),
    }
    for source, (held, brought) in ways.items():
        if prepared.source in ("auto", source):
            moved = (plan.nbytes + brought) / (rates.network or 1)
            yield Load(plan.nbytes + held, evaluation_memory(plan), moved + computing)
