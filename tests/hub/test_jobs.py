"""A job's log by the genuine client, whatever happens to the connection: every line, once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from time import sleep

import pytest
from hub_server import Hub
from jobs_server import Job as There
from jobs_server import Jobs as Service

from lazymoe import HubError
from lazymoe.hub import jobs as room
from lazymoe.hub.jobs import Jobs

LINES = [f"line {i}" for i in range(40)]


@pytest.fixture
def service(clean_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.05)))
    with Service(clean_hub) as service:
        service.hold.clear()
        yield service


def talk(job: There) -> None:
    """Say all lines, a few at a time, and end."""
    for line in LINES:
        with job.more:
            job.lines.append(line)
            job.more.notify_all()
        sleep(0.02)
    job.turn("COMPLETED")


def started(service: Service) -> There:
    spec = {"labels": {"a": "b"}, "command": [], "environment": {}, "volumes": [], "timeoutSeconds": 60}
    job = service.start("writer", spec)
    job.turn("RUNNING")
    return job


FAULTS: dict[str, list[tuple[str, int | str, float]]] = {  # of what is asked for: the kind of fault, how often
    "none": [],
    "cut": [("GET .*/logs", "cut", 3)],
    "more often than the client tries": [("GET .*/logs", "cut", 8)],
    "refused for a while": [("GET .*/logs", 503, 3)],
    "all of the Hub for a while": [("GET .*/api/jobs/", 503, 9)],
    "no log for a while": [("GET .*/logs", 404, 3)],
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_every_line_is_told_once(faults: list[tuple[str, int | str, float]], service: Service, clean_hub: Hub) -> None:
    there, jobs = started(service), Jobs("hf_writer")
    job = jobs.find({"a": "b"})
    assert job and job.id == there.id and jobs.find({"a": "c"}) is None
    for fault in faults:
        clean_hub.fault(*fault, seconds=0)
    threading.Thread(target=talk, args=(there,), daemon=True).start()
    told = [line for lines in jobs.follow(job) for line in lines]
    assert told == LINES and not any(fault.times for fault in clean_hub.faults)
    assert jobs.look(job).stage == "COMPLETED" and jobs.find({"a": "b"}) is None


def test_without_the_hub_for_long_it_is_given_up(
    service: Service, clean_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(service)
    jobs = Jobs("hf_writer")
    job = jobs.find({"a": "b"})
    assert job
    monkeypatch.setattr(room, "LOST", 0.0)
    clean_hub.fault("GET .*/api/jobs/", 503, times=1000, seconds=0)
    with pytest.raises(HubError, match="in a minute"):
        list(jobs.follow(job))


def test_machines_come_with_their_prices(service: Service) -> None:
    found = {flavor.name: flavor for flavor in Jobs("hf_writer").flavors()}
    assert list(found) == ["strange", "cpu-basic", "cpu-upgrade", "t4-small", "cpu-performance"]
    upgrade = found["cpu-upgrade"]
    assert (upgrade.memory, upgrade.disk, upgrade.processors) == (32 * 10**9, 50 * 10**9, 8)
    assert upgrade.price == pytest.approx(0.03) and found["cpu-performance"].disk == 10**12
    assert found["strange"].disk == 0 and found["t4-small"].gpu and "1x T4" in found["t4-small"].words
