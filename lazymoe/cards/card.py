"""The model card of a finished mixture, rendered from its folder alone: nothing is downloaded, no weight is read.

Whatever comes from outside (names, prompts, licences) is escaped on its way into Markdown, and the front matter is
written by `huggingface_hub.ModelCardData`.
"""

from __future__ import annotations

import os
import re
from importlib import metadata
from typing import Any

from lazymoe.cards.escaping import fence, link, on_hub, python, shell, text
from lazymoe.cards.license import KNOWN, License, strictest
from lazymoe.cards.naming import spell, without_places
from lazymoe.data import folder as data
from lazymoe.errors import error
from lazymoe.files import absolute
from lazymoe.output.folder import PICTURE, Finished, Record, open_finished
from lazymoe.recipe.reference import Reference
from lazymoe.recipe.secrets import REMEDY, TOKEN, WHAT
from lazymoe.units import billions, gigabytes, in_words

TEMPLATE = "model_card.md.jinja"
LANGUAGE = re.compile(r"[a-z]{2,3}")  # ISO 639
LONGEST = 120  # letters of a prompt that are shown
SHOWN = 5  # prompts of an expert that are shown


def find_license(folder: str | os.PathLike[str]) -> License:
    """Find the licence that follows from the sources of a finished mixture, and what is doubtful about it.

    Args:
        folder: the mixture's.

    Raises:
        OutputError: if the folder isn't a finished mixture.
        RecipeError: if the recipe in it can't be read.
    """
    return _license(open_finished(absolute(folder)))


def _license(done: Finished) -> License:
    stated = [source.license for source in done.record.sources]
    return strictest([(spell(m.reference), license) for m, license in zip(done.recipe.models, stated, strict=True)])


def card(
    folder: str | os.PathLike[str],
    repo: str | None = None,
    *,
    license: str | None = None,
    template: str | os.PathLike[str] | None = None,
) -> str:
    """Write the model card of a finished mixture.

    Args:
        folder: the mixture's.
        repo: the Hub id it will have; its folder's path stands in the usage code if absent.
        license: any text; by default what `find_license` finds.
        template: a Jinja file to use instead of LazyMoE's; it is given the same names.

    Returns:
        The card, as Markdown with front matter.

    Raises:
        OutputError: if the folder isn't a finished mixture.
        RecipeError: if the recipe in it can't be read.
        LazyMoEError: if the template can't be rendered.
    """
    return render(open_finished(absolute(folder)), repo, os.fspath(folder), license=license, template=template)


def render(
    done: Finished,
    repo: str | None,
    place: str = "",
    *,
    license: str | None = None,
    template: str | os.PathLike[str] | None = None,
) -> str:
    """Write the model card of an opened mixture.

    Args:
        done: the mixture.
        repo: the Hub id it will have.
        place: what stands in the usage code if `repo` is absent.
        license, template: as in `card`.

    Raises:
        OutputError: if its architecture is none of LazyMoE's.
        LazyMoEError: if the template can't be rendered, or something that looks like a token would stand in the card.
    """
    from jinja2 import FileSystemLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    for where, given in (("repo", repo), ("license", license)):
        if TOKEN.search(given or ""):
            raise error("input.token", where, WHAT, REMEDY)
    chosen = (license or "").strip() or _license(done).name
    path = absolute(template) if template else data("templates") / TEMPLATE
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader([path.parent, data("templates")]),
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
    known = _known(done, chosen) | {
        "title": repo.rpartition("/")[2] if repo else done.folder.name,
        "repo": repo or place,
        "on_hub": bool(repo),
    }
    try:
        written = environment.get_template(path.name).render(known)
    except Exception as e:  # a template is code: it can raise anything
        what = f"the template can't be rendered ({e or type(e).__name__})"
        raise error("input.template", path, what, "Correct it, or leave it out.") from None
    if TOKEN.search(written):
        raise error("input.token", "the card", "in it there is what looks like a Hugging Face token", REMEDY)
    return written


def _known(done: Finished, license: str) -> dict[str, Any]:
    """Gather what a template is given, but for the mixture's name."""
    record, experts, routed = done.record, _experts(done), len(done.recipe.experts)
    recipe = without_places(done.recipe)
    return {
        "front_matter": _front_matter(done, license),
        "license": license,
        "experts": experts[:routed],
        "shared_experts": experts[routed:],
        "host": done.host,
        "trust": ", trust_remote_code=True" if done.host.code else "",
        "address": _address(),
        "base": spell(done.recipe.models[0].reference),
        "recipe": recipe,
        "recipe_yaml": recipe.to_yaml(),
        "top_k": record.experts_per_token,
        "shared": record.shared_weights,
        "computed": _computed(done),
        "stays": any(not expert.positive_prompts for expert in done.recipe.experts),
        "parameters": billions(record.parameters),
        "active": billions(record.active_parameters),
        "size": gigabytes(record.bytes),
        "memory_16bit": gigabytes(record.bytes_16bit),
        "memory_4bit": gigabytes(record.bytes_4bit),
        "command": _command(record),
        "complete": _complete(done),
        "versions": record.versions,
        "report": done.report,
        "picture": PICTURE if done.report and (done.folder / PICTURE).is_file() else None,
        "chats": done.chats,
    }


def _computed(done: Finished) -> str | None:
    """Spell what part of an expert's weights is computed; None if none is."""
    if done.recipe.expert_weights == "own":
        return None
    roles = {role for words in done.host.experts.values() for role in words.split() if not role.endswith("_bias")}
    return {2: "half", 3: "a third"}.get(len(roles), "a part")


def _command(record: Record) -> str:
    """Spell the command that makes such a mixture."""
    seed = f" --seed {record.seed}" if record.seed else ""
    return f"lazymoe merge recipe.yaml my-moe{seed}{' --allow-pickle' * record.allow_pickle}"


def _address() -> str | None:
    """Find where LazyMoE's repository is: what its package says, if it is installed and says so."""
    try:
        urls = metadata.metadata("lazymoe").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return None
    named = dict(url.split(", ", 1) for url in urls)
    return named.get("Repository")


def _complete(done: Finished) -> bool:
    """Tell whether the recipe names nothing that lies on one machine only."""
    prompts = [p for e in done.recipe.every_expert for p in (e.positive_prompts or []) + (e.negative_prompts or [])]
    written = all(isinstance(p, str) or p.dataset for p in prompts)
    adapters = [Reference.parse(m.reference.adapter) for m in done.recipe.models if m.reference.adapter]
    return written and all(r.revision for r in (*(m.reference for m in done.recipe.models), *adapters))


def _front_matter(done: Finished, license: str) -> str:
    """Write what the Hub reads of a card, as YAML."""
    from huggingface_hub import ModelCardData

    names = [part for model in done.recipe.models for part in spell(model.reference).split(" + ")]
    hub_ids = [name for name in dict.fromkeys(names) if on_hub(name)]
    stated = {code for source in done.record.sources for code in source.languages}
    named = license in (*KNOWN, "unknown", "other")
    front = ModelCardData(
        language=sorted(code for code in stated if LANGUAGE.fullmatch(code)) or None,
        license=license if named else "other",
        license_name=None if named else _slug(license),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["moe", "frankenmoe", "merge", done.host.name, "lazymoe"],
        base_model=hub_ids or None,
        base_model_relation="merge" if hub_ids else None,
    )
    return str(front.to_yaml(line_break="\n"))


def _experts(done: Finished) -> list[dict[str, Any]]:
    """Gather what a card says of each expert; the shared ones, which every token passes, come last."""
    shares = [0.0] * len(done.recipe.experts)
    if done.report:  # mean_shares is [D][E]
        shares = [sum(column) / len(column) for column in zip(*done.report["mean_shares"], strict=True)]
    every = zip(
        without_places(done.recipe).every_expert,
        done.recipe.models[1:],
        done.record.sources[1:],
        [*shares, *[1.0] * len(done.recipe.shared_experts or [])],
        strict=True,
    )
    return [
        {
            "model": spell(model.reference),
            "prompts": _prompts(expert.positive_prompts or []),
            "license": source.license or "unknown",
            "share": f"{share:.0%}",
        }
        for expert, model, source, share in every
    ]


def _prompts(prompts: list[Any]) -> list[str]:
    """List the first prompts of an expert, shortened; for files and data sets, their names."""
    shown = [p if isinstance(p, str) else f"texts of {p.dataset or p.file}" for p in prompts]
    shown = [p if len(p) <= LONGEST else p[: LONGEST - 1] + "…" for p in shown]
    return shown[:SHOWN] + ["…"] * (len(shown) > SHOWN)


def _slug(license: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", license.lower()).strip("-.")[:60] or "other"
