"""What a recipe alone tells of whether it can work, without a look at any model: quick enough for every key typed."""

from __future__ import annotations

from collections.abc import Iterator

from lazymoe.errors import Problem
from lazymoe.recipe.schema import PROMPTED, Recipe, Texts

FEW = 20  # words of prompts under which routers are the worse for it (benchmarks/router.py: keywords)


def review(recipe: Recipe) -> tuple[list[Problem], list[Problem]]:
    """Errors and warnings that the recipe alone tells, names of models that can't be any among the errors."""
    nowhere = (model.reference.nowhere(model.where) for model in recipe.models)
    return [*unsupported(recipe), *filter(None, nowhere)], list(doubtful(recipe))


def unsupported(recipe: Recipe) -> Iterator[Problem]:
    """What can't be made, as far as the recipe alone can tell."""
    for i, expert in enumerate(recipe.experts):
        if recipe.gate_mode in PROMPTED and not any(
            isinstance(p, Texts) or p.strip() for p in expert.positive_prompts or []
        ):
            where, what = recipe.place(i, "positive_prompts"), f"gate_mode '{recipe.gate_mode}' needs prompts"
            remedy = "Write a few texts that this expert should answer, or use 'gate_mode: random'."
            yield Problem("recipe.no-prompts", where, what, remedy)


def doubtful(recipe: Recipe) -> Iterator[Problem]:
    """What works, but hardly as meant, as far as the recipe alone can tell. Prompts that it names count if written."""
    n = len(recipe.experts)
    if recipe.experts_per_token > n:
        what = f"{recipe.experts_per_token} is more than the number of experts, {n}"
        remedy = f"{n} will be used; lower it or add experts."
        yield Problem("recipe.top-k", "experts_per_token", what, remedy)
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
            what = f"{words} word{'s' * (words > 1)} say little about what this expert is for"
            remedy = "Add whole sentences of that kind, or better, samples: '{file: texts.jsonl, field: text}'."
            yield Problem("recipe.few-words", where, what, remedy)
        if (twin := models.index(models[i])) < i:
            what = f"this is the same model as expert {twin + 1}"
            remedy = "Right if you will train the mixture (sparse upcycling); otherwise name another model."
            yield Problem("recipe.same-model", recipe.place(i, "source_model"), what, remedy)


def _contradictions(recipe: Recipe, i: int) -> Iterator[Problem]:
    """Single prompts of an expert that pull in two directions; each is told once."""
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
