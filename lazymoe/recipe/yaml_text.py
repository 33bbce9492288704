"""YAML as people bring it: out of a chat, a model card or `json.dumps`. Read as it is meant, or refused in one line."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from lazymoe.errors import LazyMoEError, Problem, error, failure

BLANK = "\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"  # what web pages have for spaces
# where YAML wants spaces: before the first word of a line, after its dashes and its key, and at its end
LAYOUT = re.compile(rf"^[ {BLANK}]*(?:-[ {BLANK}]+)*(?:[a-z_]+[ {BLANK}]*:[ {BLANK}]+)?|[ {BLANK}]+(?=\r?$)", re.M)
FENCE = re.compile(r"\s*^ {0,3}(`{3,}|~{3,})[^\n]*$", re.MULTILINE)
SURROGATE = re.compile("[\ud800-\udfff]")
TURNS = re.compile("[\u202a-\u202e\u2066-\u2069]")  # what turns the text that follows, and so can hide what it says


def parse(text: str, where: str) -> Any:
    """Parse YAML, or JSON; of a text that is fenced as in Markdown, what is between the fences.

    Args:
        text: the YAML.
        where: how messages name it.

    Raises:
        RecipeError: if it isn't YAML, or has a key twice.
    """
    plain = _plain(text)
    try:
        loader = _Loader(plain)
        data = loader.get_single_data()
    except yaml.YAMLError as e:
        raise _unreadable(e, plain, where) from None
    except (ValueError, LookupError, AttributeError, RecursionError):  # a month 13, a tag on something else
        what = "this isn't valid YAML: it can not be parsed"
        raise error("recipe.yaml", where, what, "Check indentation, colons and quotes there.") from None
    if loader.twice:
        what, remedy = "the key '{}' stands here and in line {} too", "Keep one of the two."
        raise failure(
            [
                Problem("recipe.duplicate-key", f"{where}, line {again}", what.format(key, first), remedy)
                for key, first, again in loader.twice
            ]
        )
    return data


def write(data: Any) -> str:
    """Write data as YAML for people, its keys in the order given; what would turn the text around is escaped.

    Args:
        data: mappings, lists, texts and numbers.
    """
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """YAML's safe dumper, but that it quotes and escapes a text that turns the one around it."""

    def analyze_scalar(self, scalar: str) -> Any:
        found: Any = super().analyze_scalar(scalar)
        if TURNS.search(scalar):
            found.allow_flow_plain = found.allow_block_plain = found.allow_single_quoted = found.allow_block = False
        return found

    def write_double_quoted(self, text: str, split: bool = True) -> None:
        before = self.allow_unicode
        self.allow_unicode = before and not TURNS.search(text)
        super().write_double_quoted(text, split)
        self.allow_unicode = before


def _unreadable(e: yaml.YAMLError, text: str, where: str) -> LazyMoEError:
    """Say where a text stops being YAML, and what to do about it."""
    mark, what = getattr(e, "problem_mark", None), getattr(e, "problem", None) or getattr(e, "reason", None)
    place, remedy = where, getattr(e, "note", None) or "Check indentation, colons and quotes there."
    if mark:
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}"
        line = [*text.split("\n"), ""][mark.line]
        if "\t" in line[: len(line) - len(line.lstrip())]:
            remedy = "Indent it with spaces: YAML takes no tabs there."
    return error("recipe.yaml", place, f"this isn't valid YAML: {what or 'it can not be parsed'}", remedy)


def _plain(text: str) -> str:
    """Give a text without byte-order mark, Markdown's fences and foreign spaces in its layout; lines keep their
    numbers."""
    text = text.removeprefix("\ufeff")
    if opening := FENCE.match(text):
        rest = text[opening.end() :]
        closing = re.search(rf"^ {{0,3}}{opening[1]}", rest, re.MULTILINE)
        text = "\n" * opening[0].count("\n") + rest[: closing.start() if closing else None]
    return LAYOUT.sub(lambda found: re.sub(f"[{BLANK}]", " ", found[0]), text)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but that it sees keys that stand twice, and reads a pair of surrogates as JSON does.

    Both are looked for in the nodes, where an alias costs nothing: data made of aliases can be of any size.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.twice: list[tuple[str, int, int]] = []  # a key, and its lines

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if key.value in lines:
                    self.twice.append((key.value, lines[key.value], line))
                lines.setdefault(key.value, line)
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if SURROGATE.search(node.value):
            try:
                node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
            except UnicodeDecodeError:
                what, remedy = "of a pair such as '\\ud83e\\udde9' it has one half", "Write the character itself."
                raise yaml.MarkedYAMLError(problem=what, problem_mark=node.start_mark, note=remedy) from None
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Resolve ``<<`` and keep each key once, or merges of merges would grow with every level."""
        super().flatten_mapping(node)
        pairs: dict[Hashable, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            same = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)
            pairs.pop(same, None)
            pairs[same] = (key, value)
        node.value = list(pairs.values())
