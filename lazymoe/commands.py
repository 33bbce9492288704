"""What each command of the command line does: calls, and says what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazymoe.errors import Problem, error, failure
from lazymoe.files import absolute, shown
from lazymoe.progress import bars
from lazymoe.told import Options, Told, exit_code, note, warn

if TYPE_CHECKING:
    from lazymoe.exporting import Exported
    from lazymoe.planning.prepared import Prepared


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
    from lazymoe.recipe.beside import along, own_files

    if not options.folder and not options.to:
        raise error("input.usage", "FOLDER", "there is none", "Name a folder, or with --to a repository on the Hub.")
    folder = absolute(options.folder or options.to.rpartition("/")[2])
    if options.gguf:
        return _merge_to_gguf(options, options.recipe, options.gguf, folder)
    prepared = prepare(
        options.recipe, shard_size=options.shard_size or SHARD_SIZE, allow_pickle=options.allow_pickle,
        source=source_on(options.on, options.source),
    )  # fmt: skip
    found = judge(prepared, folder, to_hub=bool(options.to))
    if found.errors:
        raise failure(found.errors)
    warn(options, found.warnings)
    if found.way and found.way.remote and not options.on:
        why = "" if options.source == "remote" else "Models stay on the Hub, as the disk has no room for them. "
        note(options, f"{why}{found.way}")
    if options.to:
        note(options, *along(own_files(prepared.recipe)))
        return _merge_to_hub(options, prepared, folder)
    with bars(options.quiet) as progress:
        merged = carry_out(prepared, folder, seed=options.seed, device=options.device, on=options.on, progress=progress)
    warn(options, (p for p in merged.warnings if p not in found.warnings))
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
            device=options.device, source=options.source, on=options.on, progress=progress,
        )  # fmt: skip
    found.save(folder)
    file = str(shown(folder / EVALUATION))
    return Told(f"{found}\n\nSaved for its card: {file}.", file, {"ok": True, **found.to_dict(), "saved": file})


def card(options: Options) -> Told:
    """Print a card."""
    from lazymoe.cards.card import card, find_license

    problems = () if options.license else find_license(options.folder).problems
    warn(options, () if options.json else problems)
    text = card(options.folder, options.repo, license=options.license, template=options.template).rstrip("\n")
    return Told(text, text, {"ok": True, "card": text, "warnings": [p.to_dict() for p in problems]})


def publish(options: Options) -> Told:
    """Put a mixture or GGUF files on the Hub."""
    from lazymoe.cards.filling import license_of
    from lazymoe.output.quantized import open_either
    from lazymoe.publishing import publish
    from lazymoe.recipe.beside import along
    from lazymoe.units import gigabytes

    mixture = open_either(absolute(options.folder))
    problems = () if options.license else license_of(mixture).problems
    warn(options, problems)
    note(options, *along(mixture.carried))
    given = {key: getattr(options, key) for key in ("private", "license", "template")}
    with bars(options.quiet) as progress:
        done = publish(options.folder, options.repo, **given, progress=progress)
    sent = f"{gigabytes(done.sent)} of weights sent" if done.sent else "its weights were there already"
    return Told(f"{done.url} ({sent})", done.url, {"ok": True, **done.to_dict()})


def gguf(options: Options) -> Told:
    """Make GGUF of a mixture or of a recipe."""
    from lazymoe.exporting import LARGEST, to_gguf
    from lazymoe.output.folder import open_finished
    from lazymoe.output.quantized import ENDING

    given = absolute(options.given)
    if not given.exists() and "/" in options.given and given.suffix not in (".yaml", ".yml"):
        open_finished(given)  # which says how one on the Hub is brought
    if not given.is_dir():
        name = options.to.rpartition("/")[2] if options.to else f"{given.stem}{ENDING}"
        return _merge_to_gguf(options, options.given, options.types, absolute(options.out or name))
    if options.on:
        what = "a finished mixture is read on one machine"
        raise error("input.usage", "--on", what, "Leave it out, or name the recipe instead of the folder.")
    if options.to or options.private:
        what, remedy = "this is a folder, whose files stay here", "Make them without it, and run: lazymoe publish"
        raise error("input.usage", "--to" if options.to else "--private", what, remedy)
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
    from lazymoe.making import source_on
    from lazymoe.merging_to_gguf import carry_to_gguf
    from lazymoe.planning.prepared import prepare
    from lazymoe.recipe.beside import along, own_files

    kinds = kinds_of(types)
    wanted: dict[str, Any] = {
        "imatrix": known(options.imatrix), "seed": options.seed, "device": options.device,
        "on": options.on, "threads": threads_of(options.threads), "largest": options.shard_size or LARGEST,
    }  # fmt: skip
    prepared = prepare(given, allow_pickle=options.allow_pickle, source=source_on(options.on, options.source))
    warn(options, prepared.warnings)
    note(options, *(along(own_files(prepared.recipe)) if options.to else []))
    with bars(options.quiet) as progress:
        if options.to:
            sent = carry_gguf_to_hub(
                prepared, kinds, options.to, out, private=options.private, **wanted, progress=progress
            )
            return Told(f"{sent.url} holds them.", sent.url, {"ok": True, **sent.to_dict()})
        done = carry_to_gguf(prepared, kinds, out, **wanted, progress=progress)
    return _exported(options, done, prepared.warnings)


def _exported(options: Options, done: Exported, told: Sequence[Problem] = ()) -> Told:
    warn(options, () if options.json else (p for p in done.warnings if p not in told))
    few = "\n".join(str(shown(path)) for paths in done.files.values() for path in paths)
    return Told(str(done), few, {"ok": True, **done.to_dict()})


def demo(options: Options) -> Told:
    """Train tiny experts, merge and measure them."""
    from lazymoe.demonstration.story import demo

    with bars(options.quiet) as progress:
        result = demo(options.folder, progress=progress)
    few = str(shown(result.folder)) if result.folder else ""
    return Told(str(result), few, {"ok": True, **result.to_dict()})
