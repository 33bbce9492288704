"""Which licence follows from the sources'."""

from __future__ import annotations

import pytest

from lazymoe.cards.license import KINDS, KNOWN, strictest


def named(*licenses: str | None) -> list[tuple[str, str | None]]:
    return [(f"org/model-{i}", license) for i, license in enumerate(licenses)]


@pytest.mark.parametrize(
    ("licenses", "name"),
    [
        (("mit", "mit"), "mit"),
        (("mit", "apache-2.0", "cc0-1.0"), "apache-2.0"),
        (("apache-2.0", "llama3"), "llama3"),
        (("apache-2.0", "gpl-3.0"), "gpl-3.0"),
        (("apache-2.0", "cc-by-nc-4.0", "mit"), "cc-by-nc-4.0"),
        (("apache-2.0", "terms-of-their-own"), "terms-of-their-own"),
    ],
)
def test_the_strictest_wins(licenses: tuple[str, ...], name: str) -> None:
    for order in (licenses, licenses[::-1]):
        found = strictest(named(*order))
        assert (found.name, found.problems) == (name, ())


@pytest.mark.parametrize("licenses", [("mit", None), ("mit", "unknown"), (None, None), ("other", "mit")])
def test_an_unknown_licence_is_said(licenses: tuple[str | None, ...]) -> None:
    found = strictest(named(*licenses))
    assert found.name == "unknown"
    unknown = next(i for i, license in enumerate(licenses) if license != "mit")
    assert f"no licence is stated by org/model-{unknown}" in str(found.problems[0])


@pytest.mark.parametrize("licenses", [("llama3", "gemma"), ("gpl-3.0", "llama3.1"), ("cc-by-nc-4.0", "gpl-3.0")])
def test_licences_that_clash_are_said(licenses: tuple[str, ...]) -> None:
    found = strictest(named(*licenses))
    assert found.name == "other"
    assert all(license in str(found.problems[0]) for license in licenses)


def test_no_derivatives_is_said() -> None:
    found = strictest(named("mit", "cc-by-nd-4.0"))
    assert found.name == "cc-by-nd-4.0"
    assert "allows no derived models" in str(found.problems[0])


def test_each_licence_is_listed_once() -> None:
    assert len(set(KNOWN)) == len(KNOWN) == sum(map(len, KINDS.values()))
