"""The command line: ``lazymoe check | merge | report | card | publish | demo``. Parses, calls, prints; nothing else."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lazymoe.assets import ready_made, recipe_file
from lazymoe.check import billions, check
from lazymoe.demo import demo
from lazymoe.errors import LazyMoEError, Problem
from lazymoe.merge import merge
from lazymoe.progress import bars
from lazymoe.recipe import Recipe
from lazymoe.version import __version__

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?", re.IGNORECASE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code is 0, or 2 for a mistake that the user can mend, or 130 when interrupted."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except LazyMoEError as e:
        for problem in e.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("lazymoe", description="Make a mixture of experts out of fine-tuned LLMs.")
    parser.add_argument("--version", action="version", version=f"lazymoe {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], int | None], about: str, example: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=about, description=about[0].upper() + about[1:] + ".", epilog=f"example: {example}"
        )
        sub.set_defaults(run=run)
        return sub

    mixture_help = "the folder of a mixture that 'lazymoe merge' made"
    recipe_help = f"a mergekit-moe YAML file, or one of: {', '.join(ready_made())}"

    def recipe_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--shard-size", type=_size, default="4GB", metavar="SIZE", help="largest output file (default 4GB)"
        )
        sub.add_argument("--allow-pickle", action="store_true", help="also take .bin weights, of authors you trust")

    sub = command(
        "check",
        _check,
        "tell whether a recipe can work and what it takes, before anything large is downloaded",
        "lazymoe check recipe.yaml",
    )
    sub.add_argument("recipe", metavar="RECIPE", help=recipe_help)
    sub.add_argument(
        "out", nargs="?", default=".", metavar="OUT", help="where the output would go, to measure its disk"
    )
    sub.add_argument("--json", action="store_true", help="print it for programs")
    recipe_options(sub)

    sub = command(
        "merge", _merge, "make the mixture of experts that a recipe describes", "lazymoe merge recipe.yaml my-moe"
    )
    sub.add_argument("recipe", metavar="RECIPE", help=recipe_help)
    sub.add_argument("out", metavar="OUT", help="a new folder; or one where this merge was interrupted, to go on there")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="for random routers and noise (default 0)")
    sub.add_argument("--device", metavar="NAME", help="where routers are computed (default: cuda if there is one)")
    recipe_options(sub)

    sub = command(
        "report",
        _report,
        "measure a finished mixture: who gets which token, and is it any good",
        "lazymoe report my-moe --texts held-out.yaml",
    )
    sub.add_argument("out", metavar="OUT", help=mixture_help)
    sub.add_argument("--texts", type=Path, metavar="FILE", help="YAML: for each expert a list of texts to measure on")
    sub.add_argument("--routing", action="store_true", help="measure the routing alone, without running the experts")
    sub.add_argument("--device", metavar="NAME", help="where to compute (default: cuda if there is one)")
    sub.add_argument("--json", action="store_true", help="print it for programs")

    def card_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--license", metavar="NAME", help="of the mixture (default: its sources' strictest)")
        sub.add_argument("--template", type=Path, metavar="FILE", help="a Jinja template to use instead of LazyMoE's")

    sub = command(
        "card", _card, "print the model card of a finished mixture", "lazymoe card my-moe --repo you/my-moe > card.md"
    )
    sub.add_argument("out", metavar="OUT", help=mixture_help)
    sub.add_argument("--repo", metavar="USER/NAME", help="the name it will have on the Hub")
    card_options(sub)

    sub = command(
        "publish",
        _publish,
        "put a finished mixture on the Hugging Face Hub, with its card; again after a change",
        "lazymoe publish my-moe you/my-moe --private",
    )
    sub.add_argument("out", metavar="OUT", help=mixture_help)
    sub.add_argument("repo", metavar="USER/NAME", help="its name on the Hub; the token is HF_TOKEN or 'hf auth login'")
    sub.add_argument("--private", action="store_true", help="a new repository that only its owner can see")
    card_options(sub)

    sub = command(
        "demo",
        _demo,
        "train tiny experts, merge them and measure the result, offline, in about a minute",
        "lazymoe demo",
    )
    sub.add_argument("out", nargs="?", metavar="OUT", help="keep the merged model in this new folder")
    return parser


def _size(text: str) -> int:
    match = SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " ")) if match else 0
    if size <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' isn't a size such as 4GB or 500MB")
    return size


def _warn(problems: Iterable[Problem]) -> None:
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)


def _check(options: argparse.Namespace) -> int:
    recipe = Recipe.from_yaml(recipe_file(options.recipe))
    found = check(recipe, options.out, shard_size=options.shard_size, allow_pickle=options.allow_pickle)
    print(json.dumps(found.to_dict(), indent=2) if options.json else found)
    return 2 if found.errors else 0


def _merge(options: argparse.Namespace) -> None:
    recipe = Recipe.from_yaml(recipe_file(options.recipe))
    given = {key: getattr(options, key) for key in ("seed", "shard_size", "allow_pickle", "device")}
    with bars() as progress:
        merged = merge(recipe, options.out, **given, progress=progress)
    _warn(merged.warnings)
    plan, folder = merged.plan, options.out
    trust = ", trust_remote_code=True" if plan.family.code else ""
    print(f"""
{folder} holds a {plan.config["architectures"][0]} with {plan.experts} experts, {plan.top_k} of them for each token.
It has {billions(plan.parameters)} parameters, {billions(plan.active_parameters)} active per token; \
every tensor was checked against the plan. To use it:

  from transformers import AutoModelForCausalLM, AutoTokenizer
  model = AutoModelForCausalLM.from_pretrained("{folder}", dtype="auto"{trust})
  tokenizer = AutoTokenizer.from_pretrained("{folder}")
""")


def _report(options: argparse.Namespace) -> None:
    from lazymoe.report import read_texts, report

    texts = read_texts(options.texts) if options.texts else None
    with bars() as progress:
        found = report(options.out, texts, losses=not options.routing, device=options.device, progress=progress)
    found.save(options.out)
    print(json.dumps(found.to_dict(), indent=2) if options.json else found)


def _card(options: argparse.Namespace) -> None:
    from lazymoe.card import find_license, render

    _warn(() if options.license else find_license(options.out).problems)
    print(render(options.out, options.repo, license=options.license, template=options.template), end="")


def _publish(options: argparse.Namespace) -> None:
    from lazymoe.card import find_license
    from lazymoe.publish import publish

    _warn(() if options.license else find_license(options.out).problems)
    given = {key: getattr(options, key) for key in ("private", "license", "template")}
    with bars() as progress:
        url = publish(options.out, options.repo, **given, progress=progress)
    print(f"\n{url}")


def _demo(options: argparse.Namespace) -> None:
    with bars() as progress:
        result = demo(options.out, progress=progress)
    print(result)
