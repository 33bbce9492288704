"""Merged straight to the Hub on a rented machine: started with a yes to its price, followed, found again, stopped."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lazymoe.errors import TOKEN, LazyMoEError, error, printable
from lazymoe.hub.accounts import need_token
from lazymoe.hub.jobs import Job, Jobs
from lazymoe.jobs.offer import Offer, make_offer
from lazymoe.jobs.parcel import check_sendable, pack
from lazymoe.making import fingerprint_of
from lazymoe.output.folder import RECORD
from lazymoe.planning.plan import SHARD_SIZE
from lazymoe.planning.prepared import Prepared, Where, at_commits, prepare
from lazymoe.progress import SENT, Progress, heard, silent
from lazymoe.publishing import Published, open_repository
from lazymoe.recipe.schema import Recipe

MERGE, REPOSITORY = "lazymoe-merge", "lazymoe-repository"  # labels of a job: hashes of what it makes, and for where


def merge_on_jobs(
    recipe: Recipe | str | os.PathLike[str],
    repo: str,
    flavor: str | None = None,
    *,
    agree: Callable[[Offer], bool],
    private: bool = False,
    token: str | None = None,
    seed: int = 0,
    shard_size: int = SHARD_SIZE,
    allow_pickle: bool = False,
    device: str | None = None,
    source: Where = "auto",
    started: Callable[[Job], None] = lambda job: None,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
) -> Published:
    """Make a mixture on a machine of Hugging Face Jobs, rented by the minute, and put it on the Hub.

    The job goes on if this process ends. The same call follows a job that runs already, and starts no second one.

    Args:
        recipe, seed, shard_size, allow_pickle, device, source: as in `lazymoe.merge`; its models must be on the Hub.
        repo, private, token: as in `lazymoe.merge_to_hub`. The token must have the right to run jobs too; the machine
            gets it as a secret.
        flavor: the kind of machine; by default the cheapest that has the memory and the disk.
        agree: is asked before anything is started, with the machine and its price, and says yes or no.
        started: told of the job, once it runs or is found.
        say: told of each line that the job says, but for progress.
        progress: as in `lazymoe.merge_to_hub`, from there.

    Returns:
        Where it is, and how many bytes of weights were sent.

    Raises:
        LazyMoEError: as `lazymoe.merge_to_hub`; or if the price isn't agreed to, no machine is large enough, the
            account has no credit or no right to run jobs, or the job fails, is stopped or takes too long.
    """
    prepared = prepare(recipe, shard_size=shard_size, allow_pickle=allow_pickle, source=source)
    return carry_to_jobs(
        prepared, repo, flavor, agree=agree, private=private, token=token, seed=seed, device=device, started=started,
        say=say, progress=progress,
    )  # fmt: skip


def carry_to_jobs(
    prepared: Prepared,
    repo: str,
    flavor: str | None = None,
    *,
    agree: Callable[[Offer], bool],
    private: bool = False,
    token: str | None = None,
    seed: int = 0,
    device: str | None = None,
    started: Callable[[Job], None] = lambda job: None,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
) -> Published:
    """Make the mixture of a prepared recipe on a rented machine.

    Args:
        prepared: the recipe.
        repo, flavor, agree, private, token, seed, device, started, say, progress: as in `merge_on_jobs`.

    Raises:
        LazyMoEError: as `merge_on_jobs`.
    """
    plan, token = prepared.sound_plan, token or need_token()
    check_sendable(prepared)
    jobs, upload = Jobs(token), open_repository(repo, token, private, make=False)
    pinned = replace(prepared, prompts=at_commits(prepared.prompts, prepared.sources))  # as it is there
    fingerprint = fingerprint_of(pinned, seed)
    if upload.read(RECORD).get("fingerprint") == fingerprint:
        return Published(upload.url, 0)
    job = jobs.find({REPOSITORY: _short(repo)})
    if job and job.labels.get(MERGE) != _short(fingerprint):
        what, remedy = f"a job makes another mixture for it: {job.url}", "Wait until it has ended, or --stop it first."
        raise error("hub.job-other", repo, what, remedy)
    if job is None:
        offer = make_offer(prepared, jobs.flavors(), flavor, device, jobs.name)
        if not agree(offer):
            raise error("input.price", "hf-jobs", "its price wasn't agreed to", "Nothing was started.")
        asked = {
            "repo": repo, "private": private, "seed": seed, "shard_size": plan.shard_size, "device": device,
            "allow_pickle": prepared.allow_pickle, "source": prepared.source,
        }  # fmt: skip
        name = re.sub(r"[^A-Za-z0-9-]", "-", f"lazymoe-{repo.rpartition('/')[2]}")
        labels = {"name": name, REPOSITORY: _short(repo), MERGE: _short(fingerprint)}
        with tempfile.TemporaryDirectory(prefix="lazymoe-") as folder:
            script, files = pack(prepared, asked, offer.flavor.gpu, Path(folder))
            job = jobs.start(script, files, offer.flavor.name, labels, offer.timeout)
    started(job)
    sent = _follow(jobs, job, token, say, progress)
    if RECORD not in open_repository(repo, token, private, make=False).remote:
        what = f"the job has ended, and {repo} doesn't hold the mixture"
        raise error("hub.job-failed", job.url, what, "Look at its log there, and run the same command again.")
    return Published(upload.url, sent)


def stop_on_jobs(repo: str, token: str | None = None) -> Job:
    """Stop the job that makes a mixture for a repository. What it has sent isn't sent again by the next one.

    Args:
        repo: as in `merge_on_jobs`.
        token: by default the one that is found here.

    Returns:
        The job that was stopped.

    Raises:
        HubError: if there is none, or the Hub refuses or can't be reached.
    """
    jobs = Jobs(token or need_token())
    job = jobs.find({REPOSITORY: _short(repo)})
    if job is None:
        raise error("hub.job-lost", repo, "no job runs for this repository", "There is nothing to stop.")
    jobs.stop(job)
    return job


def _follow(jobs: Jobs, job: Job, token: str, say: Callable[[str], None], progress: Progress) -> int:
    """Hand on what a job tells until it has ended; give how many bytes of weights it sent.

    Raises:
        HubError: if it fails, is stopped or vanishes, or the Hub can't be reached for long.
    """
    last, sent = "", 0
    for lines in jobs.follow(job):
        news: dict[str, tuple[int, int]] = {}  # the last of each stage is enough
        for line in lines:
            if found := heard(line):
                news[found[0]] = found[1:]
            elif words := printable(TOKEN.sub("hf_…", line.replace(token, "hf_…"))):
                last = words
                say(words)
        sent, _ = news.pop(SENT, (sent, 0))
        for stage, (done, total) in news.items():
            progress(stage, done, total)
    job = jobs.look(job)
    if job.stage != "COMPLETED":
        raise _failed(job, last)
    return sent


def _failed(job: Job, last: str) -> LazyMoEError:
    """Explain how a job ended."""
    if job.stage == "CANCELED":
        what, remedy = "the job was stopped", "Run the same command again to start another."
        return error("hub.job-stopped", job.url, what, remedy)
    if "timeout" in job.message.lower():
        what = "the job took longer than it was given"
        remedy = "Run it again on a faster machine, with --on hf-jobs:FLAVOR; what the Hub has isn't sent again."
        return error("hub.job-timeout", job.url, what, remedy)
    said = last.removeprefix("error: ").rstrip(".") or "it said nothing"
    what = f"the job failed{f' ({job.message})' if job.message else ''}: {said}"
    return error("hub.job-failed", job.url, what, "Its log is there. Mend that, and run the same command again.")


def _short(text: str) -> str:
    """Make a text one that a label may hold."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
