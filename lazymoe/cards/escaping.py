"""Whatever comes from outside (names, prompts, licences) on its way into Markdown and code."""

from __future__ import annotations

import json
import re
import shlex

from lazymoe.files import writable
from lazymoe.recipe.reference import HUB_ID
from lazymoe.recipe.yaml_text import TURNS

ASCII_MARKUP = re.compile(r"([\\`*_{}\[\]()#~|$])")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # what a terminal would obey


def text(value: object) -> str:
    """Escape any text into Markdown that shows it and nothing else, on one line.

    Args:
        value: what to show; taken as ``str`` gives it.
    """
    line = (
        TURNS.sub("", CONTROL.sub("", writable(" ".join(str(value).split()))))
        .replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
    )
    line = ASCII_MARKUP.sub(r"\\\1", line)
    return line.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")


def link(model: str) -> str:
    """Spell a model's name in Markdown, as a link to its page if it is on the Hub; with an adapter, both.

    Args:
        model: the name; ``model + adapter`` where there is an adapter.
    """
    linked = []
    for part in model.split(" + "):
        linked.append(f"[{text(part)}](https://huggingface.co/{part})" if on_hub(part) else text(part))
    return " + ".join(linked)


def fence(code: str, language: str = "") -> str:
    """Write a code block in Markdown that nothing in the code can close.

    Args:
        code: what is in it.
        language: the language of the code.
    """
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{code.rstrip()}\n{ticks}"


def python(value: str) -> str:
    """Spell a text as Python code.

    Args:
        value: the text.
    """
    return json.dumps(writable(value), ensure_ascii=False)


def shell(value: str) -> str:
    """Spell a text as one word for a shell.

    Args:
        value: the text.
    """
    return shlex.quote(CONTROL.sub("", writable(value)))


def on_hub(name: str) -> bool:
    """Tell whether a name can be that of a model on the Hub.

    Args:
        name: the name, such as ``org/name``.
    """
    return bool(HUB_ID.fullmatch(name)) and "/" in name
