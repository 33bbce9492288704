"""Merges on a rented machine: the genuine client, a stand-in of the service, and a process that really merges."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub
from huggingface_hub import HfApi
from jobs_server import Job, Jobs
from small_models import Make, recipe, write_recipe

from lazymoe import LazyMoEError, Recipe, Texts, merge_on_jobs, merge_to_hub
from lazymoe.cli import main
from lazymoe.jobs.offer import Offer
from lazymoe.jobs.renting import stop_on_jobs
from lazymoe.planning.prepared import at_commits, prepare

TOKEN = "hf_writer"
REPO = "writer/there"
Captured = pytest.CaptureFixture[str]


class Left(Exception):
    """Whoever followed is gone."""


@pytest.fixture
def jobs(clean_hub: Hub) -> Iterator[Jobs]:
    with Jobs(clean_hub) as jobs:
        yield jobs


@pytest.fixture
def given(clean_hub: Hub, make: Make, tmp_path: Path) -> Recipe:
    names = [f"acme/{tmp_path.name.strip('_.-')}-{i}" for i in range(3)]
    for seed, name in enumerate(names):
        clean_hub.add(name, make(f"m{seed}", seed=seed))
    return recipe(*names, shared_weights="average")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the client's waits between two looks."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.05)))


def yes(offer: Offer) -> bool:
    return True


def never(offer: Offer) -> bool:
    raise AssertionError("a second job would be paid for")


def leave(job: object) -> None:
    raise Left


def waiting(jobs: Jobs, given: Recipe) -> Job:
    """A job that was started and waits for a machine; nobody follows it."""
    jobs.hold.clear()
    with pytest.raises(Left):
        merge_on_jobs(given, REPO, agree=yes, started=leave)
    [job] = jobs.jobs.values()
    return job


def files(hub: Hub, repo: str) -> dict[str, bytes]:
    """What a repository has, but the card: that names it."""
    return {name: hub.read(repo, name) for name in hub.repos[repo].commits[-1].files if name != "README.md"}


def codes(raised: pytest.ExceptionInfo[LazyMoEError]) -> list[str]:
    """The codes of what is wrong, each told in a line."""
    assert str(raised.value).count("\n") == len(raised.value.problems) - 1 and TOKEN not in str(raised.value)
    return [problem.code for problem in raised.value.problems]


def test_it_makes_what_a_merge_here_makes(jobs: Jobs, clean_hub: Hub, given: Recipe, tmp_path: Path) -> None:
    said: list[str] = []
    told: list[tuple[str, int, int]] = []
    asked: list[Offer] = []
    done = merge_on_jobs(
        given, REPO, agree=lambda offer: not asked.append(offer), shard_size=20_000, seed=3, say=said.append,
        progress=lambda *figures: told.append(figures),
    )  # fmt: skip
    assert done.url == f"{clean_hub.url}/{REPO}" and done.sent > 0 and not said
    assert {stage for stage, *_ in told} == {"download", "sweep", "write", "upload"}
    assert all(told[[stage for stage, *_ in told].index(s) :] for s in ("write", "upload"))
    assert {stage: done for stage, done, total in told if done == total}.keys() >= {"write", "upload"}
    [job] = jobs.jobs.values()
    assert job.spec["flavor"] == asked[0].flavor.name == "cpu-basic"
    assert job.spec["timeoutSeconds"] == asked[0].timeout and not job.folder.exists()

    prepared = prepare(given)
    merge_to_hub(
        at_commits(prepared.recipe, prepared.sources), "writer/here", tmp_path / "work", shard_size=20_000, seed=3
    )
    assert files(clean_hub, REPO) == files(clean_hub, "writer/here")
    assert merge_on_jobs(given, REPO, agree=never, shard_size=20_000, seed=3).sent == 0  # it is there
    assert len(jobs.jobs) == 1


def test_the_token_is_a_secret(jobs: Jobs, clean_hub: Hub, given: Recipe, tmp_path: Path) -> None:
    """It is in none of the places where it could be seen; looked for so that it would be found."""
    clean_hub.requests.clear()
    said: list[str] = []

    def tell(found: object) -> None:
        [job] = jobs.jobs.values()
        job.lines += [f"token {TOKEN}, another hf_{'a' * 34}\x1b[2J", "and on"]
        jobs.hold.set()

    jobs.hold.clear()
    merge_on_jobs(given, REPO, agree=yes, started=tell, say=said.append)
    [job] = jobs.jobs.values()
    assert job.spec["secrets"] == {"HF_TOKEN": TOKEN}
    assert said == ["token hf_…, another hf_…\\x1b[2J", "and on"]

    sent = tmp_path / "sent"
    sent.mkdir()
    for i, xet_hash in enumerate(jobs.files["writer/jobs-artifacts"].values()):
        clean_hub.unpack(xet_hash, sent / str(i), jobs.store)
        if (sent / str(i)).read_bytes().startswith(b"PK"):
            subprocess.run([sys.executable, "-m", "zipfile", "-e", sent / str(i), sent / "unpacked"], check=True)
    everything = [path.read_bytes().decode() for path in sent.rglob("*") if path.is_file() and path.suffix != ".zip"
                  and not path.read_bytes().startswith(b"PK")]  # fmt: skip
    assert any("merge_to_hub" in text for text in everything) and any(REPO in text for text in everything)
    everything += [json.dumps(job.shown()), *job.lines[2:], *(request.path for request in clean_hub.requests)]
    assert not [text for text in everything if TOKEN in text]
    assert TOKEN in json.dumps(job.spec) and TOKEN in "".join(job.lines[:2])  # so it is found where it is


def test_a_running_job_is_found_again(jobs: Jobs, clean_hub: Hub, given: Recipe, impatient: None) -> None:
    job = waiting(jobs, given)
    with pytest.raises(LazyMoEError) as raised:
        merge_on_jobs(given.with_fields(experts_per_token=1), REPO, agree=never)
    assert codes(raised) == ["hub.job-other"] and job.id in str(raised.value)
    followed: list[str] = []
    with pytest.raises(LazyMoEError) as raised:
        merge_on_jobs(given, REPO, agree=never, started=lambda job: followed.append(job.id) or stop_on_jobs(REPO))
    assert followed == [job.id] == list(jobs.jobs) and codes(raised) == ["hub.job-stopped"]
    with pytest.raises(LazyMoEError, match="nothing to stop"):
        stop_on_jobs(REPO)
    assert REPO not in clean_hub.repos


def test_nothing_starts_without_a_yes(jobs: Jobs, clean_hub: Hub, given: Recipe) -> None:
    asked: list[Offer] = []
    with pytest.raises(LazyMoEError, match="Nothing was started") as raised:
        merge_on_jobs(given, REPO, agree=lambda offer: bool(asked.append(offer)))
    assert codes(raised) == ["input.price"] and "$0.01 an hour, billed to writer" in str(asked[0])
    assert not jobs.jobs and not jobs.files and REPO not in clean_hub.repos


def test_what_is_here_alone_is_refused_first(jobs: Jobs, clean_hub: Hub, given: Recipe, make: Make) -> None:
    clean_hub.requests.clear()
    with pytest.raises(LazyMoEError) as raised:
        merge_on_jobs(given.with_fields(base_model=str(make("m0"))), REPO, agree=never)
    assert codes(raised) == ["recipe.here"] and "base_model: " in str(raised.value)
    assert not [request for request in clean_hub.requests if "/api/jobs" in request.path]


@pytest.mark.slow
def test_files_of_prompts_go_along(jobs: Jobs, clean_hub: Hub, given: Recipe, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("One text.\n\nAnother.\n")
    prompts = {"positive_prompts": [Texts(file="own.txt")]}
    write_recipe(tmp_path / "recipe.yaml", given.with_experts([e.model_copy(update=prompts) for e in given.experts]))
    merge_on_jobs(tmp_path / "recipe.yaml", REPO, agree=yes)
    assert b"file: prompts-1.jsonl" in clean_hub.read(REPO, "recipe.yaml")
    assert merge_on_jobs(tmp_path / "recipe.yaml", REPO, agree=never).sent == 0  # the same texts


REFUSALS = {  # what is asked for, the answer, the code of the line, words of it
    "no credit": ("POST .*/api/jobs/", 402, "hub.no-credit", "billing"),
    "no right": ("POST .*/api/jobs/", 403, "hub.token", "it may not run jobs"),
    "no right to put files": ("POST .*/api/buckets/", 403, "hub.token", "it may not run jobs"),
    "quota": ("POST .*/api/jobs/", 429, "hub.busy", "Wait until a job of yours has ended"),
    "no such service": ("GET .*/api/jobs/", 404, "hub.refused", "has no machines to rent"),
    "not taken": ("POST .*/api/jobs/", 400, "hub.refused", "FLAVOR"),
    "the service is down": ("POST .*/api/jobs/", 503, "hub.busy", "in a minute"),
    "its answer is lost": ("POST .*/api/jobs/", "cut", "hub.unreachable", "is followed"),
    "no prices": ("GET .*/api/jobs/hardware", 500, "hub.busy", "in a minute"),
}


@pytest.mark.parametrize(("where", "kind", "code", "words"), REFUSALS.values(), ids=REFUSALS)
def test_what_is_refused_is_told_in_a_line(
    where: str, kind: int | str, code: str, words: str, jobs: Jobs, clean_hub: Hub, given: Recipe
) -> None:
    jobs.hold.clear()
    clean_hub.fault(where, kind, times=math.inf, seconds=0)
    with pytest.raises(LazyMoEError, match=words) as raised:
        merge_on_jobs(given, REPO, agree=yes)
    assert codes(raised) == [code] and not jobs.jobs
    clean_hub.faults.clear()
    with pytest.raises(Left):
        merge_on_jobs(given, REPO, agree=yes, started=leave)
    assert len(jobs.jobs) == 1


ENDS: dict[str, tuple[Callable[[Jobs, Job], object], str, str]] = {  # what happens, the code of the line, words of it
    "stopped": (lambda jobs, job: job.end("CANCELED"), "hub.job-stopped", "the job was stopped"),
    "too long": (lambda jobs, job: job.end("ERROR", "Job timeout"), "hub.job-timeout", "longer than it was given"),
    "failed": (lambda jobs, job: job.end("ERROR", "Killed"), "hub.job-failed", r"failed \(Killed\): the last line"),
    "vanished": (lambda jobs, job: jobs.jobs.pop(job.id), "hub.job-lost", "starts another"),
    "an empty success": (lambda jobs, job: job.end("COMPLETED"), "hub.job-failed", "doesn't hold what"),
}  # fmt: skip


@pytest.mark.parametrize(("end", "code", "words"), ENDS.values(), ids=ENDS)
def test_how_a_job_ends_is_told_in_a_line(
    end: Callable[[Jobs, Job], object], code: str, words: str, jobs: Jobs, given: Recipe, impatient: None
) -> None:
    job = waiting(jobs, given)
    job.lines += ["first", "the last line."]
    with pytest.raises(LazyMoEError, match=words) as raised:
        merge_on_jobs(given, REPO, agree=never, started=lambda _: end(jobs, job))
    assert codes(raised) == [code]


def test_why_the_merge_failed_there_is_told_here(jobs: Jobs, given: Recipe) -> None:
    with pytest.raises(LazyMoEError, match=r"device: there is no '?cuda:99") as raised:
        merge_on_jobs(given, REPO, agree=yes, device="cuda:99")
    assert codes(raised) == ["hub.job-failed"]
    assert [job.spec["flavor"] for job in jobs.jobs.values()] == ["t4-small"]  # the cheapest with a GPU


def test_a_recipe_does_not_go_where_everybody_sees_it(jobs: Jobs, given: Recipe) -> None:
    jobs.files["writer/jobs-artifacts"] = {}
    jobs.public.add("writer/jobs-artifacts")
    with pytest.raises(LazyMoEError, match="Make it private at") as raised:
        merge_on_jobs(given, REPO, agree=yes)
    assert codes(raised) == ["hub.public"] and not jobs.jobs and not jobs.files["writer/jobs-artifacts"]


def test_an_old_client_is_told_of(jobs: Jobs, given: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HfApi, "list_jobs", lambda self, *, timeout=None, namespace=None, token=None: [])
    with pytest.raises(LazyMoEError, match=r"1\.21 or newer") as raised:
        merge_on_jobs(given, REPO, agree=never)
    assert codes(raised) == ["hub.old-client"]


# on the command line


def command(folder: Path, given: Recipe) -> list[str]:
    write_recipe(folder / "recipe.yaml", given)
    return ["merge", "recipe.yaml", "--to", REPO, "--on", "hf-jobs"]


@pytest.mark.slow
def test_ctrl_c_lets_it_go_on(
    jobs: Jobs, given: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    words = command(tmp_path, given)
    jobs.hold.clear()
    run = partial(subprocess.Popen, cwd=tmp_path, env=os.environ | {"HF_TOKEN": TOKEN}, text=True)
    with run(
        [sys.executable, "-m", "lazymoe", *words, "--yes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as here:
        assert here.stderr
        for line in here.stderr:
            if "Ctrl-C lets it go on" in line:
                break
        here.send_signal(signal.SIGINT)
        out, err = here.communicate(timeout=60)
    assert here.returncode == 130 and not out
    [job] = jobs.jobs.values()
    assert f"jobs/writer/{job.id} goes on; the same command follows it again, and with --stop it is stopped" in err
    assert not job.ended
    monkeypatch.chdir(tmp_path)
    jobs.hold.set()
    assert main([*words, "--json"]) == 0  # without --yes, as nothing is started
    printed = capsys.readouterr()
    assert json.loads(printed.out)["url"].endswith(REPO) and "Uploading: 100%" in printed.err
    assert "[lazymoe]" not in printed.err and len(jobs.jobs) == 1


@pytest.mark.parametrize(("answer", "starts"), [("y\n", True), ("\n", False), ("no\n", False), ("", False)])
def test_a_person_is_asked(
    answer: str, starts: bool, jobs: Jobs, given: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: Captured, impatient: None,
) -> None:  # fmt: skip
    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return answer

    monkeypatch.chdir(tmp_path)
    words = command(tmp_path, given)
    jobs.hold.clear()
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(Jobs, "start", ended(Jobs.start))
    assert main(words) == 2
    printed = capsys.readouterr()
    assert "$0.01 an hour" in printed.err and "Start it? [y/N]" in printed.err and not printed.out
    assert bool(jobs.jobs) is starts and ("the job was stopped" in printed.err) is starts


def ended(start: Callable[..., Job]) -> Callable[..., Job]:
    """A start of jobs that are stopped at once."""

    def start_and_end(*given: Any) -> Job:
        job = start(*given)
        job.end("CANCELED")
        return job

    return start_and_end


def test_with_nobody_to_ask_the_price_is_told(
    jobs: Jobs, given: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    words = command(tmp_path, given)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "$0.01 an hour" in error and "agree to that with --yes" in error and not jobs.jobs
    waiting(jobs, given)
    assert main([*words, "--stop"]) == 0 and "is stopped." in capsys.readouterr().out
    assert main([*words, "--stop"]) == 2 and "no job runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("merge r.yaml --to writer/x --on elsewhere", "isn't hf-jobs"),
        ("merge r.yaml --to writer/x --on hf-jobs:", "isn't hf-jobs"),
        ("merge r.yaml folder --on hf-jobs", "Name no folder"),
        ("merge r.yaml folder --to writer/x --on hf-jobs", "Name no folder"),
        ("merge r.yaml folder --to writer/x --on hf-jobs --gguf Q8_0", "Name no folder"),
        ("merge r.yaml --to writer/x --yes", "Add --on hf-jobs"),
        ("merge r.yaml --to writer/x --stop", "Add --on hf-jobs"),
    ],
)
def test_what_is_typed_wrongly(words: str, told: str, capsys: Captured) -> None:
    assert main(words.split()) == 2 and told in capsys.readouterr().err
