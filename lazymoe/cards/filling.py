"""What all cards have in common: a licence, front matter, templates in a sandbox.

Whatever comes from outside (names, prompts, licences) is escaped on its way into Markdown, and the front matter is
written by `huggingface_hub.ModelCardData`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from lazymoe.cards.escaping import fence, link, on_hub, python, shell, text
from lazymoe.cards.license import KNOWN, License, strictest
from lazymoe.cards.naming import spell
from lazymoe.data import folder as data
from lazymoe.errors import error
from lazymoe.output.folder import Finished
from lazymoe.recipe.secrets import REMEDY, TOKEN, WHAT
from lazymoe.units import in_words

LANGUAGE = re.compile(r"[a-z]{2,3}")  # ISO 639


def license_of(done: Finished) -> License:
    """Find the licence that follows from the sources of an opened mixture.

    Args:
        done: the mixture.
    """
    stated = [source.license for source in done.record.sources]
    return strictest([(spell(m.reference), license) for m, license in zip(done.recipe.models, stated, strict=True)])


def refuse_token(where: str, given: str | None) -> None:
    """Look whether something that a user typed looks like a token.

    Args:
        where: how the message names it.
        given: what was typed.

    Raises:
        LazyMoEError: if it does.
    """
    if TOKEN.search(given or ""):
        raise error("input.token", where, WHAT, REMEDY)


def fill(template: Path, known: Mapping[str, Any]) -> str:
    """Fill in a template of a card.

    Args:
        template: a Jinja file.
        known: what it is given.

    Raises:
        LazyMoEError: if it can't be rendered, or something that looks like a token would stand in the card.
    """
    from jinja2 import FileSystemLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader([template.parent, data("templates")]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "text": text,
        "link": link,
        "fence": fence,
        "python": python,
        "shell": shell,
        "in_words": in_words,
    }
    try:
        written = environment.get_template(template.name).render(known)
    except Exception as e:  # a template is code: it can raise anything
        what = f"the template can't be rendered ({e or type(e).__name__})"
        raise error("input.template", template, what, "Correct it, or leave it out.") from None
    if TOKEN.search(written):
        raise error("input.token", "the card", "in it there is what looks like a Hugging Face token", REMEDY)
    return written


def front_matter(
    done: Finished,
    license: str,
    tags: Sequence[str],
    *,
    library: str | None = None,
    quantized: str | None = None,
    title: str | None = None,
    results: Sequence[Any] = (),
) -> str:
    """Write what the Hub reads of a card, as YAML.

    Args:
        done: the mixture.
        license: of it.
        tags: further ones.
        library: that loads it, as the Hub calls it.
        quantized: the Hub id of what was quantized, for a card of GGUF files; else it is a merge of its models.
        title: the model's name, where there are results.
        results: what its evaluation found, as ``huggingface_hub.EvalResult``.
    """
    from huggingface_hub import ModelCardData

    names = [part for model in done.recipe.models for part in spell(model.reference).split(" + ")]
    hub_ids = [name for name in dict.fromkeys(names) if on_hub(name)]
    stated = {code for source in done.record.sources for code in source.languages}
    named = license in (*KNOWN, "unknown", "other")
    front = ModelCardData(
        language=sorted(code for code in stated if LANGUAGE.fullmatch(code)) or None,
        license=license if named else "other",
        license_name=None if named else _slug(license),
        library_name=library,
        pipeline_tag="text-generation",
        tags=["moe", "frankenmoe", *tags, "lazymoe"],
        base_model=quantized or hub_ids or None,
        base_model_relation="quantized" if quantized else "merge" if hub_ids else None,
        model_name=title if results else None,
        eval_results=list(results) or None,
    )
    return str(front.to_yaml(line_break="\n"))


def address() -> str | None:
    """Find where LazyMoE's repository is: what its package says, if it is installed and says so."""
    try:
        urls = metadata.metadata("lazymoe").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return None
    named = dict(url.split(", ", 1) for url in urls)
    return named.get("Repository")


def _slug(license: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", license.lower()).strip("-.")[:60] or "other"
