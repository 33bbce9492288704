"""A recipe made ready: its prompts read, its models opened, its output planned. Made once; all else is handed it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from lazymoe.architectures.records import MoE
from lazymoe.architectures.registry import find_host
from lazymoe.checkpoint.opening import fetch, open_source
from lazymoe.checkpoint.source import Source
from lazymoe.checkpoint.tensors import some
from lazymoe.errors import LazyMoEError, Problem, error, failure
from lazymoe.planning.compatibility import adapters, differences, misfits, uncorrectable, unmergeable, unusable
from lazymoe.planning.composing import make_plan
from lazymoe.planning.plan import SHARD_SIZE, Plan
from lazymoe.planning.vocabularies import forget, same_tokens
from lazymoe.progress import Progress, silent
from lazymoe.recipe.beside import put_beside
from lazymoe.recipe.reference import Reference
from lazymoe.recipe.review import doubtful, notes, unsupported
from lazymoe.recipe.schema import Recipe, Texts
from lazymoe.recipe.texts import read_prompts

Where = Literal["auto", "local", "remote"]  # where the weights of models on the Hub are read: see `prepare`


@dataclass(frozen=True)
class Prepared:
    """A recipe made ready.

    Attributes:
        recipe: what is wanted, with its data sets of prompts at their commits.
        prompts: the same, with the texts themselves in place of files and data sets.
        texts: those that were taken of each file on this machine.
        sources: the recipe's models in its order, the base model first; empty if one of them can't be used.
        plan: the output; None where errors leave nothing to plan.
        errors: why it can't be made; empty if it can.
        warnings: why it may turn out badly.
        notes: what is no defect, but good to know.
        allow_pickle: whether ``.bin`` weights were accepted.
        source: where the weights of models on the Hub are read.
    """

    recipe: Recipe
    prompts: Recipe
    sources: tuple[Source, ...]
    plan: Plan | None
    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    notes: tuple[str, ...]
    allow_pickle: bool
    source: Where = "auto"
    texts: Mapping[Texts, list[str]] = field(default_factory=dict)

    @property
    def sound_plan(self) -> Plan:
        """The plan.

        Raises:
            LazyMoEError: if there is none, with the reasons.
        """
        if self.plan is None or self.errors:
            raise failure(self.errors)
        return self.plan

    @property
    def kept(self) -> tuple[Recipe, dict[str, bytes]]:
        """The recipe as its mixture keeps it, with models at their commits; and the files of texts beside it, name to
        contents."""
        return put_beside(at_commits(self.recipe, self.sources), self.texts)

    @property
    def files(self) -> dict[str, int]:
        """The files of weights, each once, with their sizes in bytes."""
        return {str(s.path(file)): size for s in self.sources for file, size in s.weights.items()}

    @property
    def missing(self) -> dict[str, int]:
        """The files that are still to be downloaded, each once, with their sizes in bytes."""
        return {str(s.path(file)): size for s in self.sources for file, size in s.missing.items()}

    @property
    def away(self) -> dict[str, int]:
        """The files that aren't here and can be read where they are, each once, with their sizes in bytes."""
        return {str(s.path(file)): size for s in self.sources for file, size in s.away.items()}

    def fetch(self, progress: Progress = silent, remote: bool = False) -> None:
        """Download the weights that aren't here yet, and look whether those that are here are whole.

        Args:
            progress: told of the bytes that are there, stage ``download``.
            remote: leave those where they are that aren't here yet.

        Raises:
            HubError: if the Hub can't be reached, or refuses.
        """
        fetch(zip(self.sources, (model.where for model in self.recipe.models), strict=True), progress, remote)


def at_commits(recipe: Recipe, sources: Sequence[Source]) -> Recipe:
    """Copy a recipe with its models on the Hub at the commits that they were opened at, to name the same for ever.

    Args:
        recipe: the recipe.
        sources: its models, in the order of `Recipe.models`.
    """
    base, *experts = (source.pinned for source in sources)
    every = [e.model_copy(update={"source_model": p}) for e, p in zip(recipe.every_expert, experts, strict=True)]
    return recipe.with_experts(every).with_fields(base_model=base)


def prepare(
    given: Recipe | str | os.PathLike[str],
    *,
    shard_size: int = SHARD_SIZE,
    allow_pickle: bool = False,
    source: Where = "auto",
) -> Prepared:
    """Make a recipe ready.

    Args:
        given: the recipe, its file, or the name of a ready-made one.
        shard_size: the most bytes of tensors in one output file.
        allow_pickle: also accept ``.bin`` weights.
        source: where the weights of models on the Hub are read: ``local`` downloads them, ``remote`` leaves them there
            and reads what it needs, ``auto`` does that if the disk has no room for the downloads. What is in the cache
            is taken from there; adapters, pickles and GGUF are always downloaded.

    Raises:
        LazyMoEError: if there is no such source.
        RecipeError: if it isn't a recipe. What is wrong with its prompts and models is not raised; it is among the
            ``errors``.
    """
    if source not in get_args(Where):
        raise error("input.source", "source", f"there is no '{source}'", f"Say one of: {', '.join(get_args(Where))}.")
    recipe = prompts = Recipe.read(given)
    errors: list[Problem] = []
    texts: dict[Texts, list[str]] = {}
    try:
        recipe, prompts, texts = read_prompts(recipe)
    except LazyMoEError as e:
        errors += e.problems
    errors += unsupported(prompts)
    warnings = list(doubtful(prompts))
    sources = _open_all(recipe, allow_pickle, errors)
    warnings += _remarks(recipe, sources)
    plan = _plan(prompts, sources, shard_size, errors, warnings) if sources else None
    forget()
    told = tuple(notes(recipe))
    return Prepared(recipe, prompts, sources, plan, tuple(errors), tuple(warnings), told, allow_pickle, source, texts)


def _open_all(recipe: Recipe, allow_pickle: bool, errors: list[Problem]) -> tuple[Source, ...]:
    """Open the base model and each expert, every model once; give nothing if one of them is unusable."""
    opened: dict[Reference, Source] = {}
    before = len(errors)
    tried = set[Reference]()
    for where, reference in recipe.models:
        if reference in tried:
            continue
        tried.add(reference)
        try:
            opened[reference] = open_source(reference, where, allow_pickle)
        except LazyMoEError as e:
            errors += e.problems
        else:
            errors += filter(None, [unusable(where, opened[reference])])
    return tuple(opened[model.reference] for model in recipe.models) if len(errors) == before else ()


def _remarks(recipe: Recipe, sources: tuple[Source, ...]) -> Iterator[Problem]:
    """Yield what was found odd in each model, once."""
    told = set[Reference]()
    for model, source in zip(recipe.models, sources, strict=bool(sources)):
        if model.reference not in told:
            told.add(model.reference)
            if source.ignored:
                what = f"{source.reference} has {some(source.ignored)}, which no {source.config['model_type']} reads"
                yield Problem("source.leftovers", model.where, what, "That is left out.")
            for remark in source.remarks:
                remedy = "Look at the model's page if you wonder why."
                yield Problem("source.remark", model.where, f"{source.reference}: {remark}", remedy)


def _plan(
    recipe: Recipe, sources: tuple[Source, ...], shard_size: int, errors: list[Problem], warnings: list[Problem]
) -> Plan | None:
    """Make the plan, if the models fit together; what is wrong or doubtful is added to the lists."""
    try:
        dense, host = find_host(sources[0].config, recipe)
    except LazyMoEError as e:
        errors += e.problems
        return None
    if problems := list(misfits(recipe, sources, dense, host)):
        errors += problems
        return None
    warnings += differences(recipe, sources, dense)

    # weights can be merged over the experts only where a token's number means the same token to all
    shared = recipe.shared_weights or ("regmean" if recipe.gate_mode == "fit" else "base")
    experts = sources[1 : 1 + len(recipe.experts)]
    strangers = [i for i, s in enumerate(experts) if shared != "base" and not same_tokens(sources[0], s)]
    if strangers:
        where, what = recipe.place(strangers[0], "source_model"), "its tokens aren't the base model's"
        remedy = "So attention, norms and embeddings are taken from the base model alone."
        warnings.append(Problem("source.tokens", where, what, remedy))
        shared = "base"
    if shared != "base" and (problems := list(unmergeable(recipe, sources, dense))):
        errors += problems
        return None
    if recipe.expert_weights == "corrected" and (problems := list(uncorrectable(recipe, sources, dense))):
        errors += problems
        return None
    warnings += adapters(recipe, sources, dense, shared)
    top_k, together = min(recipe.experts_per_token, len(experts)), len(recipe.shared_experts or [])
    if doubt := host.doubt(MoE(sources[0].config, len(experts), top_k, together)):
        warnings.append(Problem("source.transformers", "base_model", doubt, "Say so to those who will use it."))
    return make_plan(recipe, sources, dense, host, shared, shard_size)
