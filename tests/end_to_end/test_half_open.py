"""Half-open connections: an old one that dies late evicts nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from fabric_client.config import Config as NodeConfig
from fabric_client.identity import Identity
from fabric_client.supervisor import Supervisor
from fabric_server.nodes.node import Node
from tests.engine import ScriptedEngine
from tests.fabric import Fabric, RunningNode
from tests.faults import Connection, FaultProxy
from tests.questions import ask, question, reply

HOST = "127.0.4.1"


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine() as engine:
        engine.reply = reply
        yield engine


@pytest.fixture
async def fabric(tmp_path: Path) -> AsyncIterator[Fabric]:
    async with Fabric(tmp_path) as fabric:
        yield fabric


@pytest.fixture
async def proxy(fabric: Fabric) -> AsyncIterator[FaultProxy]:
    async with fabric.faults(HOST) as proxy:
        yield proxy


async def registered_after(fabric: Fabric, node_id: str, epoch: int) -> Node:
    async with asyncio.timeout(20):
        while True:
            node = fabric.app.control_plane.registry.node(node_id)
            if node is not None and node.epoch > epoch and len(node.tunnels) == 2:
                return node
            await asyncio.sleep(0.01)  # the node's doing: no event for it here


async def answers(fabric: Fabric, token: str) -> None:
    async with fabric.user() as user:
        body = question(token, 5, model="tiny", stream=True)
        seen = await ask(user, "/v1/chat/completions", fabric.key, body)
    assert seen.ending == "complete"


async def bury(fabric: Fabric, old: list[Connection], node: Node) -> None:
    """Kill the old connections, first the tunnels, then the link; the new ones are unaffected."""
    for connection in sorted(old, key=lambda one: one.port, reverse=True):
        connection.reset()
        await answers(fabric, f"after-{connection.port}")
        assert fabric.app.control_plane.registry.node(node.id) is node
    assert len(node.tunnels) == 2
    assert fabric.app.control_plane.links.reconnects == 1


async def test_a_node_that_reconnects_by_itself_is_not_evicted_by_its_old_connections(
    fabric: Fabric, proxy: FaultProxy, engine: ScriptedEngine
) -> None:
    slept = 0.0
    directory = await fabric.enrol(via=HOST)
    config = NodeConfig(data=directory, name="laptop", engine=(engine.url,))
    identity = Identity.load(directory)
    supervisor = Supervisor(
        config, identity, rng=Random(), clock=lambda: time.time() + slept, sleep_check=0.05
    )
    task = asyncio.get_running_loop().create_task(supervisor.run())
    fabric.nodes.append(RunningNode(identity.node_id, config, supervisor, task))
    first = await registered_after(fabric, identity.node_id, 0)
    await answers(fabric, "before")

    old = [*proxy.links, *proxy.tunnels]
    assert len(old) == 3
    for connection in old:
        connection.black_hole()
    slept = 3600.0  # the laptop wakes up, in another network: nobody hears it hang up
    second = await registered_after(fabric, identity.node_id, first.epoch)
    await bury(fabric, old, second)


async def test_a_node_that_was_restarted_is_not_evicted_by_its_old_connections(
    fabric: Fabric, proxy: FaultProxy, engine: ScriptedEngine
) -> None:
    node = await fabric.join(engine.url, via=HOST)
    first = await registered_after(fabric, node.id, 0)
    old = [*proxy.links, *proxy.tunnels]
    for connection in old:
        connection.black_hole()
    await node.stop()  # as by a power cut: what it says last does not arrive
    fabric.nodes.remove(node)
    assert fabric.app.control_plane.registry.node(node.id) is first
    await fabric.run_node(node.config.data, engine.url)
    second = await registered_after(fabric, node.id, first.epoch)
    await bury(fabric, old, second)
