"""The card of a repository of GGUF files: what each takes and how good it is, and how to run it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lazymoe.cards.filling import address, fill, front_matter, license_of, refuse_token
from lazymoe.cards.naming import spell, without_places
from lazymoe.data import folder as data
from lazymoe.files import absolute
from lazymoe.output.quantized import Listed, Quality, Quantized, kept_bytes
from lazymoe.units import billions, gigabytes

TEMPLATE = "gguf_card.md.jinja"
CONTEXT = 4096  # tokens that memory is stated for, at most
USUAL = "Q4_K_M"  # the type that most people run


def render_gguf(
    quantized: Quantized,
    repo: str | None,
    *,
    license: str | None = None,
    template: str | os.PathLike[str] | None = None,
    original: str | None = None,
    listed: Mapping[str, Listed] | None = None,
    quality: Quality | None = None,
) -> str:
    """Write the card of a folder of GGUF files.

    Args:
        quantized: the folder.
        repo: the Hub id it will have.
        license, template: as in `card`.
        original: the Hub id of the same mixture in 16 bit, if it is there.
        listed, quality: the files that will be there, and what was measured of them; by default the folder's.

    Raises:
        OutputError: if its architecture is none of LazyMoE's.
        LazyMoEError: if the template can't be rendered, or something that looks like a token would stand in the card.
    """
    for where, given in (("repo", repo), ("license", license)):
        refuse_token(where, given)
    done, record = quantized.mixture, quantized.mixture.record
    chosen = (license or "").strip() or license_of(done).name
    files, measured = listed or quantized.listed, quality or quantized.quality
    context = min(CONTEXT, done.config["max_position_embeddings"])
    kept = kept_bytes(done.config, context)
    known = {
        "front_matter": front_matter(done, chosen, ["gguf", done.host.name], quantized=original),
        "title": repo.rpartition("/")[2] if repo else done.folder.name,
        "repo": repo,
        "original": original,
        "address": address(),
        "license": chosen,
        "experts": [spell(model.reference) for model in done.recipe.models[1:]],
        "base": spell(done.recipe.models[0].reference),
        "top_k": record.experts_per_token,
        "parameters": billions(record.parameters),
        "active": billions(record.active_parameters),
        "context": context,
        "files": [_row(kind, of, kept, measured) for kind, of in files.items()],
        "exact": measured.exact if measured else None,
        "held_out": measured.held_out if measured else False,
        "usual": USUAL if USUAL in files else next(iter(files), USUAL),
        "first": files[USUAL if USUAL in files else next(iter(files))].names[0] if files else "",
        "matrix": quantized.matrix.name if quantized.matrix else None,
        "recipe_yaml": without_places(done.recipe).to_yaml(),
        "types": ",".join(files),
        "versions": record.versions,
    }
    return fill(absolute(template) if template else data("templates") / TEMPLATE, known)


def _row(kind: str, of: Listed, kept: int, quality: Quality | None) -> dict[str, Any]:
    """Gather what the table says of a type."""
    found = quality.types.get(kind) if quality else None
    mean = sum(found.losses) / len(found.losses) if found else None
    exact = sum(quality.exact) / len(quality.exact) if quality and quality.exact else None
    return {
        "kind": kind,
        "names": of.names,
        "size": gigabytes(of.nbytes),
        "memory": gigabytes(of.nbytes + kept),
        "loss": mean,
        "more": mean - exact if mean is not None and exact is not None else None,
        "same": found.same if found else None,
    }
