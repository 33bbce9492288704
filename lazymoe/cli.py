"""The command line: ``lazymoe check | merge | report | evaluate | card | publish | gguf | demo``: parse, call, print.

What each of them does is in `commands`. What was asked for goes to stdout, in words or with ``--json`` as JSON, errors
included; progress, warnings and hints go to stderr, where ``--quiet`` leaves them out. The exit code is 0, or 2 for
what the user can mend, 1 for what failed all the same (the network, the disk), 130 when interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from lazymoe import commands, elsewhere
from lazymoe.data import ready_made
from lazymoe.errors import LazyMoEError, error, nearest
from lazymoe.evaluating.suites import KINDS, SUITES
from lazymoe.told import Options, Told, exit_code
from lazymoe.units import bytes_of
from lazymoe.version import __version__

PLACES = {  # of --on: what may be said of each, and how that looks
    "hf-jobs": ("FLAVOR", "cpu-upgrade"),
    "ray": ("ADDRESS", "10.0.0.1:6379"),
}


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
            code = exit_code(e.problems)
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
    parser, parsers = make_parser()
    if not arguments:
        parser.print_help()
        return 0
    if arguments[0].startswith("-"):
        _, unknown = parser.parse_known_args(arguments, options)
    elif arguments[0] in parsers:  # words and options in any order
        found, unknown = parsers[arguments[0]].parse_known_intermixed_args(arguments[1:])
        vars(options).update(vars(found))
    else:
        what = f"there is no command '{arguments[0]}'"
        raise error("input.usage", "lazymoe", what, nearest(arguments[0], list(parsers)))
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
    parsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[Options], Told], about: str, example: str, stopped: str
    ) -> argparse.ArgumentParser:
        about_it = f"{about[0].upper()}{about[1:]}."
        sub = parsers.add_parser(name, help=about, description=about_it, epilog=f"example: {example}")
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
        source_option(sub)

    def source_option(sub: argparse.ArgumentParser) -> None:
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

    def place(sub: argparse.ArgumentParser, there: Callable[[Options], Told], about: str, *here: str) -> None:
        known = ("hf-jobs", *here)
        metavar = "|".join(f"{name}[:{PLACES[name][0]}]" for name in known)
        sub.add_argument("--on", type=partial(_machine, known), metavar=metavar, help=about)
        sub.set_defaults(run=partial(_placed, sub.get_default("run"), there), yes=False, stop=False)

    def rented(sub: argparse.ArgumentParser, there: Callable[[Options], Told], where: str = "", *here: str) -> None:
        about = "on a machine rented from Hugging Face, at a price you are asked about (default: the cheapest)"
        place(sub, there, f"{where}{about}", *here)
        sub.add_argument("--yes", action="store_true", help="agree to the price of --on hf-jobs")
        sub.add_argument("--stop", action="store_true", help="stop what --on hf-jobs has started")

    about = "tell whether a recipe can work and what it takes, before anything large is downloaded"
    sub = command("check", commands.check, about, "lazymoe check recipe.yaml", "nothing was written")
    sub.add_argument("recipe", metavar="RECIPE", help=recipe_help)
    sub.add_argument(
        "folder", nargs="?", default=".", metavar="FOLDER", help="where the mixture would go, to measure its disk"
    )
    sub.add_argument("--gguf", metavar="TYPE[,TYPE...]", help="check what GGUF files of these types would take")
    about = "say which machine of Hugging Face is the cheapest that is large enough, and its price; none is rented"
    place(sub, elsewhere.check, about)
    matrix_options(sub)
    recipe_options(sub)
    common(sub)

    about = "make the mixture of experts that a recipe describes"
    stopped = "the same command goes on from here"
    sub = command("merge", commands.merge, about, "lazymoe merge recipe.yaml my-moe", stopped)
    sub.add_argument("recipe", metavar="RECIPE", help=recipe_help)
    sub.add_argument(
        "folder", nargs="?", metavar="FOLDER", help="a new one; or one where this merge was interrupted, to go on"
    )
    sub.add_argument("--to", metavar="USER/NAME", help="put it on the Hub; nothing stays in FOLDER, default NAME")
    sub.add_argument("--private", action="store_true", help="a new repository of --to: only you can see it")
    rented(sub, elsewhere.merge, "on a Ray cluster's machines; or with --to ", "ray")
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
    sub = command("report", commands.report, about, example, "nothing was saved, and the mixture is as it was")
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

    about = "compare a finished mixture with its parts on benchmarks, by EleutherAI's lm-eval"
    example = "lazymoe evaluate my-moe --tasks arc_easy,hellaswag --limit 100"
    sub = command("evaluate", commands.evaluate, about, example, "the same command goes on from here")
    sub.add_argument("folder", metavar="FOLDER", help=f"{mixture_help}; with --on hf-jobs a published one, USER/NAME")
    about = "lm-eval's, NAME:5 for five examples in the prompt; JSONL files of questions; suites: "
    sub.add_argument("--tasks", default="", metavar="NAME[,NAME...]", help=f"{about}{', '.join(SUITES)}")
    sub.add_argument("--limit", type=int, metavar="N", help="only the first N questions of each task")
    about = f"who is asked (default: {','.join(KINDS)})"
    sub.add_argument("--models", default=",".join(KINDS), metavar="KIND[,KIND...]", help=about)
    about = "YAML: for each expert a list of texts, to measure bits for each byte"
    sub.add_argument("--texts", type=Path, metavar="FILE", help=about)
    about = "for what goes through a layer together (default: a quarter of what is free)"
    sub.add_argument("--memory", type=_size, metavar="SIZE", help=about)
    sub.add_argument("--device", metavar="NAME", help="where to compute (default: cuda if there is one)")
    source_option(sub)
    rented(sub, elsewhere.evaluate, "on a Ray cluster's machines; or ", "ray")
    common(sub)

    about = "print the model card of a finished mixture, or of its GGUF files"
    sub = command(
        "card", commands.card, about, "lazymoe card my-moe --repo you/my-moe > card.md", "nothing was written"
    )
    sub.add_argument("folder", metavar="FOLDER", help=f"{mixture_help}, or of its GGUF files")
    sub.add_argument("--repo", metavar="USER/NAME", help="the name it will have on the Hub")
    card_options(sub)
    common(sub)

    about = "put a finished mixture, or its GGUF files, on the Hugging Face Hub, with a card; again after a change"
    stopped = "nothing half-made is visible, and the same command sends only what is missing"
    sub = command("publish", commands.publish, about, "lazymoe publish my-moe you/my-moe --private", stopped)
    sub.add_argument("folder", metavar="FOLDER", help=f"{mixture_help}, or of its GGUF files")
    sub.add_argument("repo", metavar="USER/NAME", help="its name on the Hub; the token is HF_TOKEN or 'hf auth login'")
    sub.add_argument("--private", action="store_true", help="a new repository that only its owner can see")
    card_options(sub)
    common(sub)

    about = "make GGUF of a recipe or of a finished mixture, for llama.cpp, Ollama and LM Studio: a file for each type"
    example = "lazymoe gguf recipe.yaml Q4_K_M,Q8_0 my-moe-GGUF"
    sub = command("gguf", commands.gguf, about, example, "the same command goes on from here")
    about = f"{mixture_help}; or a recipe, whose mixture is made without a checkpoint between"
    sub.add_argument("given", metavar="FOLDER|RECIPE", help=about)
    sub.add_argument("types", metavar="TYPE[,TYPE...]", help="as llama-quantize names them, such as Q4_K_M")
    about = "a folder for the files, which are called as it is (default: the given name with -GGUF)"
    sub.add_argument("out", nargs="?", metavar="OUT", help=about)
    sub.add_argument("--to", metavar="USER/NAME", help="of a recipe: put them on the Hub; nothing stays in OUT")
    sub.add_argument("--private", action="store_true", help="a new repository of --to: only you can see it")
    rented(sub, elsewhere.gguf, "of a recipe: on a Ray cluster's machines; or with --to ", "ray")
    gguf_options(sub)
    made_by(sub)
    recipe_options(sub)
    common(sub)

    about = "train tiny experts, merge them and measure the result, offline, in about a minute"
    sub = command("demo", commands.demo, about, "lazymoe demo", "the same command begins anew with what is trained")
    sub.add_argument("folder", nargs="?", metavar="FOLDER", help="a new one, to keep the mixture in")
    common(sub)
    return parser, parsers.choices


def _placed(here: Callable[[Options], Told], there: Callable[[Options], Told], options: Options) -> Told:
    """Run a command here, or on a rented machine there."""
    if options.on and options.on.startswith("hf-jobs"):
        return there(options)
    if options.yes or options.stop:
        option = "--yes" if options.yes else "--stop"
        raise error("input.usage", option, "there is no --on hf-jobs", "Add --on hf-jobs, or leave it out.")
    return here(options)


def _size(text: str) -> int:
    size = bytes_of(text)
    if size <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' isn't a size such as 4GB or 500MB")
    return size


def _machine(known: Sequence[str], text: str) -> str:
    place, colon, detail = text.partition(":")
    if place not in known or bool(colon) != bool(detail):
        forms = (f"{name}, or {name}:{PLACES[name][0]} such as {name}:{PLACES[name][1]}" for name in known)
        raise argparse.ArgumentTypeError(f"'{text}' isn't {', '.join(forms)}")
    return text
