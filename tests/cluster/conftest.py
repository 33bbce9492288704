"""A cluster that the tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hub_server import Hub
from ray_nodes import Nodes


@pytest.fixture(scope="session")
def started(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    pytest.importorskip("ray")
    nodes = Nodes(hub, tmp_path_factory.mktemp("nodes"))
    yield nodes
    nodes.cluster.shutdown()


@pytest.fixture
def nodes(started: Nodes) -> Nodes:
    """A cluster of three nodes."""
    started.fill()
    return started
