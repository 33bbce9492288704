"""What each command of the command line does: calls, and says what came of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lazymoe.errors import Problem, error, failure
from lazymoe.files import absolute, shown
from lazymoe.progress import bars

if TYPE_CHECKING:
    from lazymoe.exporting import Exported
    from lazymoe.hub.jobs import Job
    from lazymoe.jobs.offer import Offer
    from lazymoe.planning.prepared import Prepared

AGAIN = "the same command follows it again, and with --stop it is stopped"
Options = argparse.Namespace


class Told(NamedTuple):
    """What a command has to say: in words, in few words for ``--quiet``, and for programs."""

    words: str
    few: str
    fields: dict[str, Any]
    code: int = 0


def exit_code(problems: Sequence[Problem]) -> int:
    """Give the exit code for what went wrong."""
    return 0 if not problems else 1 if all(p.failed for p in problems) else 2


def _warn(options: Options, problems: Iterable[Problem]) -> None:
    if not options.quiet:
        for problem in problems:
            print(f"warning: {problem}", file=sys.stderr, flush=True)


def check(options: Options) -> Told:
    """Tell whether a recipe can work and what it takes."""
    from lazymoe.planning.checking import check
    from lazymoe.planning.plan import SHARD_SIZE

    there: dict[str, Any] = {"allow_pickle": options.allow_pickle, "source": options.source}
    if options.gguf:
        from lazymoe.checking_gguf import check_gguf
        from lazymoe.exporting import LARGEST

        largest = options.shard_size or LARGEST
        found = check_gguf(
            options.recipe, options.gguf, options.folder, imatrix=options.imatrix, largest=largest, **there
        )
    else:
        found = check(options.recipe, options.folder, shard_size=options.shard_size or SHARD_SIZE, **there)
    few = "\n".join(f"error: {p}" for p in found.errors)
    return Told(str(found), few, found.to_dict(), exit_code(found.errors))


def merge(options: Options) -> Told:
    """Make a mixture: in a folder, on the Hub, as GGUF, on a cluster, or on a rented machine."""
    from lazymoe.making import source_on
    from lazymoe.merging import carry_out
    from lazymoe.planning.checking import judge
    from lazymoe.planning.plan import SHARD_SIZE
    from lazymoe.planning.prepared import prepare

    place, _, detail = (options.on or "").partition(":")
    if place == "hf-jobs":
        return _merge_on_jobs(options, detail or None)
    if options.yes or options.stop:
        what = "there is no --on hf-jobs"
        raise error("input.usage", "--yes" if options.yes else "--stop", what, "Add --on hf-jobs.")
    if not options.folder and not options.to:
        raise error("input.usage", "FOLDER", "there is none", "Name a folder, or with --to a repository on the Hub.")
    folder = absolute(options.folder or options.to.rpartition("/")[2])
    if options.gguf and options.on:
        raise error("input.usage", "--gguf", "GGUF isn't made on a cluster", "Leave --on out: it is made here.")
    if options.gguf:
        return _merge_to_gguf(options, options.recipe, options.gguf, folder)
    prepared = prepare(
        options.recipe, shard_size=options.shard_size or SHARD_SIZE, allow_pickle=options.allow_pickle,
        source=source_on(options.on, options.source),
    )  # fmt: skip
    found = judge(prepared, folder, to_hub=bool(options.to))
    if found.errors:
        raise failure(found.errors)
    _warn(options, found.warnings)
    if found.way and found.way.remote and not options.quiet and not options.on:
        why = "" if options.source == "remote" else "Models stay on the Hub, as the disk has no room for them. "
        print(f"note: {why}{found.way}", file=sys.stderr, flush=True)
    if options.to:
        return _merge_to_hub(options, prepared, folder)
    with bars(options.quiet) as progress:
        merged = carry_out(prepared, folder, seed=options.seed, device=options.device, on=options.on, progress=progress)
    _warn(options, (p for p in merged.warnings if p not in found.warnings))
    trust = [", trust_remote_code=True", ", trust_remote_code=False"] if merged.plan.host.code else ["", ""]
    use = f"""
To use it:

  from transformers import AutoModelForCausalLM, AutoTokenizer
  model = AutoModelForCausalLM.from_pretrained("{shown(folder)}", dtype="auto"{trust[0]})
  tokenizer = AutoTokenizer.from_pretrained("{shown(folder)}"{trust[1]})
"""
    return Told(f"{merged}\n{use}", str(shown(folder)), {"ok": True, **merged.to_dict()})


def _merge_to_hub(options: Options, prepared: Prepared, folder: Path) -> Told:
    from lazymoe.to_hub import carry_to_hub

    with bars(options.quiet) as progress:
        done = carry_to_hub(
            prepared, options.to, folder, private=options.private, seed=options.seed, device=options.device,
            on=options.on, progress=progress,
        )  # fmt: skip
    return Told(f"{done.url} holds it.", done.url, {"ok": True, **done.to_dict()})


def _merge_on_jobs(options: Options, flavor: str | None) -> Told:
    from lazymoe.jobs.renting import carry_to_jobs, stop_on_jobs
    from lazymoe.planning.plan import SHARD_SIZE
    from lazymoe.planning.prepared import prepare

    if options.folder or not options.to:
        what, remedy = "a rented machine has no folder here", "Name no FOLDER, but with --to a repository on the Hub."
        raise error("input.usage", "--on", what, remedy)
    if options.gguf:
        raise error("input.usage", "--gguf", "GGUF isn't made on rented machines", "Leave --on out: it is made here.")
    if options.stop:
        stopped = stop_on_jobs(options.to)
        return Told(f"{stopped.url} is stopped.", stopped.url, {"ok": True, "job": stopped.url})
    options.stopped = "stopped; nothing was started"
    prepared = prepare(
        options.recipe, shard_size=options.shard_size or SHARD_SIZE, allow_pickle=options.allow_pickle,
        source=options.source,
    )  # fmt: skip
    _warn(options, prepared.warnings)

    def started(job: Job) -> None:
        options.stopped = f"{job.url} goes on; {AGAIN}"
        if not options.quiet:
            waits = ", as soon as it has a machine" if job.stage == "SCHEDULING" else ""
            print(f"note: {job.url} makes it{waits}. Ctrl-C lets it go on; {AGAIN}.", file=sys.stderr, flush=True)

    def say(line: str) -> None:
        from tqdm import tqdm

        if not options.quiet:
            tqdm.write(line, file=sys.stderr)  # above the bars

    with bars(options.quiet) as progress:
        done = carry_to_jobs(
            prepared, options.to, flavor, agree=lambda offer: _agree(options, offer),
            private=options.private, seed=options.seed, device=options.device, started=started, say=say,
            progress=progress,
        )  # fmt: skip
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


def report(options: Options) -> Told:
    """Measure a mixture, or GGUF files."""
    from lazymoe.output.folder import PICTURES, REPORT
    from lazymoe.output.quantized import is_quantized
    from lazymoe.reporting.measuring import read_texts, report

    folder = absolute(options.folder)
    texts = read_texts(options.texts) if options.texts else None
    if is_quantized(folder) or folder.suffix == ".gguf":
        return _report_gguf(options, folder, texts)
    with bars(options.quiet) as progress:
        found = report(folder, texts, losses=not options.routing, device=options.device, progress=progress)
    saved = found.save(folder)
    files = [str(shown(folder / name)) for name in (REPORT, *PICTURES)] if saved else []
    if saved:
        note = f"Saved for its card: {', '.join(files)}."
    else:
        note = f"Not saved: {shown(folder / REPORT)} has losses too, measured before; without --routing it is renewed."
    words = "\n\n".join([str(found), *([found.layers()] if options.layers else []), note])
    return Told(words, "\n".join(files), {"ok": True, **found.to_dict(), "saved": files})


def _report_gguf(options: Options, path: Path, texts: Any) -> Told:
    from lazymoe.output.quantized import QUALITY
    from lazymoe.reporting.quality import report_gguf

    with bars(options.quiet) as progress:
        found = report_gguf(path, texts, mixture=options.mixture, device=options.device, progress=progress)
    saved = str(shown((path if path.is_dir() else path.parent) / QUALITY))
    return Told(f"{found}\n\nSaved for their card: {saved}.", saved, {"ok": True, **found.to_dict(), "saved": [saved]})


def evaluate(options: Options) -> Told:
    """Compare a mixture with its parts on benchmarks."""
    from lazymoe.evaluating.evaluate import evaluate
    from lazymoe.output.folder import EVALUATION
    from lazymoe.reporting.measuring import read_texts

    folder = absolute(options.folder)
    texts = read_texts(options.texts) if options.texts else None
    with bars(options.quiet) as progress:
        found = evaluate(
            folder, options.tasks, limit=options.limit, models=options.models, texts=texts, memory=options.memory,
            device=options.device, progress=progress,
        )  # fmt: skip
    found.save(folder)
    file = str(shown(folder / EVALUATION))
    return Told(f"{found}\n\nSaved for its card: {file}.", file, {"ok": True, **found.to_dict(), "saved": file})


def card(options: Options) -> Told:
    """Print a card."""
    from lazymoe.cards.card import card, find_license

    problems = () if options.license else find_license(options.folder).problems
    _warn(options, () if options.json else problems)
    text = card(options.folder, options.repo, license=options.license, template=options.template).rstrip("\n")
    return Told(text, text, {"ok": True, "card": text, "warnings": [p.to_dict() for p in problems]})


def publish(options: Options) -> Told:
    """Put a mixture or GGUF files on the Hub."""
    from lazymoe.cards.card import find_license
    from lazymoe.publishing import publish
    from lazymoe.units import gigabytes

    problems = () if options.license else find_license(options.folder).problems
    _warn(options, problems)
    given = {key: getattr(options, key) for key in ("private", "license", "template")}
    with bars(options.quiet) as progress:
        done = publish(options.folder, options.repo, **given, progress=progress)
    sent = f"{gigabytes(done.sent)} of weights sent" if done.sent else "its weights were there already"
    return Told(f"{done.url} ({sent})", done.url, {"ok": True, **done.to_dict()})


def gguf(options: Options) -> Told:
    """Make GGUF of a mixture or of a recipe."""
    from lazymoe.exporting import LARGEST, to_gguf
    from lazymoe.output.quantized import ENDING

    given = absolute(options.given)
    if not given.is_dir():
        return _merge_to_gguf(options, options.given, options.types, absolute(options.out or f"{given.stem}{ENDING}"))
    with bars(options.quiet) as progress:
        done = to_gguf(
            given, options.types, options.out, imatrix=options.imatrix, threads=options.threads,
            largest=options.shard_size or LARGEST, device=options.device, progress=progress,
        )  # fmt: skip
    return _exported(options, done)


def _merge_to_gguf(options: Options, recipe: str, types: str, out: Path) -> Told:
    from lazymoe.recipe.schema import Recipe

    given = Recipe.read(recipe)  # before what takes seconds to load
    from lazymoe.checking_gguf import known
    from lazymoe.exporting import LARGEST, kinds_of, threads_of
    from lazymoe.gguf_to_hub import carry_gguf_to_hub
    from lazymoe.merging_to_gguf import carry_to_gguf
    from lazymoe.planning.prepared import prepare

    kinds = kinds_of(types)
    wanted: dict[str, Any] = {
        "imatrix": known(options.imatrix), "seed": options.seed, "device": options.device,
        "threads": threads_of(options.threads), "largest": options.shard_size or LARGEST,
    }  # fmt: skip
    prepared = prepare(given, allow_pickle=options.allow_pickle, source=options.source)
    _warn(options, prepared.warnings)
    with bars(options.quiet) as progress:
        if to := getattr(options, "to", None):
            sent = carry_gguf_to_hub(prepared, kinds, to, out, private=options.private, **wanted, progress=progress)
            return Told(f"{sent.url} holds them.", sent.url, {"ok": True, **sent.to_dict()})
        done = carry_to_gguf(prepared, kinds, out, **wanted, progress=progress)
    return _exported(options, done, prepared.warnings)


def _exported(options: Options, done: Exported, told: Sequence[Problem] = ()) -> Told:
    _warn(options, () if options.json else (p for p in done.warnings if p not in told))
    few = "\n".join(str(shown(path)) for paths in done.files.values() for path in paths)
    return Told(str(done), few, {"ok": True, **done.to_dict()})


def demo(options: Options) -> Told:
    """Train tiny experts, merge and measure them."""
    from lazymoe.demonstration.story import demo

    with bars(options.quiet) as progress:
        result = demo(options.folder, progress=progress)
    few = str(shown(result.folder)) if result.folder else ""
    return Told(str(result), few, {"ok": True, **result.to_dict()})
