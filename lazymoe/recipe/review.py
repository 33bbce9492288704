"""What a recipe alone tells of whether it can work, without a look at any model: quick enough for every key typed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lazymoe.errors import Problem
from lazymoe.recipe.beside import along, files_of
from lazymoe.recipe.mergekit import passed_over
from lazymoe.recipe.schema import PROMPTED, SIDES, Expert, Recipe, Texts
from lazymoe.units import counted

FEW = 20  # words of prompts under which routers are the worse for it (benchmarks/router.py: keywords)


def review(recipe: Recipe) -> tuple[list[Problem], list[Problem]]:
    """Find the errors and warnings that the recipe alone tells, names of models that can't be any among the errors.

    Args:
        recipe: as it was given; prompts that it only names aren't read.

    Returns:
        The errors, and the warnings.
    """
    nowhere = (model.reference.nowhere(model.where) for model in recipe.models)
    return [*unsupported(recipe), *filter(None, nowhere)], list(doubtful(recipe))


def unsupported(recipe: Recipe) -> Iterator[Problem]:
    """Yield what can't be made, as far as the recipe alone can tell.

    Args:
        recipe: with the prompts that it names read or not.
    """
    for i, expert in enumerate(recipe.every_expert if recipe.gate_mode in PROMPTED else []):
        enough = _real(expert.positive_prompts) > 0 or _only_blank(recipe, expert)
        if i >= len(recipe.experts):  # a shared expert can do without, but not with blank ones alone
            given = bool(expert.positive_prompts or expert.negative_prompts)
            enough = enough or not given or _real(expert.negative_prompts) > 0
        if not enough:
            where, what = recipe.place(i, "positive_prompts"), f"gate_mode '{recipe.gate_mode}' needs prompts"
            remedy = "Write a few texts that this expert should answer, or use 'gate_mode: random'."
            yield Problem("recipe.no-prompts", where, what, remedy)
    if recipe.expert_weights == "corrected":
        yield from _uncorrectable(recipe)


def _uncorrectable(recipe: Recipe) -> Iterator[Problem]:
    """Yield what has no sense with corrected experts, or leaves none to correct."""
    read = [i for i, expert in enumerate(recipe.experts) if _real(expert.positive_prompts)]
    if not read and recipe.gate_mode not in PROMPTED:  # else it was said
        what = "experts are corrected by their own prompts, and none has any"
        remedy = "Write a few texts that each expert should answer, or use 'expert_weights: own'."
        yield Problem("recipe.no-prompts", "expert_weights", what, remedy)
    for i in read:
        expert = recipe.experts[i]
        for field, value, plain in (
            ("residual_scale", expert.residual_scale, 1),
            ("noise_scale", expert.noise_scale, 0),
        ):
            if value is not None and value != plain:
                what = f"a corrected expert answers as its own model does, and with {field} {value:g} it would not"
                remedy = f"Take {field} out, or use 'expert_weights: own'."
                yield Problem("recipe.corrected", recipe.place(i, field), what, remedy)


def doubtful(recipe: Recipe) -> Iterator[Problem]:
    """Yield what works, but hardly as meant, as far as the recipe alone can tell.

    Args:
        recipe: with the prompts that it names read or not; only words that are written out in it are counted.
    """
    n = len(recipe.experts)
    if recipe.experts_per_token > n:
        what = f"{recipe.experts_per_token} is more than the number of experts, {n}"
        remedy = f"{n} will be used; lower it or add experts."
        yield Problem("recipe.top-k", "experts_per_token", what, remedy)
    if recipe.origin.passed_over:
        yield passed_over(recipe.origin.passed_over)
    if recipe.gate_mode in PROMPTED and recipe.gate_mode != "fit":
        yield from _blank(recipe)
    prompts = [(e.positive_prompts or [], e.negative_prompts or []) for e in recipe.experts]
    models = [e.source_model for e in recipe.experts]
    for i in range(n):
        where = recipe.place(i, "positive_prompts")
        if recipe.gate_mode in PROMPTED and (twin := prompts.index(prompts[i])) < i:
            what = f"the prompts are those of expert {twin + 1}, so the router can't tell the two apart"
            yield Problem("recipe.same-prompts", where, what, "Give each its own.")
        if recipe.gate_mode in PROMPTED:
            yield from _contradictions(recipe, i)
        words = sum(len(p.split()) for p in recipe.experts[i].positive)
        if recipe.gate_mode == "fit" and 0 < words < FEW:
            what = f"{counted(words, 'word')} say little about what this expert is for"
            remedy = "Add whole sentences of that kind, or better, samples: '{file: texts.jsonl, field: text}'."
            yield Problem("recipe.few-words", where, what, remedy)
        if (twin := models.index(models[i])) < i:
            what = f"this is the same model as expert {twin + 1}"
            remedy = "Right if you will train the mixture (sparse upcycling); otherwise name another model."
            yield Problem("recipe.same-model", recipe.place(i, "source_model"), what, remedy)


def notes(recipe: Recipe) -> Iterator[str]:
    """Yield what is no defect of a recipe, but good to know.

    Args:
        recipe: as it was given.
    """
    yield from along(files_of(recipe))
    prompted = any(e.positive_prompts or e.negative_prompts for e in recipe.every_expert)
    if prompted and "gate_mode" not in recipe.model_fields_set:
        yield (
            "LazyMoE fits the routers to your prompts, where mergekit's default is 'hidden'; "
            "write 'gate_mode: hidden' to have that."
        )
    if recipe.expert_weights == "corrected":
        yield (
            "The experts' down projections, a third of their weights (of Phi's, half), are computed; "
            "texts that are like no expert's prompts get slightly worse by that."
        )


def _real(prompts: Sequence[str | Texts] | None) -> int:
    """Count the prompts that aren't blank."""
    return sum(isinstance(p, Texts) or bool(p.strip()) for p in prompts or [])


def _only_blank(recipe: Recipe, expert: Expert) -> bool:
    """Tell whether an expert's positive prompts are all blank, which mergekit's modes take."""
    return bool(expert.positive_prompts) and not _real(expert.positive_prompts) and recipe.gate_mode != "fit"


def _blank(recipe: Recipe) -> Iterator[Problem]:
    """Yield the blank prompts of each expert: mergekit-moe takes them for the beginning of any text."""
    for i, expert in enumerate(recipe.every_expert):
        for side in SIDES:
            given: list[str | Texts] = getattr(expert, side) or []
            if blank := len(given) - _real(given):
                what = "a blank prompt is dropped" if blank == 1 else f"each of {blank} blank prompts is dropped"
                yield Problem("recipe.blank-prompt", recipe.place(i, side), what, "Write a text there, or take it out.")
        if _only_blank(recipe, expert) and recipe.gate_mode in PROMPTED:
            where, remedy = recipe.place(i, "positive_prompts"), "Write a few texts that this expert should answer."
            if _real(expert.negative_prompts):
                what = "it has negative prompts only, so what is least like them goes to it"
                yield Problem("recipe.negative-only", where, what, remedy)
            else:
                what = "it has blank prompts only, so the beginning of any text stands for it"
                yield Problem("recipe.blank-only", where, what, remedy)


def _contradictions(recipe: Recipe, i: int) -> Iterator[Problem]:
    """Yield single prompts of an expert that pull in two directions; each is told once."""
    own = recipe.experts[i]
    for prompt in dict.fromkeys(p for p in own.positive if p in own.negative):
        what = f"'{_short(prompt)}' is both a positive and a negative prompt of this expert"
        where = recipe.place(i, "negative_prompts")
        yield Problem("recipe.contradiction", where, what, "Remove it from one of the two.")
    for j, other in enumerate(recipe.experts[:i]):
        both = [p for p in own.positive if p in other.positive]
        if both and own.positive != other.positive:
            what = f"'{_short(both[0])}' is also a prompt of expert {j + 1}, so it says nothing about either"
            where = recipe.place(i, "positive_prompts")
            yield Problem("recipe.contradiction", where, what, "Give it to one of them.")


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 40 else text[:39] + "…"
