"""A node that stops closes its connections before it ends, on slow ways and on dead ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.engine import ScriptedEngine
from tests.fabric import Fabric
from tests.faults import Connection

HOST = "127.0.0.2"


def dialled() -> list[object]:
    """Return the sockets of this process that lead to the proxy: the node's."""
    found = psutil.Process().net_connections("tcp4")
    return [one for one in found if one.raddr and one.raddr.ip == HOST]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda one: one.delay(0.1), id="slow"),
        pytest.param(Connection.black_hole, id="dead"),
    ],
)
async def test_a_node_that_has_stopped_has_no_connections(
    tmp_path: Path, engine: ScriptedEngine, fault: Callable[[Connection], None]
) -> None:
    async with Fabric(tmp_path) as fabric, fabric.faults(HOST) as proxy:
        node = await fabric.join(engine.url, via=HOST)
        assert len(dialled()) == 1 + fabric.config.tunnels
        proxy.each(fault)
        await node.stop()
        assert dialled() == []
