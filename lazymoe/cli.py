"""The command line: ``lazymoe check | merge | report | card | publish | gguf | demo``. Parses, calls, prints.

What was asked for goes to stdout, in words or with ``--json`` as JSON, errors included; progress, warnings and hints go
to stderr, where ``--quiet`` leaves them out. The exit code is 0, or 2 for what the user can mend, 1 for what failed all
the same (the network, the disk), 130 when interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from lazymoe.data import ready_made
from lazymoe.errors import LazyMoEError, Problem, error, failure, nearest
from lazymoe.files import absolute, shown
from lazymoe.progress import bars
from lazymoe.version import __version__

if TYPE_CHECKING:
    from lazymoe.exporting import Exported
    from lazymoe.planning.prepared import Prepared

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?", re.IGNORECASE)
Options = argparse.Namespace


class Told(NamedTuple):
    """What a command has to say: in words, in few words for ``--quiet``, and for programs."""

    words: str
    few: str
    fields: dict[str, Any]
    code: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the words after ``lazymoe``; those of this process if absent.

    Returns:
        The exit code, see this file's first lines.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = Options(json="--json" in arguments, stopped="stopped")
    try:
        try:
            code = _run(arguments, options)
        except LazyMoEError as e:
            code = _code(e.problems)
            if options.json:
                print(json.dumps({"ok": False, "errors": [p.to_dict() for p in e.problems]}, indent=2))
            else:
                for problem in e.problems:
                    print(f"error: {problem}", file=sys.stderr)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(f"\n{options.stopped}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our words has heard enough; a last flush must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(arguments: Sequence[str], options: Options) -> int:
    """Parse, call and print.

    Raises:
        LazyMoEError: for whatever a user can mend.
    """
    parser, commands = make_parser()
    if not arguments:
        parser.print_help()
        return 0
    if arguments[0].startswith("-"):
        _, unknown = parser.parse_known_args(arguments, options)
    elif arguments[0] in commands:  # words and options in any order
        found, unknown = commands[arguments[0]].parse_known_intermixed_args(arguments[1:])
        vars(options).update(vars(found))
    else:
        what = f"there is no command '{arguments[0]}'"
        raise error("input.usage", "lazymoe", what, nearest(arguments[0], list(commands)))
    if unknown:  # its value isn't repeated: it may be a token
        option = unknown[0].partition("=")[0]
        what = f"there is no option '{option}'" if option.startswith("-") else "there is a word too many"
        raise error("input.usage", f"lazymoe {arguments[0]}", what, f"See 'lazymoe {arguments[0]} --help'.")
    told: Told = options.run(options)
    text = json.dumps(told.fields, indent=2) if options.json else told.few if options.quiet else told.words
    if text:
        print(text)
    return told.code


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are told as all others are."""

    def error(self, message: str) -> NoReturn:
        raise error("input.usage", self.prog, message, f"See '{self.prog} --help'.")


class _Completion(argparse.Action):
    """Print a shell's completion of the command line."""

    def __call__(self, parser: argparse.ArgumentParser, options: Options, value: Any, flag: str | None = None) -> None:
        try:
            import shtab
        except ImportError:
            what = "this takes the package shtab"
            raise error("input.usage", "--print-completion", what, "Run: pip install shtab") from None
        print(shtab.complete(parser, value))
        parser.exit()


def make_parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """Make the parser of the command line, and that of each command by its name."""
    parser = _Parser("lazymoe", description="Make a mixture of experts out of fine-tuned LLMs.")
    parser.add_argument("--version", action="version", version=f"lazymoe {__version__}")
    parser.add_argument(
        "--print-completion", action=_Completion, choices=("bash", "zsh", "tcsh"), help="for your shell to source"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[Options], Told], about: str, example: str, stopped: str
    ) -> argparse.ArgumentParser:
        about_it = f"{about[0].upper()}{about[1:]}."
        sub = commands.add_parser(name, help=about, description=about_it, epilog=f"example: {example}")
        sub.set_defaults(run=run, stopped=f"stopped; {stopped}")
        return sub

    def common(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--json", action="store_true", help="print for programs, errors too")
        sub.add_argument("--quiet", action="store_true", help="print only what was asked for, and errors")

    recipe_help = f"a mergekit-moe YAML file, or one of: {', '.join(ready_made())}"
    mixture_help = "the folder of a mixture that 'lazymoe merge' made"

    def recipe_options(sub: argparse.ArgumentParser) -> None:
        about = "largest output file (default: 4GB, GGUF 48GB)"
        sub.add_argument("--shard-size", type=_size, metavar="SIZE", help=about)
        sub.add_argument("--allow-pickle", action="store_true", help="also take .bin weights, of authors you trust")
        about = "download models on the Hub, or read what is needed there (default: that if the disk is too small)"
        sub.add_argument("--source", choices=("auto", "local", "remote"), default="auto", help=about)

    def made_by(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--seed", type=int, default=0, metavar="N", help="for random routers and noise (default 0)")
        sub.add_argument("--device", metavar="NAME", help="where it is computed (default: cuda if there is one)")

    def matrix_options(sub: argparse.ArgumentParser) -> None:
        about = "of GGUF: an importance matrix, as llama-imatrix makes it (default: one made of the recipe's prompts)"
        matrix = sub.add_mutually_exclusive_group()
        matrix.add_argument("--imatrix", type=Path, default=True, metavar="FILE", help=about)
        matrix.add_argument("--no-imatrix", dest="imatrix", action="store_false", help="quantize GGUF without one")

    def gguf_options(sub: argparse.ArgumentParser) -> None:
        matrix_options(sub)
        sub.add_argument("--threads", type=int, metavar="N", help="how many quantize GGUF (default: all there are)")

    def card_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--license", metavar="NAME", help="of the mixture (default: its sources' strictest)")
        sub.add_argument("--template", type=Path, metavar="FILE", help="a Jinja template to use instead of LazyMoE's")

    about = "tell whether a recipe can work and what it takes, before anything large is downloaded"
    sub = command("check", _check, about, "lazymoe check recipe.yaml", "nothing was written")
    sub.add_argument("recipe", metavar="RECIPE", help=recipe_help)
    sub.add_argument(
        "folder", nargs="?", default=".", metavar="FOLDER", help="where the mixture would go, to measure its disk"
    )
    sub.add_argument("--gguf", metavar="TYPE[,TYPE...]", help="check what GGUF files of these types would take")
    matrix_options(sub)
    recipe_options(sub)
    common(sub)

    about = "make the mixture of experts that a recipe describes"
    stopped = "the same command goes on from here"
    sub = command("merge", _merge, about, "lazymoe merge recipe.yaml my-moe", stopped)
    sub.add_argument("recipe", metavar="RECIPE", help=recipe_help)
    sub.add_argument(
        "folder", nargs="?", metavar="FOLDER", help="a new one; or one where this merge was interrupted, to go on"
    )
    sub.add_argument("--to", metavar="USER/NAME", help="put it on the Hub; nothing stays in FOLDER, default NAME")
    sub.add_argument("--private", action="store_true", help="a new repository of --to: only you can see it")
    about = "make GGUF files of these types instead, as 'lazymoe gguf' does of a recipe"
    sub.add_argument("--gguf", metavar="TYPE[,TYPE...]", help=about)
    made_by(sub)
    gguf_options(sub)
    recipe_options(sub)
    common(sub)

    about = (
        "measure a finished mixture: who gets which token, and is it any good; or its GGUF files: what did they lose"
    )
    example = "lazymoe report my-moe --texts held-out.yaml"
    sub = command("report", _report, about, example, "nothing was saved, and the mixture is as it was")
    files_help = "or of its GGUF files, or one of these"
    sub.add_argument("folder", metavar="FOLDER", help=f"{mixture_help}, {files_help}")
    sub.add_argument("--texts", type=Path, metavar="FILE", help="YAML: for each expert a list of texts to measure on")
    sub.add_argument(
        "--routing", action="store_true", help="measure the routing alone, without the losses of all models"
    )
    sub.add_argument("--layers", action="store_true", help="also print what each expert gets in each layer")
    about = "of GGUF files: the mixture in 16 bit to compare with (default: the one beside them)"
    sub.add_argument("--mixture", metavar="FOLDER", help=about)
    sub.add_argument("--device", metavar="NAME", help="where to compute (default: cuda if there is one)")
    common(sub)

    about = "print the model card of a finished mixture, or of its GGUF files"
    sub = command("card", _card, about, "lazymoe card my-moe --repo you/my-moe > card.md", "nothing was written")
    sub.add_argument("folder", metavar="FOLDER", help=f"{mixture_help}, or of its GGUF files")
    sub.add_argument("--repo", metavar="USER/NAME", help="the name it will have on the Hub")
    card_options(sub)
    common(sub)

    about = "put a finished mixture, or its GGUF files, on the Hugging Face Hub, with a card; again after a change"
    stopped = "nothing half-made is visible, and the same command sends only what is missing"
    sub = command("publish", _publish, about, "lazymoe publish my-moe you/my-moe --private", stopped)
    sub.add_argument("folder", metavar="FOLDER", help=f"{mixture_help}, or of its GGUF files")
    sub.add_argument("repo", metavar="USER/NAME", help="its name on the Hub; the token is HF_TOKEN or 'hf auth login'")
    sub.add_argument("--private", action="store_true", help="a new repository that only its owner can see")
    card_options(sub)
    common(sub)

    about = "make GGUF of a recipe or of a finished mixture, for llama.cpp, Ollama and LM Studio: a file for each type"
    example = "lazymoe gguf recipe.yaml Q4_K_M,Q8_0 my-moe-GGUF"
    sub = command("gguf", _gguf, about, example, "the same command goes on from here")
    about = f"{mixture_help}; or a recipe, whose mixture is made without a checkpoint between"
    sub.add_argument("given", metavar="FOLDER|RECIPE", help=about)
    sub.add_argument("types", metavar="TYPE[,TYPE...]", help="as llama-quantize names them, such as Q4_K_M")
    about = "a folder for the files, which are called as it is (default: the given name with -GGUF)"
    sub.add_argument("out", nargs="?", metavar="OUT", help=about)
    gguf_options(sub)
    made_by(sub)
    recipe_options(sub)
    common(sub)

    about = "train tiny experts, merge them and measure the result, offline, in about a minute"
    sub = command("demo", _demo, about, "lazymoe demo", "the same command begins anew with what is trained")
    sub.add_argument("folder", nargs="?", metavar="FOLDER", help="a new one, to keep the mixture in")
    common(sub)
    return parser, commands.choices


def _code(problems: Sequence[Problem]) -> int:
    """Give the exit code for what went wrong."""
    return 0 if not problems else 1 if all(p.failed for p in problems) else 2


def _size(text: str) -> int:
    match = SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " ")) if match else 0
    if size <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' isn't a size such as 4GB or 500MB")
    return size


def _warn(options: Options, problems: Iterable[Problem]) -> None:
    if not options.quiet:
        for problem in problems:
            print(f"warning: {problem}", file=sys.stderr, flush=True)


def _check(options: Options) -> Told:
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
    return Told(str(found), few, found.to_dict(), _code(found.errors))


def _merge(options: Options) -> Told:
    from lazymoe.merging import carry_out
    from lazymoe.planning.checking import judge
    from lazymoe.planning.plan import SHARD_SIZE
    from lazymoe.planning.prepared import prepare

    if not options.folder and not options.to:
        raise error("input.usage", "FOLDER", "there is none", "Name a folder, or with --to a repository on the Hub.")
    folder = absolute(options.folder or options.to.rpartition("/")[2])
    if options.gguf:
        return _merge_to_gguf(options, options.recipe, options.gguf, folder)
    prepared = prepare(
        options.recipe, shard_size=options.shard_size or SHARD_SIZE, allow_pickle=options.allow_pickle,
        source=options.source,
    )  # fmt: skip
    found = judge(prepared, folder, to_hub=bool(options.to))
    if found.errors:
        raise failure(found.errors)
    _warn(options, found.warnings)
    if found.way and found.way.remote and not options.quiet:
        why = "" if options.source == "remote" else "Models stay on the Hub, as the disk has no room for them. "
        print(f"note: {why}{found.way}", file=sys.stderr, flush=True)
    if options.to:
        return _merge_to_hub(options, prepared, folder)
    with bars(options.quiet) as progress:
        merged = carry_out(prepared, folder, seed=options.seed, device=options.device, progress=progress)
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
            progress=progress,
        )  # fmt: skip
    return Told(f"{done.url} holds it.", done.url, {"ok": True, **done.to_dict()})


def _report(options: Options) -> Told:
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


def _card(options: Options) -> Told:
    from lazymoe.cards.card import card, find_license

    problems = () if options.license else find_license(options.folder).problems
    _warn(options, () if options.json else problems)
    text = card(options.folder, options.repo, license=options.license, template=options.template).rstrip("\n")
    return Told(text, text, {"ok": True, "card": text, "warnings": [p.to_dict() for p in problems]})


def _publish(options: Options) -> Told:
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


def _gguf(options: Options) -> Told:
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


def _demo(options: Options) -> Told:
    from lazymoe.demonstration.story import demo

    with bars(options.quiet) as progress:
        result = demo(options.folder, progress=progress)
    few = str(shown(result.folder)) if result.folder else ""
    return Told(str(result), few, {"ok": True, **result.to_dict()})
