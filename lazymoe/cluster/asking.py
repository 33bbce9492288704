"""A cluster of Ray, and actors: begun on one of its machines, asked, and lost with it."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import (
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lazymoe.errors import LazyMoEError, error, failure, printable
from lazymoe.version import versions

# what is raised of a machine that died, or isn't known to have died yet
LOST = (
    ActorUnschedulableError, NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError,
)  # fmt: skip
SAME = "Install the same versions on all machines of the cluster, and on this one."
PATIENCE = 10.0  # seconds to wait for a cluster's first answer
TICK = 0.2  # seconds between two looks at whether something has arrived


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be part of a cluster, unless this process is already.

    Args:
        address: of the cluster, as Ray takes it; empty for the one that this machine is part of.

    Raises:
        ClusterError: if none answers, or it isn't one that this process can be part of.
    """
    if ray.is_initialized():
        yield
        return
    host, _, port = address.rpartition(":")
    plain = address and "://" not in address
    if plain and not (host and port.isdigit()):
        raise error(
            "cluster.unreachable", "--on", f"'{address}' is no address", "Say HOST:PORT, such as 10.0.0.1:6379."
        )
    try:
        if plain:  # Ray itself tries again for minutes
            socket.create_connection((host, int(port)), PATIENCE).close()
        ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as e:
        said = printable(str(e).partition("\n")[0]).rstrip(".:")
        what = f"no cluster of Ray can be reached {f'at {address}' if address else 'from this machine'} ({said})"
        remedy = (
            "Start it with 'ray start --head' on one machine and 'ray start --address=HOST:6379' on each other one."
        )
        raise error("cluster.unreachable", "--on", what, remedy) from None
    try:
        yield
    finally:
        ray.shutdown()


def alive() -> list[str]:
    """List the machines of the cluster, by what Ray knows them."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def begin_on(node: str, kind: type, beside: dict[str, int] | None = None) -> Any:
    """Begin an actor.

    Args:
        node: the machine.
        kind: the actor's class.
        beside: what it does beside all else, and how much of that at once.
    """
    where = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(concurrency_groups=beside or {}, num_cpus=0)(kind).options(scheduling_strategy=where).remote()


def wait(said: Any, tick: Callable[[], None]) -> None:
    """Wait until something is said.

    Args:
        said: what stands for it.
        tick: called now and then; what it raises ends the wait.
    """
    while not ray.wait([said], timeout=TICK)[0]:
        tick()


def hear(said: Any, tick: Callable[[], None]) -> Any:
    """Wait for what an actor says, and give it.

    Args:
        said, tick: as in `wait`.

    Raises:
        LazyMoEError, OSError: what it raised.
    """
    wait(said, tick)
    try:
        return ray.get(said)
    except RayTaskError as e:
        if isinstance(e.cause, LazyMoEError):
            raise failure(e.cause.problems) from None  # made anew: an exception's own text doesn't travel
        if isinstance(e.cause, OSError):
            raise e.cause from None
        if isinstance(e.cause, RuntimeError) and "shutdown" in str(e.cause):
            raise WorkerCrashedError from None  # its machine has died, and it is about to
        raise


def check_versions(there: Mapping[str, str]) -> None:
    """Look whether a machine has the same versions as this one.

    Args:
        there: its own, by name.

    Raises:
        ClusterError: if it hasn't.
    """
    for name, here in versions().items():
        if there[name] != here:
            raise error("cluster.versions", "--on", f"a machine has {name} {there[name]}, this one {here}", SAME)


def lost(what: str, where: str, e: Exception) -> LazyMoEError:
    """Say that something dies again and again.

    Args:
        what: it does.
        where: how messages name the place that asked for it.
        e: what was raised of it the last time.
    """
    said = printable(str(e).partition("\n")[0]).rstrip(".:")
    remedy = "Look at Ray's logs there, then run it again: it goes on from here."
    return error("cluster.lost", where, f"{what} dies on one machine after the other ({said})", remedy)
