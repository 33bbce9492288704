"""A stand-in for Hugging Face Jobs, and for as much of buckets as they need, at the Hub on loopback.

    jobs = Jobs(hub)
    jobs.hold.clear()       # the next jobs wait for a machine, until it is set

A job's script is run by this Python in place of uv, so what it needs must be installed here; all else is as on a
machine of its own: the files that were put into the bucket, the job's environment and secrets, a home of its own. What
a machine is like, what the service says of a job that failed, and its prices were read in the client's source and
documentation, not at the service itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hub_server import DATE, Answer, Call, Hub, Refused, route

KEPT_ALIVE = 1.0  # seconds without a line after which an empty event is sent
MACHINES = {  # name: processors, memory, disk, GPU, dollars a minute
    "cpu-basic": ("2 vCPU", "16 GB", "20 GB", None, 0.000167),
    "cpu-upgrade": ("8 vCPU", "32 GB", "50 GB", None, 0.0005),
    "t4-small": ("4 vCPU", "15 GB", "100 GB", "T4", 0.006667),
    "cpu-performance": ("32 vCPU", "256 GB", "1 TB", None, 0.031667),
    "strange": ("1 vCPU", "1 GB", "N/A", None, 0.0001),
}
NAMES = "([^/]+)/([^/]+)"  # a namespace, and what is in it


@dataclass
class Job:
    id: str
    owner: str
    spec: dict[str, Any]
    folder: Path  # the machine's
    stage: str = "SCHEDULING"
    message: str | None = None
    lines: list[str] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None
    more: threading.Condition = field(default_factory=threading.Condition)  # lines, or another stage

    @property
    def ended(self) -> bool:
        return self.stage not in ("SCHEDULING", "RUNNING")

    def turn(self, stage: str, message: str | None = None) -> None:
        """Get into another stage, unless it has ended."""
        with self.more:
            if not self.ended:
                self.stage, self.message = stage, message
            self.more.notify_all()

    def end(self, stage: str, message: str | None = None) -> None:
        """Stop it."""
        self.turn(stage, message)
        if self.process:
            self.process.kill()

    def shown(self) -> dict[str, Any]:
        """What anybody sees who may see it."""
        open_to_all = ("command", "arguments", "environment", "flavor", "labels", "volumes", "dockerImage")
        spec = {name: self.spec[name] for name in open_to_all if name in self.spec}
        names = {"id": self.id, "createdAt": DATE, "owner": {"id": self.owner, "name": self.owner, "type": "user"}}
        return {**spec, **names, "secrets": {}, "status": {"stage": self.stage, "message": self.message}}


class Jobs:
    """All jobs of a Hub, as long as the `with` block."""

    def __init__(self, hub: Hub) -> None:
        self.hub, self.jobs = hub, dict[str, Job]()
        self.store = f"buckets-{id(self)}"  # one for each process that uploads, as hf_xet locks it
        self.files: dict[str, dict[str, str]] = {}  # of each bucket, path to Xet hash
        self.public = set[str]()  # of these buckets
        self.hold = threading.Event()
        self.hold.set()

    def __enter__(self) -> Jobs:
        self.hub.jobs = self
        (self.hub.root / self.store).mkdir(exist_ok=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self.hold.set()
        for job in self.jobs.values():
            job.end("CANCELED")

    def start(self, owner: str, spec: dict[str, Any]) -> Job:
        number = len(self.jobs)
        job = Job(f"{number:024x}", owner, spec, self.hub.root / f"machine-{id(self)}-{number}")
        self.jobs[job.id] = job
        threading.Thread(target=self.run, args=(job,), daemon=True).start()
        return job

    def run(self, job: Job) -> None:
        """Be the machine."""
        self.hold.wait()
        if job.ended:
            return
        job.turn("RUNNING")
        (job.folder / "home").mkdir(parents=True)
        for volume in job.spec["volumes"]:
            place = job.folder / volume["mountPath"].strip("/")
            place.mkdir()
            for path, xet_hash in self.files[volume["source"]].items():
                if path.startswith(f"{volume['path']}/"):
                    self.hub.unpack(xet_hash, place / path.removeprefix(f"{volume['path']}/"), self.store)
        uv, run, *words = job.spec["command"]
        assert (uv, run) == ("uv", "run")
        words = [str(job.folder / word.strip("/")) if word.startswith("/data/") else word for word in words]
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(job.folder / "home"), "TMPDIR": str(job.folder),
            "OMP_NUM_THREADS": "1", "HF_ENDPOINT": self.hub.url,
            "HF_HUB_DISABLE_XET": "1",  # its store would be locked by who uploaded last
            **job.spec["environment"], **job.spec.get("secrets", {}),
        }  # fmt: skip
        limit = threading.Timer(job.spec["timeoutSeconds"], job.end, ("ERROR", "Job timeout"))
        limit.start()
        job.process = subprocess.Popen(
            [sys.executable, *words], cwd=job.folder, env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert job.process.stdout
        for line in job.process.stdout:
            with job.more:
                job.lines.append(line.rstrip("\n"))
                job.more.notify_all()
        code = job.process.wait()
        limit.cancel()
        if code == 0:
            job.turn("COMPLETED")
        else:
            job.turn("ERROR", f"Job failed with exit code: {128 - code if code < 0 else code}")
        shutil.rmtree(job.folder, ignore_errors=True)

    def find(self, call: Call, owner: str, name: str) -> Job:
        self.check(call, owner)
        if name not in self.jobs:
            raise Refused(404, "Job not found")
        return self.jobs[name]

    def check(self, call: Call, owner: str) -> None:
        if call.user is None or call.user.name != owner:
            raise Refused(404, "Not found")

    def log(self, job: Job) -> Iterator[bytes]:
        """The events of a job's log, from its beginning to its end."""
        told = 0
        while True:
            with job.more:
                if told == len(job.lines) and not job.ended:
                    job.more.wait(KEPT_ALIVE)
                lines, ended = job.lines[told:], job.ended
            told += len(lines)
            yield from (f"data: {json.dumps({'timestamp': DATE, 'data': line})}\n\n".encode() for line in lines)
            if ended and not lines:
                return
            if not lines:
                yield b": keep-alive\n\n"


@route("GET", "/api/jobs/hardware")
def hardware(call: Call) -> Answer:
    found = []
    for name, (cpu, ram, disk, gpu, price) in MACHINES.items():
        accelerator = {"type": "gpu", "model": gpu, "quantity": "1", "vram": "16 GB", "manufacturer": "Nvidia"}
        cost = {"unitCostMicroUSD": round(price * 1e6), "unitCostUSD": price, "unitLabel": "minute"}
        size = {"cpu": cpu, "ram": ram, "ephemeralStorage": disk, "accelerator": accelerator if gpu else None}
        found.append({"name": name, "prettyName": name, **size, **cost})
    return Answer(found)


@route("POST", "/api/jobs/([^/]+)")
def start(call: Call, owner: str) -> Answer:
    call.check_write(owner)
    return Answer(call.hub.jobs.start(owner, json.load(call.body)).shown())


@route("GET", "/api/jobs/([^/]+)")
def list_jobs(call: Call, owner: str) -> Answer:
    jobs: Jobs = call.hub.jobs
    jobs.check(call, owner)
    wanted = dict(label.split("=", 1) for label in call.query.get("label", []))
    mine = [job for job in jobs.jobs.values() if job.owner == owner]
    return Answer([job.shown() for job in mine if wanted.items() <= job.spec.get("labels", {}).items()])


@route("GET", f"/api/jobs/{NAMES}")
def inspect_job(call: Call, owner: str, name: str) -> Answer:
    return Answer(call.hub.jobs.find(call, owner, name).shown())


@route("POST", f"/api/jobs/{NAMES}/cancel")
def cancel(call: Call, owner: str, name: str) -> Answer:
    job = call.hub.jobs.find(call, owner, name)
    job.end("CANCELED")
    return Answer(job.shown())


@route("GET", f"/api/jobs/{NAMES}/logs")
def logs(call: Call, owner: str, name: str) -> Answer:
    jobs: Jobs = call.hub.jobs
    return Answer(stream=jobs.log(jobs.find(call, owner, name)))


@route("POST", f"/api/buckets/{NAMES}")
def create_bucket(call: Call, owner: str, name: str) -> Answer:
    call.check_write(owner)
    files = call.hub.jobs.files
    if f"{owner}/{name}" in files:
        raise Refused(409, "You already created this bucket", url=f"{call.hub.url}/buckets/{owner}/{name}")
    files[f"{owner}/{name}"] = {}
    return Answer({"url": f"{call.hub.url}/buckets/{owner}/{name}"})


@route("GET", f"/api/buckets/{NAMES}")
def bucket_info(call: Call, owner: str, name: str) -> Answer:
    jobs: Jobs = call.hub.jobs
    if f"{owner}/{name}" not in jobs.files:
        raise Refused("RepoNotFound")
    private = f"{owner}/{name}" not in jobs.public
    return Answer({"id": f"{owner}/{name}", "private": private, "createdAt": DATE, "size": 0, "totalFiles": 0})


@route("GET", f"/api/buckets/{NAMES}/xet-write-token")
def bucket_token(call: Call, owner: str, name: str) -> Answer:
    call.check_write(owner)
    url = f"local://{call.hub.root / call.hub.jobs.store}"
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "-", "X-Xet-Token-Expiration": "9999999999"}
    return Answer({"casUrl": url, "accessToken": "-", "exp": 9999999999}, headers=headers)


@route("POST", f"/api/buckets/{NAMES}/batch")
def batch(call: Call, owner: str, name: str) -> Answer:
    call.check_write(owner)
    for line in map(json.loads, call.body):
        assert line["type"] == "addFile"
        call.hub.jobs.files[f"{owner}/{name}"][line["path"]] = line["xetHash"]
    return Answer({"success": True, "processed": 1, "succeeded": 1, "failed": []})
