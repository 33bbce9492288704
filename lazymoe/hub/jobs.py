"""Hugging Face Jobs: the machines that can be rented, and a job on one: to start it, find, follow and stop it."""

from __future__ import annotations

import inspect
import io
import logging
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout, suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

from huggingface_hub import HfApi, __version__, constants
from huggingface_hub import errors as hf

from lazymoe.errors import HubError, error
from lazymoe.hub import client
from lazymoe.hub.accounts import account
from lazymoe.hub.client import About, ask, pause, without_bars
from lazymoe.units import bytes_of

ENDED = ("COMPLETED", "CANCELED", "ERROR", "DELETED")
HOURS = {"second": 1 / 3600, "minute": 1 / 60, "hour": 1.0}  # what a price is for
TICK = 0.2  # seconds between two looks at whether a line has come
LOST = 600.0  # seconds without the Hub after which a job isn't followed any more


class Flavor(NamedTuple):
    """A kind of machine.

    Attributes:
        name: as the Hub has it, such as ``cpu-upgrade``.
        words: processors, memory, disk and GPUs, in words.
        processors: how many.
        memory, disk: bytes; 0 if the Hub doesn't say.
        gpu: whether it has one.
        price: dollars for an hour.
    """

    name: str
    words: str
    processors: int
    memory: int
    disk: int
    gpu: bool
    price: float


class Job(NamedTuple):
    """A job.

    Attributes:
        id: by which the Hub knows it.
        url: the address of its page.
        stage: one of `ENDED`, or that it waits for a machine or runs.
        message: what the Hub says to that, if anything.
        labels: by which it is found.
    """

    id: str
    url: str
    stage: str
    message: str
    labels: Mapping[str, str]

    @property
    def ended(self) -> bool:
        return self.stage in ENDED


class Jobs:
    """The jobs of an account.

    Attributes:
        name: of the user, who pays for them.
    """

    def __init__(self, token: str) -> None:
        """Find out whose they are.

        Args:
            token: with the right to run jobs.

        Raises:
            HubError: if the client is too old for jobs, or the Hub doesn't know the token or can't be reached.
        """
        if "labels" not in inspect.signature(getattr(HfApi, "list_jobs", print)).parameters:
            what = f"jobs take version 1.21 or newer, and this is {__version__}"
            raise error("hub.old-client", "huggingface_hub", what, "Run: pip install -U huggingface_hub transformers")
        self._api, self._token, self.name = HfApi(token=token), token, account(token).name
        self._about = About("hf-jobs", "job")

    def flavors(self) -> list[Flavor]:
        """List the kinds of machines with their prices, the cheapest first.

        Raises:
            HubError: if the Hub refuses, can't be reached or keeps failing.
        """
        found = ask(self._about, self._api.list_jobs_hardware)
        priced = [_flavor(machine) for machine in found if machine.unit_label in HOURS]
        return sorted(priced, key=lambda flavor: (flavor.price, flavor.memory))

    def start(self, script: Path, files: list[Path], flavor: str, labels: dict[str, str], timeout: int) -> Job:
        """Start a job that runs a script, which finds the token in its environment as HF_TOKEN.

        It isn't tried again, as there might be two of them then.

        Args:
            script: a Python script that says what it needs, for uv.
            files: that it gets as its arguments.
            flavor: the kind of machine.
            labels: to find it by, and its ``name``.
            timeout: seconds after which it is stopped.

        Raises:
            HubError: if the Hub refuses, can't be reached or fails; or if the files would be public.
        """
        self._look_at_bucket()

        def run() -> Any:
            return self._api.run_uv_job(
                str(script), script_args=list(map(str, files)), flavor=flavor, timeout=timeout, labels=labels,
                secrets={"HF_TOKEN": self._token}, namespace=self.name,
            )  # fmt: skip

        with without_bars(), redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says where it puts the files, and that this may change
            return _job(ask(self._about, run, tries=1))

    def _look_at_bucket(self) -> None:
        """Look whether others can see the bucket that the client puts files into; it makes one that they can't."""
        bucket = f"{self.name}/{constants.HF_JOBS_ARTIFACTS_BUCKET_NAME}"

        def find() -> Any:
            try:
                return self._api.bucket_info(bucket)
            except hf.BucketNotFoundError:
                return None

        if (found := ask(self._about, find)) and not found.private:
            what = "your recipe would lie in a bucket that everybody can see"
            page = f"{self._api.endpoint}/buckets/{bucket}"
            raise error("hub.public", f"bucket {bucket}", what, f"Make it private at {page}.")

    def find(self, labels: dict[str, str]) -> Job | None:
        """Find the job with these labels that hasn't ended; None if there is none.

        Args:
            labels: all of which it has.

        Raises:
            HubError: as `flavors`.
        """
        found = ask(self._about, lambda: list(self._api.list_jobs(labels=labels, namespace=self.name)))
        return next((job for job in map(_job, found) if not job.ended), None)

    def look(self, job: Job) -> Job:
        """Ask how a job stands.

        Args:
            job: as it was known.

        Raises:
            HubError: if there is no such job any more, or as `flavors`.
        """
        about = About(job.url, "job", job.id)
        return _job(ask(about, lambda: self._api.inspect_job(job_id=job.id, namespace=self.name)))

    def stop(self, job: Job) -> None:
        """Stop a job.

        Args:
            job: which one.

        Raises:
            HubError: as `look`.
        """
        ask(About(job.url, "job", job.id), lambda: self._api.cancel_job(job_id=job.id, namespace=self.name))

    def follow(self, job: Job) -> Iterator[list[str]]:
        """Yield the lines that a job says, until it has ended: those that are there together, others as they come.

        A connection that breaks is made again, and no line is told twice.

        Args:
            job: which one.

        Raises:
            HubError: if there is no such job any more, or the Hub can't be reached for long.
        """
        told, failed, seen, ended = 0, 0, time.monotonic(), False
        while True:
            for lines in _Reader(self._api, job, self.name, told):
                told, failed, seen = told + len(lines), 0, time.monotonic()
                yield lines
            if ended:
                return
            try:
                ended, seen = self.look(job).ended, time.monotonic()
            except HubError as e:
                if not e.problems[0].failed or time.monotonic() - seen > LOST:
                    raise
            if not ended:  # else its last lines are asked for once more: a log that was cut looks like its end
                failed += 1
                pause(min(client.WAIT * 2**failed, client.LONGEST_WAIT))


class _Reader:
    """The lines of a job's log from some line on, read by a thread: waiting for them can be stopped."""

    def __init__(self, api: HfApi, job: Job, namespace: str, skipped: int) -> None:
        self._lines, self._left = SimpleQueue[str | None](), False
        Thread(target=self._read, args=(api, job, namespace, skipped), daemon=True).start()

    def _read(self, api: HfApi, job: Job, namespace: str, skipped: int) -> None:
        told = logging.getLogger("huggingface_hub.hf_api")
        level = told.level
        told.setLevel(logging.ERROR)  # of each connection that breaks
        with suppress(Exception):  # `follow` asks what has become of the job
            for i, line in enumerate(api.fetch_job_logs(job_id=job.id, namespace=namespace, follow=True)):
                if self._left:
                    break
                if i >= skipped:
                    self._lines.put(line)
        told.setLevel(level)
        self._lines.put(None)

    def __iter__(self) -> Iterator[list[str]]:
        ended = False
        try:
            while not ended:
                time.sleep(TICK)  # what comes at once is told together
                lines: list[str] = []
                while not (self._lines.empty() or ended):
                    line = self._lines.get()
                    ended = line is None
                    lines += [] if line is None else [line]
                if lines:
                    yield lines
        finally:
            self._left = True


def _job(found: Any) -> Job:
    stage = getattr(found.status.stage, "value", found.status.stage)
    return Job(found.id, found.url, str(stage), found.status.message or "", found.labels or {})


def _flavor(machine: Any) -> Flavor:
    count = re.match(r"\d+", machine.cpu)
    gpu = machine.accelerator
    words = f"{machine.cpu}, {machine.ram} of memory, {machine.ephemeral_storage} of disk"
    words += f", {gpu.quantity}x {gpu.model}" if gpu else ""
    price = (machine.unit_cost_usd or 0) / HOURS[machine.unit_label]
    size = bytes_of(machine.ram), bytes_of(machine.ephemeral_storage)
    return Flavor(machine.name, words, int(count[0]) if count else 1, *size, bool(gpu), price)
