"""What is told when something is wrong: one line each, and an exception that says what kind of thing it is."""

from __future__ import annotations

import pytest

from lazymoe import HubError, LazyMoEError, OutputError, Problem, RecipeError, SourceError
from lazymoe.errors import FAILED, error, failure, nearest

KINDS = {
    "recipe.yaml": RecipeError,
    "source.broken": SourceError,
    "hub.token": HubError,
    "output.taken": OutputError,
    "input.usage": LazyMoEError,
}


@pytest.mark.parametrize("code", KINDS)
def test_the_first_word_of_a_code_is_the_kind_of_exception(code: str) -> None:
    raised = error(code, "there", "it is wrong", "Mend it.")
    assert type(raised) is KINDS[code]
    assert raised.problems == (Problem(code, "there", "it is wrong", "Mend it."),)
    assert str(raised) == "there: it is wrong. Mend it."


def test_several_kinds_at_once_are_the_general_one() -> None:
    one, two = Problem("recipe.yaml", "a", "b", "C."), Problem("source.broken", "d", "e", "F.")
    assert type(failure([one, two])) is LazyMoEError
    assert type(failure([one, one])) is RecipeError
    assert str(failure([one, two])) == "a: b. C.\nd: e. F."


def test_a_problem_is_one_line() -> None:
    problem = Problem("input.x", "a\nplace", "this\tis \n\n wrong", "Mend\r\nit.")
    assert str(problem) == "a place: this is wrong. Mend it."
    assert problem.to_dict() == {"code": "input.x", "where": "a\nplace", "what": "this\tis \n\n wrong",
                                 "remedy": "Mend\r\nit."}  # fmt: skip


@pytest.mark.parametrize("code", sorted(FAILED))
def test_the_network_and_the_disk_are_nobodys_mistake(code: str) -> None:
    assert Problem(code, "", "", "").failed
    assert not Problem(f"{code}-not", "", "", "").failed


def test_the_nearest_word_or_all_of_them() -> None:
    assert nearest("hiden", ["hidden", "random"]) == "Did you mean 'hidden'?"
    assert nearest("x", ["b", "a"]) == "Known are: a, b."
