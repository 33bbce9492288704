"""GGUF and evaluations on a rented machine: what is there then is what the same function makes here."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub
from jobs_server import Jobs
from small_models import recipe, write_recipe

import lazymoe
from lazymoe import Recipe, merge_gguf_on_jobs, merge_gguf_to_hub, merge_to_hub
from lazymoe.cli import main
from lazymoe.hub.jobs import Flavor
from lazymoe.jobs.offer import LONG, Offer, make_offer
from lazymoe.jobs.orders import Load, evaluating, gguf
from lazymoe.planning.prepared import at_commits, prepare

GB = 10**9
PROMPTS = ("The sea was calm, and the wind had died down.", "def add(a, b):\n    return a + b")
Captured = pytest.CaptureFixture[str]
no_harness = pytest.mark.skipif(not importlib.util.find_spec("lm_eval"), reason="needs EleutherAI's lm-eval")


@pytest.fixture
def jobs(clean_hub: Hub) -> Iterator[Jobs]:
    with Jobs(clean_hub) as jobs:
        yield jobs


@pytest.fixture
def given(clean_hub: Hub, demo_models: Path, tmp_path: Path) -> Recipe:
    """A recipe of models on the Hub, at their commits."""
    names = [f"acme/{tmp_path.name.strip('_.-')}-{name}" for name in ("base", "python", "english")]
    for name in names:
        clean_hub.add(name, demo_models / name.rpartition("-")[2])
    asked = recipe(*names, gate_mode="fit")
    every = [e.model_copy(update={"positive_prompts": [p]}) for e, p in zip(asked.experts, PROMPTS, strict=True)]
    prepared = prepare(asked.with_experts(every))
    return at_commits(prepared.recipe, prepared.sources)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of questions in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    lines = [{"question": f"What is {i}?", "choices": [f"It is {i}", "no"], "answer": 0} for i in range(4)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return Path("mine.jsonl")


def yes(offer: Offer) -> bool:
    return True


def never(offer: Offer) -> bool:
    raise AssertionError("a second job would be paid for")


def weights(hub: Hub, repo: str) -> dict[str, bytes]:
    return {name: hub.read(repo, name) for name in hub.repos[repo].commits[-1].files if name.endswith(".gguf")}


@pytest.mark.slow
def test_gguf_is_what_is_made_here(jobs: Jobs, clean_hub: Hub, given: Recipe, tmp_path: Path) -> None:
    offers: list[Offer] = []
    done = merge_gguf_on_jobs(
        given, "Q8_0,Q4_K_M", "writer/there-GGUF", agree=lambda offer: not offers.append(offer), device="cpu"
    )
    merge_gguf_to_hub(given, "Q8_0,Q4_K_M", "writer/here-GGUF", tmp_path / "there-GGUF", device="cpu")
    found = weights(clean_hub, "writer/there-GGUF")
    assert set(found) == {"there-Q8_0.gguf", "there-Q4_K_M.gguf", "there.imatrix.gguf"}
    assert found == weights(clean_hub, "writer/here-GGUF") and done.sent == sum(map(len, found.values()))
    assert "By a rough count making them takes" in str(offers[0]) and offers[0].disk >= done.sent - 10_000
    again = merge_gguf_on_jobs(given, "Q8_0", "writer/there-GGUF", agree=never, device="cpu")
    assert again.sent == 0 and len(jobs.jobs) == 1


@pytest.mark.slow
def test_the_command_makes_gguf_there(
    jobs: Jobs, clean_hub: Hub, given: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path / "recipe.yaml", given)
    place = ["--to", "writer/by-command-GGUF", "--on", "hf-jobs", "--yes", "--json"]
    assert main(["gguf", "recipe.yaml", "Q8_0", *place]) == 0
    assert json.loads(capsys.readouterr().out)["url"].endswith("writer/by-command-GGUF")
    assert set(weights(clean_hub, "writer/by-command-GGUF")) == {"by-command-Q8_0.gguf"}
    assert main(["merge", "recipe.yaml", "--gguf", "Q8_0", *place]) == 0 and len(jobs.jobs) == 1  # the same


def test_check_names_the_cheapest_machine_and_starts_nothing(
    jobs: Jobs, clean_hub: Hub, given: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path / "recipe.yaml", given)
    assert main(["check", "recipe.yaml", "--on", "hf-jobs"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "cpu-basic of Hugging Face Jobs (2 vCPU, 16 GB of memory, 20 GB of disk) costs $0.01 an hour"
    )
    assert main(["check", "recipe.yaml", "--on", "hf-jobs:t4-small", "--gguf", "Q8_0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["flavor"] == "t4-small"
    clean_hub.requests.clear()
    assert main(["check", "recipe.yaml"]) == 0
    assert not jobs.jobs and not [request for request in clean_hub.requests if "/jobs" in request.path]


@pytest.mark.slow
@no_harness
def test_an_evaluation_is_what_comes_out_here(
    jobs: Jobs, clean_hub: Hub, given: Recipe, asked: Path, tmp_path: Path, capsys: Captured
) -> None:
    """And it is in the card, whose licence stays; a repository that is evaluated already asks for nothing."""
    merge_to_hub(given, "writer/moe", tmp_path / "work", license="mit")
    command = ["evaluate", "writer/moe", "--tasks", str(asked), "--models", "base,mixture", "--on", "hf-jobs"]
    assert main([*command, "--yes"]) == 0
    told = capsys.readouterr()
    moe = lazymoe.merge(given, tmp_path / "moe").folder
    here = lazymoe.evaluate(moe, str(asked), models="base,mixture")
    assert told.out.startswith(str(here)) and told.out.rstrip().endswith("/writer/moe has it in its card.")
    assert "Evaluating: 100% of 8 questions" in told.err and "[lazymoe]" not in told.err
    there = json.loads(clean_hub.read("writer/moe", "evaluation.json"))
    assert there["results"] == json.loads(json.dumps(here.to_dict()))["results"]
    card = clean_hub.read("writer/moe", "README.md").decode()
    assert "license: mit" in card and "mine" in card.partition("Evaluation")[2]
    [job] = jobs.jobs.values()
    assert job.spec["labels"]["name"] == "lazymoe-moe" and str(tmp_path) not in json.dumps(job.shown())


@pytest.mark.slow
@no_harness
def test_tasks_by_name_are_known_to_be_done(jobs: Jobs, clean_hub: Hub, given: Recipe, asked: Path) -> None:
    merge_to_hub(given, "writer/known", asked.parent / "work")
    order = evaluating("writer/known", "arc_easy", limit=2, models="mixture")
    assert order.sure and not evaluating("writer/known", str(asked)).sure
    assert order.fingerprint != evaluating("writer/known", "arc_easy", limit=3, models="mixture").fingerprint


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("evaluate . --tasks arc_easy --on hf-jobs", "Publish the mixture with 'lazymoe publish'"),
        ("evaluate writer/nowhere --tasks mine.jsonl --on hf-jobs", "no model on the Hub by the name 'writer/nowhere'"),
        ("evaluate acme/dense --tasks mine.jsonl --on hf-jobs", "holds no mixture that LazyMoE made"),
        ("evaluate acme/dense --tasks none.jsonl --on hf-jobs", "none.jsonl: it can't be read"),
        ("evaluate acme/dense --tasks mine.jsonl --memory 1GB --on hf-jobs", "Leave it out with --on"),
        ("evaluate acme/dense --tasks mine.jsonl --models all --on hf-jobs", "there is no 'all'"),
        ("evaluate . --tasks mine.jsonl --yes", "Add --on hf-jobs"),
        ("gguf . Q8_0 --to writer/x --on hf-jobs", "Name the recipe that it was made of"),
        ("gguf r.yaml Q8_0 --on hf-jobs", "with --to a repository on the Hub"),
        ("gguf r.yaml Q8_0 out --to writer/x --on hf-jobs", "Name no folder"),
        ("gguf . Q8_0 --to writer/x", "lazymoe publish"),
        ("gguf . Q8_0 --stop", "Add --on hf-jobs"),
        ("evaluate writer/x --on hf-jobs --stop", "There is nothing to stop"),
    ],
)
def test_what_is_wrong_is_told_before_anything_starts(
    words: str, told: str, jobs: Jobs, clean_hub: Hub, asked: Path, demo_models: Path, capsys: Captured
) -> None:
    clean_hub.add("acme/dense", demo_models / "base")
    assert main(words.split()) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1 and not jobs.jobs


def test_what_takes_more_than_half_a_day_is_done_by_a_faster_machine(given: Recipe, jobs: Jobs) -> None:
    order = gguf(prepare(given), "Q8_0", "writer/x-GGUF")
    slow = Flavor("slow", "", 1, 16 * GB, 20 * GB, False, 0.01)
    fast, fastest = (slow._replace(name=n, processors=p, price=p / 10) for n, p in (("fast", 8), ("fastest", 16)))

    def chosen(seconds: float, *flavors: Flavor) -> str:
        given = dataclasses.replace(
            order, loads=lambda disk, memory, rates: [Load(GB, GB, seconds * 1e10 / (rates.processor or 1))]
        )
        return make_offer(given, flavors, None, None, "you").flavor.name

    assert chosen(LONG / 2, slow, fast, fastest) == "slow"
    assert chosen(LONG * 2, slow, fast, fastest) == "fast"
    assert chosen(LONG * 100, slow, fast, fastest) == "fastest"
    assert chosen(LONG * 2, slow) == "slow"
