"""Where the weights of those who are asked are read: here, once they are downloaded, or on the Hub, a little ahead."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from lazymoe.checkpoint.opening import fetch
from lazymoe.checkpoint.source import Source
from lazymoe.errors import error
from lazymoe.files import absolute, cache
from lazymoe.hub.ahead import Ahead
from lazymoe.output.claims import locked
from lazymoe.planning.disk import Need, by_disk
from lazymoe.planning.prepared import Prepared
from lazymoe.planning.remote import whole
from lazymoe.progress import Progress

Reading = Callable[[Sequence[Source]], AbstractContextManager[object]]  # of models, while they are read


@contextmanager
def bringing(
    prepared: Prepared, groups: Sequence[Sequence[Source]], name: str, progress: Progress
) -> Iterator[Reading]:
    """Download models, or let them be read where they are: as the recipe's ``source`` has it, see `prepare`.

    Args:
        prepared: the recipe.
        groups: those of its models that are read, which together, in the order in which they are.
        name: of the folder, among the user's caches, for what was just read on the Hub.
        progress: told of the bytes that are there, stage ``download``.

    Yields:
        What is entered while a group is read.

    Raises:
        OutputError: if the disk has no room, or another process reads for the same folder.
        HubError: if the Hub can't be reached, or refuses.
    """
    place = absolute(cache() / "evaluating" / name)
    models = list(zip(prepared.sources, (model.where for model in prepared.recipe.models), strict=True))
    read = {source.reference for group in groups for source in group}
    wanted = [(source, where) for source, where in models if source.reference in read]
    remote = _stay(prepared.source, [source for source, _ in wanted], groups, place)
    fetch(wanted, progress, remote)
    total, before = sum(whole(group).nbytes for group in groups), 0

    @contextmanager
    def there(group: Sequence[Source]) -> Iterator[None]:
        nonlocal before
        away = whole(group)
        ranges = [source.origin.ranges for source in group if source.origin and source.origin.ranges]

        def told(stage: str, done: int, _: int, before: int = before) -> None:
            progress(stage, before + done, total)

        with Ahead(ranges, place / "ranges", away.disk - away.held, away.nbytes, told, away.kept):
            yield
        before += away.nbytes

    if not total:
        yield nullcontext
        return
    place.mkdir(parents=True, exist_ok=True)
    try:
        with locked(place):
            yield lambda group: there(group) if whole(group).nbytes else nullcontext()
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _stay(where: str, models: Sequence[Source], groups: Sequence[Sequence[Source]], place: Path) -> bool:
    """Tell whether models stay on the Hub.

    Raises:
        OutputError: if the disk has no room for the way that is wanted, or for none.
    """
    downloads = {s.path(file): size for s in models for file, size in s.missing.items()}
    if not downloads:
        return False
    [here] = by_disk([(next(iter(downloads)), sum(downloads.values()))])
    [there] = by_disk([(place, max(whole(group).disk for group in groups))])
    if where == "remote" or (where == "auto" and here.lacking):
        if there.lacking:
            raise _no_room(there, "Free some space.")
        return True
    if here.lacking:
        other = "" if there.lacking else " Or leave the models where they are, which fits: --source remote."
        raise _no_room(here, f"Free some space, or choose another disk.{other}")
    return False


def _no_room(need: Need, remedy: str) -> Exception:
    return error("output.no-room", str(need.place), str(need), remedy)
