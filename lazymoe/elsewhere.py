"""What commands do with ``--on``: the same on a rented machine."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazymoe.errors import error
from lazymoe.progress import bars
from lazymoe.told import Options, Told, note, warn

if TYPE_CHECKING:
    from lazymoe.hub.jobs import Job
    from lazymoe.jobs.offer import Offer
    from lazymoe.jobs.orders import Order
    from lazymoe.planning.prepared import Prepared

AGAIN = "the same command follows it again, and with --stop it is stopped"
NO_FOLDER = "Name no folder, but with --to a repository on the Hub."


def check(options: Options) -> Told:
    """Tell which machine would be rented for a recipe, and at what price. Nothing is started."""
    from lazymoe.jobs.orders import gguf, merging
    from lazymoe.jobs.renting import offer_for
    from lazymoe.planning.plan import SHARD_SIZE

    repo, size = f"you/{Path(options.recipe).stem}", options.shard_size or SHARD_SIZE
    prepared = _prepared(options, options.recipe, shard_size=size)
    order = gguf(prepared, options.gguf, repo, imatrix=options.imatrix) if options.gguf else merging(prepared, repo)
    offer = offer_for(order, _flavor(options))
    return Told(str(offer), offer.flavor.name, {"ok": True, **offer.to_dict()})


def merge(options: Options) -> Told:
    """Make a mixture, or its GGUF files, straight to the Hub."""
    if options.folder or not options.to:
        raise error("input.usage", "--on", "a rented machine has no folder here", NO_FOLDER)
    if options.stop:
        return _stop(options.to)
    if options.gguf:
        return _gguf(options, options.recipe, options.gguf)
    from lazymoe.jobs.orders import merging
    from lazymoe.planning.plan import SHARD_SIZE

    order = merging(
        _prepared(options, options.recipe, shard_size=options.shard_size or SHARD_SIZE), options.to,
        private=options.private, seed=options.seed, device=options.device,
    )  # fmt: skip
    return _rent(options, order)


def gguf(options: Options) -> Told:
    """Make GGUF of a recipe, straight to the Hub."""
    if options.out or not options.to:
        raise error("input.usage", "--on", "a rented machine has no folder here", NO_FOLDER)
    if options.stop:
        return _stop(options.to)
    if Path(options.given).is_dir():
        remedy = "Name the recipe that it was made of; or leave --on out, and 'lazymoe publish' what is made here."
        raise error("input.usage", options.given, "a rented machine can't read a folder here", remedy)
    return _gguf(options, options.given, options.types)


def evaluate(options: Options) -> Told:
    """Evaluate a mixture that is on the Hub."""
    if options.stop:
        return _stop(options.folder)
    from lazymoe.jobs.calls import evaluation_of
    from lazymoe.jobs.orders import evaluating
    from lazymoe.reporting.measuring import read_texts

    if options.memory:
        raise error("input.usage", "--memory", "how much there is depends on the machine", "Leave it out with --on.")
    order = evaluating(
        options.folder, options.tasks, limit=options.limit, models=options.models, device=options.device,
        texts=read_texts(options.texts) if options.texts else None, source=options.source,
    )  # fmt: skip
    done, found = _rent(options, order), evaluation_of(order)
    return Told(f"{found}\n\n{done.few} has it in its card.", done.few, done.fields | found.to_dict())


def _gguf(options: Options, recipe: str, types: str) -> Told:
    from lazymoe.exporting import LARGEST
    from lazymoe.jobs.orders import gguf

    order = gguf(
        _prepared(options, recipe), types, options.to, private=options.private, imatrix=options.imatrix,
        seed=options.seed, device=options.device, largest=options.shard_size or LARGEST,
    )  # fmt: skip
    return _rent(options, order)


def _prepared(options: Options, recipe: str, **more: Any) -> Prepared:
    from lazymoe.planning.prepared import prepare
    from lazymoe.recipe.beside import along, files_of

    prepared = prepare(recipe, allow_pickle=options.allow_pickle, source=options.source, **more)
    warn(options, prepared.warnings)
    note(options, *along(files_of(prepared.recipe)))
    return prepared


def _stop(repo: str) -> Told:
    from lazymoe.jobs.renting import stop_on_jobs

    stopped = stop_on_jobs(repo)
    return Told(f"{stopped.url} is stopped.", stopped.url, {"ok": True, "job": stopped.url})


def _rent(options: Options, order: Order) -> Told:
    """Have an order done, and say meanwhile what goes on there."""
    from lazymoe.jobs.renting import rent

    options.stopped = "stopped; nothing was started"

    def started(job: Job) -> None:
        options.stopped = f"{job.url} goes on; {AGAIN}"
        waits = ", as soon as it has a machine" if job.stage == "SCHEDULING" else ""
        note(options, f"{job.url} does it{waits}. Ctrl-C lets it go on; {AGAIN}.")

    def say(line: str) -> None:
        from tqdm import tqdm

        if not options.quiet:
            tqdm.write(line, file=sys.stderr)  # above the bars

    with bars(options.quiet) as progress:
        agree = partial(_agree, options)
        done = rent(order, _flavor(options), agree=agree, started=started, say=say, progress=progress)
    return Told(f"{done.url} holds it.", done.url, {"ok": True, **done.to_dict()})


def _agree(options: Options, offer: Offer) -> bool:
    """Ask whether a machine is to be rented.

    Raises:
        LazyMoEError: if there is nobody to ask.
    """
    if not options.yes and not sys.stdin.isatty():
        remedy = "There is nobody to ask here: agree to that with --yes."
        raise error("input.price", "--on", str(offer).rstrip("."), remedy)
    if not (options.yes and options.quiet):
        print(f"note: {offer}", file=sys.stderr, flush=True)
    if not options.yes:
        print("Start it? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return False
    options.stopped = f"stopped; if the job has been started already, it goes on; {AGAIN}"
    return True


def _flavor(options: Options) -> str | None:
    """Give the machine that was asked for; None for the cheapest that is large enough."""
    return options.on.partition(":")[2] or None
