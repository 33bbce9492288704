"""A cluster of Ray on loopback: real machines as far as Ray knows, each with a cache of its own."""

from __future__ import annotations

import itertools
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from hub_server import Hub

from lazymoe.output.folder import WORK

# Ray reads these when it is imported: nodes, and all their ports, are on 127.0.0.1, and a dead one is noticed soon
os.environ |= {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_health_check_period_ms": "500",
    "RAY_health_check_initial_delay_ms": "0", "RAY_memory_monitor_refresh_ms": "0",
}  # fmt: skip


class Nodes:
    """A cluster. This process is on the first of its nodes.

    Attributes:
        address: as ``--on`` takes it.
        cluster: Ray's own.
        others: the other nodes.
    """

    def __init__(self, hub: Hub, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self._hub, self._folder, self._names = hub, folder, itertools.count()
        self.cluster, self.others = Cluster(), list[Any]()
        self.add(include_dashboard=False)
        self.address = f"ray:{self.cluster.address}"

    def add(self, **options: Any) -> None:
        """Start a node, which says its name to the Hub and has never seen a model."""
        name = f"node-{next(self._names)}"
        (self._folder / name).mkdir()
        own = {"HF_HOME": str(self._folder / name), "HF_HUB_USER_AGENT_ORIGIN": name, "HF_ENDPOINT": self._hub.url}
        path = os.pathsep.join(entry for entry in sys.path if entry)
        node = self.cluster.add_node(
            node_ip_address="127.0.0.1", num_cpus=1, object_store_memory=100 << 20,
            env_vars={**own, "PYTHONPATH": path}, **options,
        )  # fmt: skip
        if node is not self.cluster.head_node:
            self.others.append(node)

    def kill(self) -> None:
        """Kill a node, not this process's."""
        self.cluster.remove_node(self.others.pop(0), allow_graceful=False)

    def fill(self) -> None:
        """See to it that there are three."""
        while len(self.others) < 2:
            self.add()


def writers(folder: Path) -> dict[str, int]:
    """The processes, this one's and those that it began, that have half-made files of weights open, by their names."""
    found = dict[str, int]()
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            for path in (Path(file.path) for file in process.open_files()):
                if path.parent == folder / WORK and (path.suffix == ".gguf" or path.name.startswith("model-")):
                    found[path.name] = process.pid
    return found
