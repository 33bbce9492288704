"""An order on a rented machine: started with a yes to its price, followed, found again, stopped."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from lazymoe.errors import TOKEN, LazyMoEError, error, printable
from lazymoe.hub.accounts import need_token
from lazymoe.hub.client import OTHER
from lazymoe.hub.jobs import Job, Jobs
from lazymoe.hub.uploading import Upload
from lazymoe.jobs.offer import Offer, make_offer
from lazymoe.jobs.orders import Order
from lazymoe.jobs.parcel import pack
from lazymoe.progress import SENT, Progress, heard, silent
from lazymoe.publishing import Published, open_repository

ORDER, REPOSITORY = "lazymoe-order", "lazymoe-repository"  # labels of a job: hashes of what it does, and for where


def rent(
    order: Order,
    flavor: str | None = None,
    *,
    agree: Callable[[Offer], bool],
    token: str | None = None,
    started: Callable[[Job], None] = lambda job: None,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
) -> Published:
    """Have an order done on a machine of Hugging Face Jobs, rented by the minute.

    The job goes on if this process ends. The same call follows a job that runs already, and starts no second one.

    Args:
        order: what is wanted.
        flavor: the kind of machine; by default the cheapest that is large enough and done in half a day.
        agree: is asked before anything is started, with the machine and its price, and says yes or no.
        token: with the rights to write there and to run jobs; by default the one that is found here. The machine gets
            it as a secret.
        started: told of the job, once it runs or is found.
        say: told of each line that the job says, but for progress.
        progress: told of what the job tells.

    Returns:
        Where it is, and how many bytes of weights were sent.

    Raises:
        LazyMoEError: if the price isn't agreed to, no machine is large enough, the account has no credit or no right to
            run jobs or to write there, or the job fails, is stopped or takes too long.
    """
    token, private = token or need_token(), bool(order.asked.get("private"))

    def look() -> Upload:
        return open_repository(order.repo, token, private, order.mark, make=False)

    jobs, upload = Jobs(token), look()
    if order.sure and order.made(upload):
        return Published(upload.url, 0)
    job = jobs.find({REPOSITORY: _short(order.repo)})
    if job and job.labels.get(ORDER) != _short(order.fingerprint):
        what, remedy = f"a job does something else for it: {job.url}", "Wait until it has ended, or --stop it first."
        raise error("hub.job-other", order.repo, what, remedy)
    if job is None:
        offer = make_offer(order, jobs.flavors(), flavor, order.asked.get("device"), jobs.name)
        if not agree(offer):
            raise error("input.price", "hf-jobs", "its price wasn't agreed to", "Nothing was started.")
        name = re.sub(r"[^A-Za-z0-9-]", "-", f"lazymoe-{order.repo.rpartition('/')[2]}")
        labels = {"name": name, REPOSITORY: _short(order.repo), ORDER: _short(order.fingerprint)}
        with tempfile.TemporaryDirectory(prefix="lazymoe-") as folder:
            script, files = pack(order.asked, order.files, order.needed, offer.flavor.gpu, Path(folder))
            job = jobs.start(script, files, offer.flavor.name, labels, offer.timeout)
    started(job)
    sent = _follow(jobs, job, token, say, progress)
    if not order.made(look()):
        what = f"the job has ended, and {order.repo} doesn't hold what it should have made"
        raise error("hub.job-failed", job.url, what, "Look at its log there, and run the same command again.")
    return Published(upload.url, sent)


def offer_for(order: Order, flavor: str | None = None, token: str | None = None) -> Offer:
    """Find out which machine an order would be done on, and at what price. Nothing is started.

    Args:
        order, flavor, token: as in `rent`.

    Raises:
        LazyMoEError: if no machine is large enough, or the Hub can't be reached or refuses.
    """
    jobs = Jobs(token or need_token())
    return make_offer(order, jobs.flavors(), flavor, order.asked.get("device"), jobs.name)


def stop_on_jobs(repo: str, token: str | None = None) -> Job:
    """Stop the job that runs for a repository. What it has sent isn't sent again by the next one.

    Args:
        repo: its Hub id.
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
        remedy = f"Run it again on a faster machine, {OTHER}; what the Hub has isn't sent again."
        return error("hub.job-timeout", job.url, what, remedy)
    said = last.removeprefix("error: ").rstrip(".") or "it said nothing"
    what = f"the job failed{f' ({job.message})' if job.message else ''}: {said}"
    return error("hub.job-failed", job.url, what, "Its log is there. Mend that, and run the same command again.")


def _short(text: str) -> str:
    """Make a text one that a label may hold."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
