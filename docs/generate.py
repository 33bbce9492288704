"""Keep the pages true to the code, and the address of this repository in one place.

    python docs/generate.py           # write what is made: the commands in cli.md, and the address wherever it stands
    python docs/generate.py --check   # exit with 1 if a page isn't current

The commands in cli.md are made from the command line's own parser, not from argparse's help, whose layout differs from
one Python to the next. What a free Colab can make is counted as `check` does, for models of the sizes that
`planning/shapes.py` has. Which program reads which host, its record says. The codes in python.md are written by hand;
that they are all there, and no others, is checked.
REPOSITORY goes into the README's badge, the notebook's first cell and pyproject.toml; while it is empty there is none.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import lazymoe
from lazymoe import Recipe, cli
from lazymoe.architectures.hosts.generic import GENERIC
from lazymoe.architectures.registry import HOSTS
from lazymoe.data import ready_made
from lazymoe.planning.duration import Rates, with_times
from lazymoe.planning.plan import Plan
from lazymoe.planning.shapes import SHAPES, imagine
from lazymoe.planning.ways import Gguf, Way, choose, find_ways
from lazymoe.quantizing.description import ARCHITECTURES
from lazymoe.quantizing.scheme import make_scheme
from lazymoe.units import billions, gigabytes, in_words, minutes

REPOSITORY = ""  # set once: https://github.com/ with owner and name, and nothing after them

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BEGIN, END = "<!-- from here on by docs/generate.py -->\n", "<!-- up to here by docs/generate.py -->\n"
CODE = re.compile(r'\b(?:error|Problem)\(\s*"([a-z]+\.[a-z-]+)"')  # where a problem is made
ROW = re.compile(r"^\| `([a-z]+\.[a-z-]+)` \|", re.MULTILINE)  # and where python.md has it
MEMORY, DISK = 12_700_000_000, 75_000_000_000  # bytes that a free Colab has, about
LARGE = "Llama-3.1-70B"  # the shape of the models that docs/scale.md counts with, and how many experts
EXPERTS, MACHINES = 8, (2, 4, 8)
RATES = Rates(network=125e6, disk=500e6, processor=1e12)  # of one machine there, a second: bytes, bytes, operations
PRICE = 1.0  # dollars that one machine there costs an hour: assumed, and easy to multiply
ONLY = {"cohere2_moe": "without a shared expert", "glm4_moe": "with a shared expert"}  # so llama.cpp computes them
GGUF = "Q4_K_M"  # the type of GGUF file that the README tells of
COLAB = re.compile(r"^- \*\*A free Colab(?:.*\n)+?(?=- \*\*)", re.MULTILINE)
BADGE = re.compile(r"(?<=^# LazyMoE\n\n)(?:\[!\[Open in Colab\].*\n\n)?")
URLS = re.compile(r"(?:^\[project\.urls\]\n(?:.+\n)+\n)?(?=^\[project\.optional-dependencies\]$)", re.MULTILINE)
FIRST_CELL = re.compile(r'(?<=^    "repository = \\").*(?=\\"  # by docs/generate.py\\n",$)', re.MULTILINE)


def commands() -> str:
    """All commands as Markdown: for each what it does, how it is typed, its arguments and options."""
    parser, commands = cli.make_parser()
    top = [action for action in parser._actions if not isinstance(action, argparse._SubParsersAction)]
    parts = [*_table("option of `lazymoe` itself", top)]
    for name, sub in commands.items():
        parts += [f"## lazymoe {name}", "", str(sub.description), "", "```", *_usage(f"lazymoe {name}", sub), "```", ""]
        actions = [action for action in sub._actions if not isinstance(action, argparse._HelpAction)]
        parts += _table("argument", [action for action in actions if not action.option_strings])
        parts += _table("option", [action for action in actions if action.option_strings])
        parts += [f"Example: `{str(sub.epilog).removeprefix('example: ')}`", ""]
    return "\n".join(parts)


def _usage(command: str, parser: argparse.ArgumentParser) -> list[str]:
    """How a command is typed: arguments first, options below, as the tables have them."""
    words = [_typed(action) for action in parser._actions if not action.option_strings]
    return [" ".join([command, *words, "[options]"])]


def _typed(action: argparse.Action) -> str:
    """An argument or option as it is typed."""
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else "")
    if action.option_strings:
        return " ".join([action.option_strings[-1], *([str(value)] if value else [])])
    return f"[{value}]" if action.nargs == "?" else str(value)


def _table(head: str, actions: list[argparse.Action]) -> Iterator[str]:
    """A table of arguments or options, with what each means; no lines if there are none."""
    if not actions:
        return
    yield from (f"| {head} | |", "|---|---|")
    for action in actions:
        meaning = (action.help or "") % {**vars(action), "prog": "lazymoe"}
        if isinstance(action, argparse._HelpAction | argparse._VersionAction):
            meaning = {"--help": "show what there is", "--version": "print the version"}[action.option_strings[-1]]
        if action.default not in (None, False, True, "", argparse.SUPPRESS) and "default" not in meaning:
            meaning += f" (default `{action.default}`)"
        typed = _typed(action).replace("|", "\\|")
        yield f"| `{typed}` | {meaning} |"
    yield ""


def codes() -> set[str]:
    """The codes of all problems that the package makes."""
    package = Path(str(lazymoe.__file__)).parent
    return {code for path in package.rglob("*.py") for code in CODE.findall(path.read_text(encoding="utf-8"))}


def with_commands(page: str) -> str:
    """cli.md with the commands as they are."""
    return _between(page, commands())


def shape_of(recipe: Recipe) -> str:
    """The shape of a ready-made recipe's models, by its base model's name; those that say nothing are Mistrals."""
    return next((shape for shape in SHAPES if shape.lower() in recipe.base_model.lower()), "Mistral-7B")


def on_colab() -> dict[str, tuple[Plan, Way, Way]]:
    """What each ready-made recipe is on a free Colab: its plan, the chosen way, and the one that takes least disk."""
    found = {}
    for name in ready_made():
        recipe = Recipe.from_file(name)
        prepared = imagine(recipe, SHAPES[shape_of(recipe)], ROOT)
        plan = prepared.sound_plan
        ways = find_ways(prepared, plan, ROOT, DISK, MEMORY)
        way = choose(ways)
        assert way and way.memory < MEMORY, f"{name} doesn't fit: the README must say so"
        found[name] = plan, way, min(ways, key=lambda way: way.disk)
    return found


def with_colab(readme: str) -> str:
    """README.md with what a free Colab can make."""
    found = on_colab()
    kept = {name: made for name, made in found.items() if not made[1].to_hub}  # where it is made
    name, (plan, way, least) = max(kept.items(), key=lambda item: (item[1][0].parameters, item[1][1].brought))
    shapes = {output.name: output.shape for output in plan.outputs}
    size = sum(make_scheme(plan.host, plan.config, shapes, [GGUF], False, ROOT).sizes(GGUF).values())
    quantized = Gguf({GGUF: size}, size)
    prepared = imagine(Recipe.from_file(name), SHAPES[shape_of(Recipe.from_file(name))], ROOT)
    as_gguf = min(find_ways(prepared, plan, ROOT, DISK, MEMORY, quantized), key=lambda way: way.disk)
    words = (
        f"- **A free Colab can make a 4x7B**, and all {in_words(len(found))} [ready-made recipes]"
        f"(docs/recipe.md#ready-made-recipes), with {gigabytes(MEMORY)} of memory and {DISK // 10**9} GB of disk. By "
        f"`check`'s count `{name}`, of {billions(plan.parameters)} parameters, is made in {gigabytes(way.memory)} of "
        f"memory and {gigabytes(way.disk)} of disk{way.how}; {gigabytes(least.disk)} will do straight to the Hub, "
        f"{gigabytes(as_gguf.disk)} straight to a `{GGUF}` of {gigabytes(quantized.nbytes)}."
    )
    return _put(COLAB, textwrap.fill(words, 120, subsequent_indent="  ", break_on_hyphens=False) + "\n", readme)


def with_recipes(page: str) -> str:
    """recipe.md with what each ready-made recipe takes on a free Colab."""
    lines = ["| | parameters | from the Hub | disk | memory | it can be merged |", "|---|--:|--:|--:|--:|---|"]
    for name, (plan, way, _) in sorted(on_colab().items(), key=lambda item: -item[1][0].parameters):
        figures = (billions(plan.parameters), *map(gigabytes, (way.brought, way.disk, way.memory)))
        lines.append(f"| `{name}` | {' | '.join(figures)} |{way.how or ' with its models downloaded'} |")
    return _between(page, "\n".join([*lines, ""]))


def with_scale(page: str) -> str:
    """scale.md with what a large mixture takes, on one machine and on several."""
    prompts = [
        f"Explain to me in {i} sentences how this part of the trade is done by those who know it." for i in range(5)
    ]
    experts = [{"source_model": f"org/expert-{i}", "positive_prompts": prompts} for i in range(EXPERTS)]
    prepared = imagine(Recipe.model_validate({"base_model": "org/base", "experts": experts}), SHAPES[LARGE], ROOT)
    plan = prepared.sound_plan

    def counted(machines: int) -> tuple[Way, ...]:
        rates = Rates(RATES.network * machines, RATES.disk, RATES.processor * machines)
        return with_times(find_ways(prepared, plan, ROOT, 10**13, 10**12), prepared, plan, rates)

    def dollars(seconds: float | None, machines: int = 1) -> str:
        return f"${PRICE * machines * (seconds or 0) / 3600:.2f}"

    price = f"at ${PRICE:g} an hour"
    lines = [f"| | from the Hub | to the Hub | disk | memory | time | to upload | {price} |", f"|---|{'--:|' * 7}"]
    for way in counted(1):
        figures = way.figures()
        del figures["fits"]
        words = [way.how.strip() or "with its models downloaded", *figures.values()]
        lines.append(f"| {' | '.join(words)} | {dollars(max(way.seconds or 0, way.upload_seconds or 0))} |")
    lines += ["", f"| machines that read and compute | time | {price} each |", "|---|--:|--:|"]
    for machines in (1, *MACHINES):
        seconds = counted(machines)[1].seconds
        lines.append(f"| {machines} | {minutes(seconds or 0)} | {dollars(seconds, machines)} |")
    said = f"{EXPERTS} experts of {LARGE}, {billions(plan.parameters)} parameters, {gigabytes(plan.nbytes)}:"
    return _between(page, "\n".join([said, "", *lines, ""]))


def with_programs(page: str) -> str:
    """hosts.md with which program reads what of each host."""
    lines = ["| | transformers | vLLM | llama.cpp, Ollama, LM Studio |", "|---|---|---|---|"]
    for host in (*HOSTS, GENERIC):
        versions = "5" if host.since == "5" else "4.57, 5"
        code = " with `trust_remote_code`" if host.code else ""
        there = ONLY.get(host.name, "yes") if host.name in ARCHITECTURES else ""
        lines.append(f"| `{host.name}` | {versions}{code} | {'yes' * host.vllm} | {there} |")
    return _between(page, "\n".join([*lines, ""]))


def _between(page: str, made: str) -> str:
    """A page with something put between its two marks."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return before + BEGIN + "\n" + made + "\n" + END + after


def with_badge(readme: str) -> str:
    """README.md with the badge that opens the notebook in Colab, if the address is known."""
    opened = REPOSITORY.replace("https://github.com/", "https://colab.research.google.com/github/")
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    badge = f"[![Open in Colab]({image})]({opened}/blob/main/LazyMoE.ipynb)\n\n"
    return _put(BADGE, badge if REPOSITORY else "", readme)


def with_urls(pyproject: str) -> str:
    """pyproject.toml with the addresses that a package index shows."""
    pages = {
        "Repository": "",
        "Documentation": "/blob/main/docs/index.md",
        "Changelog": "/blob/main/CHANGELOG.md",
        "Issues": "/issues",
    }
    lines = "".join(f'{name} = "{REPOSITORY}{page}"\n' for name, page in pages.items())
    return _put(URLS, f"[project.urls]\n{lines}\n" if REPOSITORY else "", pyproject)


def with_address(notebook: str) -> str:
    """LazyMoE.ipynb with the address in its first cell: where LazyMoE is, for a notebook that lies alone."""
    return _put(FIRST_CELL, REPOSITORY, notebook)


def _put(place: re.Pattern[str], made: str, page: str) -> str:
    """A page with something put in its one place."""
    text, places = place.subn(lambda _: made, page, count=1)
    assert places == 1, place.pattern
    return text


MADE: dict[str, Callable[[str], str]] = {
    "docs/cli.md": with_commands,
    "docs/hosts.md": with_programs,
    "docs/recipe.md": with_recipes,
    "docs/scale.md": with_scale,
    "README.md": lambda page: with_colab(with_badge(page)),
    "pyproject.toml": with_urls,
    "LazyMoE.ipynb": with_address,
}


def main() -> int:
    """Write what is made, or check; the exit code."""
    parser = argparse.ArgumentParser(description="Keep the pages true to the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page isn't current")
    only_check = parser.parse_args().check

    told = []
    for name, make in MADE.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        current = make(text)
        if current != text and only_check:
            told.append(f"{name} isn't current. Run: python docs/generate.py")
        elif current != text:
            (ROOT / name).write_text(current, encoding="utf-8")
    made, listed = codes(), ROW.findall((DOCS / "python.md").read_text(encoding="utf-8"))
    told += [f"docs/python.md lacks the code {code}" for code in sorted(made - set(listed))]
    told += [f"docs/python.md has the code {code}, which nothing gives" for code in sorted(set(listed) - made)]
    told += [f"docs/python.md has the code {code} twice" for code in sorted(set(listed)) if listed.count(code) > 1]
    print("\n".join(told), end="\n" * bool(told), file=sys.stderr)
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
