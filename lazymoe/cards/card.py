"""The model card of a finished mixture, rendered from its folder alone: nothing is downloaded, no weight is read."""

from __future__ import annotations

import os
from typing import Any

from lazymoe.cards.filling import address, fill, front_matter, license_of, refuse_token
from lazymoe.cards.gguf_card import render_gguf
from lazymoe.cards.license import License
from lazymoe.cards.naming import spell, without_places
from lazymoe.cards.results import model_index
from lazymoe.data import folder as data
from lazymoe.files import absolute
from lazymoe.output.folder import PICTURE, Finished, Record, open_finished
from lazymoe.output.quantized import is_quantized, open_either, open_quantized
from lazymoe.quantizing.description import computes
from lazymoe.recipe.reference import Reference
from lazymoe.units import billions, gigabytes

TEMPLATE = "model_card.md.jinja"
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
    return license_of(open_either(absolute(folder)))


def card(
    folder: str | os.PathLike[str],
    repo: str | None = None,
    *,
    license: str | None = None,
    template: str | os.PathLike[str] | None = None,
) -> str:
    """Write the model card of a finished mixture, or of its GGUF files.

    Args:
        folder: the mixture's, or that of the files.
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
    if is_quantized(absolute(folder)):
        return render_gguf(open_quantized(absolute(folder)), repo, license=license, template=template)
    return render(open_finished(absolute(folder)), repo, os.fspath(folder), license=license, template=template)


def render(
    done: Finished,
    repo: str | None,
    place: str = "",
    *,
    license: str | None = None,
    template: str | os.PathLike[str] | None = None,
    gguf: str | None = None,
) -> str:
    """Write the model card of an opened mixture.

    Args:
        done: the mixture.
        repo: the Hub id it will have.
        place: what stands in the usage code if `repo` is absent.
        license, template: as in `card`.
        gguf: the Hub id of its GGUF files, if they are there.

    Raises:
        OutputError: if its architecture is none of LazyMoE's.
        LazyMoEError: if the template can't be rendered, or something that looks like a token would stand in the card.
    """
    for where, given in (("repo", repo), ("license", license)):
        refuse_token(where, given)
    chosen = (license or "").strip() or license_of(done).name
    title = repo.rpartition("/")[2] if repo else done.folder.name
    known = _known(done, chosen) | {
        "front_matter": front_matter(
            done, chosen, ["merge", done.host.name], library="transformers", title=title, results=model_index(done)
        ),
        "title": title,
        "repo": repo or place,
        "on_hub": bool(repo),
        "gguf": gguf,
    }
    return fill(absolute(template) if template else data("templates") / TEMPLATE, known)


def _known(done: Finished, license: str) -> dict[str, Any]:
    """Gather what a template is given, but for the mixture's name."""
    record, experts, routed = done.record, _experts(done), len(done.recipe.experts)
    recipe = without_places(done.recipe)
    return {
        "license": license,
        "experts": experts[:routed],
        "shared_experts": experts[routed:],
        "host": done.host,
        "in_llamacpp": computes(done.host, done.config),
        "trust": ", trust_remote_code=True" if done.host.code else "",
        "address": address(),
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
        "texts": done.carried,
        "complete": _complete(done),
        "versions": record.versions,
        "report": done.report,
        "evaluation": done.evaluation,
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


def _complete(done: Finished) -> bool:
    """Tell whether the recipe names nothing that lies on one machine only, but what lies beside it."""
    carried = done.carried
    written = all(isinstance(p, str) or p.dataset or p.file in carried for p in done.recipe.prompts)
    adapters = [Reference.parse(m.reference.adapter) for m in done.recipe.models if m.reference.adapter]
    return written and all(r.revision for r in (*(m.reference for m in done.recipe.models), *adapters))


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
