"""A finished folder whose small files were damaged or edited: its card, its licence, a report and publishing work all
the same, or say in one line what is wrong.

A few tries always; with ``-m slow`` five thousand. A seed that fails says all that is needed to do it again.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from crossing import crossed
from hub_server import Hub
from small_models import contents, make_model, recipe

import lazymoe.hub.client
import lazymoe.publishing
from lazymoe import LazyMoEError, OutputError, merge
from lazymoe.cards.card import card, find_license
from lazymoe.errors import error
from lazymoe.output.folder import Record, open_finished, read_report, trusted
from lazymoe.publishing import publish
from lazymoe.recipe.schema import Texts
from lazymoe.reporting.measuring import report
from lazymoe.reporting.report import Report

REPO = "writer/damaged"
INDEX = "model.safetensors.index.json"
NAMES = ("lazymoe.json", "config.json", "recipe.yaml", "report.json", INDEX, "tokenizer_config.json",
         "chat_template.jinja")  # fmt: skip
ODD: tuple[Any, ...] = (
    None, "", "four", "\x1b[31mred\x07", "x" * 1000, "y" * 300_000, "a\nb\r\nc", "\u0000", "\ud83e", "\u202e", "../x",
    "/etc/passwd", "~nobody/x", "org/name@abc+org/other", -1, 0, 1, 3, 2**31, 2**70, 10**4000, 1e-300, 1e308,
    float("nan"), float("inf"), 0.5, True, False, [], [1], [[[[]]]], [None], {}, {"": {}}, {"a": {"b": {"c": []}}},
    "{{ 7 * 7 }}", "---\n", "| x |", ["en", 5], [0.5, "x"], [[0.5]],
)  # fmt: skip
WHOLE: tuple[bytes, ...] = (
    b"", b"\n", b"null", b"[]", b"{}", b"{", b'"text"', b"7", b"\xff\xfe", b"\xef\xbb\xbf{}", b"[" * 100_000,
    b'{"a":' * 900 + b"1" + b"}" * 900, b"x" * 1_000_000, b'{"a": ' + b"9" * 5000 + b"}", b"\x1b[2J\x00", b"a: [\x07",
    b'"\\ud83e"', b"- " * 5000, b"base_model: *a", b"<<: 5", b"? [a]\n: b", b"!!python/object:os.system x",
    b"version https://git-lfs.github.com/spec/v1\n",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, demo_models: Path) -> Path:
    """A measured mixture."""
    folder = tmp_path_factory.mktemp("damaged")
    for seed, name in enumerate(("base", "a", "b")):
        made = make_model(folder, name, seed=seed, vocab_size=512)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(demo_models / "base" / file, made / file)
        (made / "README.md").write_text("---\nlicense: mit\nlanguage: [en]\n---\n")
    (folder / "base" / "chat_template.jinja").write_text("{{ messages }}")
    given = recipe(folder / "base", folder / "a", folder / "b", shared_weights="base")
    (folder / "texts.txt").write_text("some words here")
    texts: list[Any] = ["some words here", Texts(file=str(folder / "texts.txt"), limit=3)]
    prompted = [e.model_copy(update={"positive_prompts": texts}) for e in given.experts]
    out = merge(given.with_experts(prompted), folder / "moe", shard_size=80_000).folder
    rows = {"base": [3.0, 3.0], "a": [2.0, 3.0], "b": [3.0, 2.0], "average": [2.8, 2.8], "mixture": [2.2, 2.5]}
    half = [[[0.75, 0.25], [0.25, 0.75]]] * 2
    Report(["a", "b"], True, rows, half, [[0.7, 0.8]] * 2, [0.5, 0.5], [10, 20], 2, half).save(out)
    return out


def nodes(tree: Any) -> list[tuple[Any, Any]]:
    """Every place in some data: what holds it, and the key or the number there."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [found for key in keys for found in [(tree, key), *nodes(tree[key])]]


def spoil(file: Path, draw: random.Random) -> None:
    """Change something in a file, or the file as a whole."""
    way, text = draw.random(), file.read_bytes()
    if way < 0.15 or file.suffix == ".jinja":
        file.write_bytes(draw.choice(WHOLE))
    elif way < 0.2:
        file.unlink()
        draw.choice([lambda: None, file.mkdir, lambda: file.symlink_to("nowhere"), lambda: file.symlink_to(file)])()
    elif way < 0.25:
        file.write_bytes(text[: draw.randrange(len(text))])
    elif way < 0.35:
        at = draw.randrange(len(text))
        file.write_bytes(text[:at] + draw.randbytes(draw.randrange(1, 4)) + text[at + draw.randrange(3) :])
    else:
        data = yaml.safe_load(text) if file.suffix == ".yaml" else json.loads(text)
        for _ in range(draw.choice((1, 1, 2, 5))):
            if places := nodes(data):
                holder, key = draw.choice(places)
                change = draw.random()
                if change < 0.2:
                    del holder[key]
                elif change < 0.3 and isinstance(holder, dict):
                    holder[draw.choice(("\x1b[1m", "z" * 5000, "", "experts", "\u0000"))] = holder.pop(key)
                elif change < 0.4 and isinstance(holder, list):
                    holder += copy.deepcopy([holder[key]]) * draw.choice((1, 40))
                else:
                    holder[key] = copy.deepcopy(draw.choice(ODD))
        try:
            file.write_text(yaml.safe_dump(data) if file.suffix == ".yaml" else json.dumps(data))
        except (ValueError, yaml.YAMLError):  # a number of too many digits, half of a pair
            file.write_text(str(data)[:1000], errors="replace")


def one_line_each(call: Callable[[], Any]) -> Any:
    """What a call gives; None if it said in one line each what is wrong."""
    try:
        return call()
    except LazyMoEError as e:
        assert e.problems and len(str(e).split("\n")) == len(e.problems)
        assert all(str(problem).isprintable() and len(str(problem)) < 3000 for problem in e.problems)
        return None


def check(moe: Path) -> None:
    """Everything that reads a finished folder, but for a report."""
    written = one_line_each(lambda: card(moe, REPO))
    if written is not None:
        written.encode()
        assert all(c.isprintable() or c == "\n" for c in written if ord(c) < 0xA0)
        assert written.count("\n---\n") == 1
    if found := one_line_each(lambda: find_license(moe)):
        assert all(str(problem).isprintable() for problem in found.problems)
    done = one_line_each(lambda: open_finished(moe))
    if done:
        one_line_each(lambda: (done.host, done.weights, done.weight_map, done.small))
    trusted(moe), read_report(moe)
    one_line_each(lambda: publish(moe, REPO, token="hf_writer"))


def damage(whole: Path, moe: Path, seed: int) -> None:
    """Damage one to three files of a mixture."""
    draw = random.Random(seed)
    for name in draw.sample(NAMES, draw.choice((1, 1, 1, 2, 3))):
        (moe / name).exists() and spoil(moe / name, draw)


@pytest.mark.parametrize("seed", [*range(60), 578, 613])  # the last once failed
def test_a_damaged_folder_gives_one_line_each(whole: Path, moe: Path, clean_hub: Hub, seed: int) -> None:
    damage(whole, moe, seed)
    check(moe)
    one_line_each(lambda: report(moe, losses=seed % 2 == 0))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 5000, 500))
def test_five_thousand_damaged_folders(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """Publishing up to where the Hub would be asked."""

    def stop(token: str) -> None:
        raise error("hub.token", "token", "this far", "Enough.")

    monkeypatch.setattr(lazymoe.publishing, "account", stop)
    wrong = {}
    for seed in range(first, first + 500):
        moe = shutil.copytree(whole, tmp_path / "moe")
        damage(whole, moe, seed)
        try:
            check(moe)
        except Exception as e:
            wrong[seed] = repr(e)[:300]
        shutil.rmtree(moe)
    assert wrong == {}


@pytest.mark.parametrize(("content", "name"), crossed(WHOLE, NAMES))
def test_a_file_of_something_else(moe: Path, clean_hub: Hub, name: str, content: bytes) -> None:
    (moe / name).write_bytes(content)
    if name == "report.json":
        assert "Its routing was not measured" in card(moe) and not open_finished(moe).report
    check(moe)


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no sources": lambda r: r.pop("sources"),
    "a source less": lambda r: r["sources"].pop(),
    "a source more": lambda r: r["sources"].append(r["sources"][0]),
    "a null source": lambda r: r["sources"].__setitem__(0, None),
    "no licence": lambda r: r["sources"][0].pop("license"),
    "languages as text": lambda r: r["sources"][0].update(languages="en"),
    "parameters as text": lambda r: r.update(parameters="7"),
    "too many parameters": lambda r: r.update(parameters=10**400),
    "no bytes": lambda r: r.update(bytes=0),
    "versions as a list": lambda r: r.update(versions=[]),
    "a flag as text": lambda r: r.update(allow_pickle="no"),
    "unknown shared weights": lambda r: r.update(shared_weights="all"),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_record_that_lazymoe_did_not_write(moe: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((moe / "lazymoe.json").read_text())
    edit(record)
    (moe / "lazymoe.json").write_text(json.dumps(record))
    for call in (card, find_license, report):
        with pytest.raises(OutputError, match=r"its lazymoe\.json") as caught:
            call(moe)
        assert [problem.code for problem in caught.value.problems] == ["output.damaged"]


def test_a_record_is_read_as_it_was_written(whole: Path) -> None:
    text = (whole / "lazymoe.json").read_text()
    assert json.dumps(Record.model_validate_json(text).model_dump(), indent=2) + "\n" == text


REPORTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no shares": lambda r: r.pop("mean_shares"),
    "shares of another number": lambda r: r["mean_shares"].append([0.5, 0.5]),
    "a share as text": lambda r: r["mean_shares"][0].__setitem__(0, "x"),
    "no losses of one": lambda r: r["losses"].pop("a"),
    "losses of another number": lambda r: r["losses"]["mixture"].pop(),
    "nothing recovered": lambda r: r.update(recovered=None),
    "no number": lambda r: r.update(mean_accuracy=float("nan")),
    "a list of names": lambda r: r.update(names="ab"),
}


@pytest.mark.parametrize("edit", REPORTS.values(), ids=REPORTS)
def test_a_report_of_another_shape_is_none(moe: Path, clean_hub: Hub, edit: Callable[[dict[str, Any]], object]) -> None:
    assert "## Routing" in card(moe) and "routing.png" in card(moe)
    found = json.loads((moe / "report.json").read_text())
    edit(found)
    (moe / "report.json").write_text(json.dumps(found))
    assert "Its routing was not measured" in card(moe)
    publish(moe, REPO, token="hf_writer")
    assert not {"report.json", "routing.png", "routing-dark.png"} & set(clean_hub.repos[REPO].commits[-1].files)


def test_a_whole_folder_goes_as_it_is(moe: Path, clean_hub: Hub) -> None:
    """What the others would pass without."""
    publish(moe, REPO, token="hf_writer")
    assert set(clean_hub.repos[REPO].commits[-1].files) == {*contents(moe), "README.md", ".gitattributes"}
    assert report(moe, losses=False).names == ["a", "b"]
