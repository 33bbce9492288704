"""The model card of a finished mixture, rendered from its folder alone: nothing is downloaded, no weight is read.

Whatever comes from outside (names, prompts, licences) is escaped on its way into Markdown, and the front matter is
written by `huggingface_hub.ModelCardData`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lazymoe.assets import folder as assets
from lazymoe.check import absolute, billions, gigabytes
from lazymoe.errors import error
from lazymoe.families import FAMILIES
from lazymoe.license import KNOWN, License, strictest
from lazymoe.merge import RECIPE, RECORD, is_finished
from lazymoe.recipe import Recipe, Reference
from lazymoe.report import FILE, PICTURE
from lazymoe.source import HUB_ID

TEMPLATE = "model_card.md.jinja"
LANGUAGE = re.compile(r"[a-z]{2,3}")  # ISO 639
LONGEST = 120  # letters of a prompt that are shown
SHOWN = 5  # prompts of an expert that are shown
ASCII_MARKUP = re.compile(r"([\\`*_{}\[\]()#~|$])")


@dataclass(frozen=True)
class Finished:
    """What a finished mixture's folder says of it.

    Attributes:
        folder: where it is.
        recipe: with revisions pinned to commits.
        record: of the merge: versions, seed, sizes, the sources' licences.
        config: its config.json.
        report: its report.json; empty if it wasn't measured.
        chats: whether its tokenizer has a chat template.
    """

    folder: Path
    recipe: Recipe
    record: dict[str, Any]
    config: dict[str, Any]
    report: dict[str, Any]
    chats: bool


def open_finished(folder: str | Path) -> Finished:
    """Read what a finished mixture says of itself.

    Raises:
        LazyMoEError: if the folder isn't one.
    """
    folder = absolute(folder)
    if not is_finished(folder):
        raise error(folder, "this isn't a finished mixture", "Name a folder that 'lazymoe merge' has completed.")
    try:
        record, config, tokenizer, report = (
            json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            for file in (folder / name for name in (RECORD, "config.json", "tokenizer_config.json", FILE))
        )
        chats = (folder / "chat_template.jinja").is_file() or bool(tokenizer.get("chat_template"))
        return Finished(folder, Recipe.from_yaml(folder / RECIPE), record, config, report, chats)
    except (OSError, ValueError, AttributeError) as e:
        raise error(folder, f"its files can't be read ({e})", "Delete it, and merge again.") from None


def find_license(folder: str | Path) -> License:
    """The licence that follows from the sources of a finished mixture, and what is doubtful about it.

    Raises:
        LazyMoEError: if the folder isn't a finished mixture.
    """
    return _license(open_finished(folder))


def _license(done: Finished) -> License:
    stated = [source["license"] for source in done.record["sources"]]
    return strictest([(_spell(name), license) for (_, name), license in zip(done.recipe.models(), stated, strict=True)])


def render(
    folder: str | Path, repo: str | None = None, *, license: str | None = None, template: str | Path | None = None
) -> str:
    """The model card of a finished mixture, as Markdown with front matter.

    Args:
        folder: the mixture's.
        repo: the Hub id it will have; its folder's path stands in the usage code if absent.
        license: any text; by default what `find_license` finds.
        template: a Jinja file to use instead of LazyMoE's; it is given the same names.

    Raises:
        LazyMoEError: if the folder isn't a finished mixture, or the template can't be rendered.
    """
    from huggingface_hub import ModelCardData
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError

    done = open_finished(folder)
    chosen = (license or "").strip() or _license(done).name
    sources = done.record["sources"]
    names = [part for _, name in done.recipe.models() for part in _spell(name).split(" + ")]
    hub_ids = [name for name in dict.fromkeys(names) if _on_hub(name)]
    languages = sorted({code for source in sources for code in source["languages"] if LANGUAGE.fullmatch(code)})
    front = ModelCardData(
        language=languages or None,
        license=chosen if chosen in (*KNOWN, "unknown", "other") else "other",
        license_name=_slug(chosen) if chosen not in (*KNOWN, "unknown", "other") else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["moe", "frankenmoe", "merge", done.config["model_type"], "lazymoe"],
        base_model=hub_ids or None,
        base_model_relation="merge" if hub_ids else None,
    )
    shares = (
        [sum(column) / len(column) for column in zip(*done.report["mean_shares"], strict=True)]
        if done.report
        else [0.0] * len(done.recipe.experts)
    )
    experts = [
        {
            "model": _spell(expert.source_model),
            "prompts": _prompts(expert.positive_prompts or []),
            "license": source["license"] or "unknown",
            "share": f"{share:.0%}",
        }
        # a shared expert gets every token
        for expert, source, share in zip(done.recipe.every_expert, sources[1:], [*shares, 1], strict=False)
    ]
    record, routed = done.record, len(done.recipe.experts)
    family = next(family for family in FAMILIES if family.name == done.config["model_type"])
    known = {
        "front_matter": front.to_yaml(line_break="\n"),
        "title": repo.rpartition("/")[2] if repo else done.folder.resolve().name,
        "repo": repo or str(done.folder),
        "license": chosen,
        "experts": experts[:routed],
        "shared_experts": experts[routed:],
        "family": family,
        "trust": ", trust_remote_code=True" if family.code else "",
        "base": _spell(done.recipe.base_model),
        "recipe": done.recipe,
        "recipe_yaml": done.recipe.to_yaml(),
        "top_k": record["experts_per_token"],
        "shared": record["shared_weights"],
        "parameters": billions(record["parameters"]),
        "active": billions(record["active_parameters"]),
        "size": gigabytes(record["bytes"]),
        "memory_16bit": gigabytes(record["bytes_16bit"]),
        "memory_4bit": gigabytes(record["bytes_4bit"]),
        "seed": record["seed"],
        "versions": record["versions"],
        "report": done.report,
        "picture": PICTURE if done.report and (done.folder / PICTURE).is_file() else None,
        "chats": done.chats,
    }
    path = Path(template).expanduser() if template else assets("templates") / TEMPLATE
    environment = Environment(
        loader=FileSystemLoader([path.parent, assets("templates")]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"text": text, "link": link, "fence": fence, "python": python}
    try:
        return environment.get_template(path.name).render(known)
    except (TemplateError, OSError, UnicodeDecodeError) as e:
        raise error(path, f"the template can't be rendered ({e})", "Correct it, or leave it out.") from None


def text(value: object) -> str:
    """Any text as Markdown that shows it and nothing else, on one line."""
    line = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = ASCII_MARKUP.sub(r"\\\1", line)
    return line.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")


def link(model: str) -> str:
    """A model's name, as a link to its page if it is on the Hub; with an adapter, both."""
    linked = []
    for part in model.split(" + "):
        linked.append(f"[{text(part)}](https://huggingface.co/{part})" if _on_hub(part) else text(part))
    return " + ".join(linked)


def fence(code: str, language: str = "") -> str:
    """A code block that nothing in the code can close."""
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{code.rstrip()}\n{ticks}"


def python(value: str) -> str:
    """A text as Python code."""
    return json.dumps(value, ensure_ascii=False)


def _on_hub(name: str) -> bool:
    """Whether a name can be that of a model on the Hub."""
    return bool(HUB_ID.fullmatch(name)) and "/" in name


def _spell(reference: str) -> str:
    """A model for people: a folder by its name only, for where it lay concerns nobody."""
    known = Reference.parse(reference)
    name = known.model if _on_hub(known.model) else Path(known.model).name
    return f"{name} + {_spell(known.adapter)}" if known.adapter else name


def _prompts(prompts: list[Any]) -> list[str]:
    """The first prompts of an expert, shortened; for files and data sets, their names."""
    shown = [p if isinstance(p, str) else f"texts of {p.dataset or Path(p.file or '').name}" for p in prompts]
    shown = [p if len(p) <= LONGEST else p[: LONGEST - 1] + "…" for p in shown]
    return shown[:SHOWN] + ["…"] * (len(shown) > SHOWN)


def _slug(license: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", license.lower()).strip("-.")[:60] or "other"
