"""Tunnels that died while idle: the next request is hardly delayed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fabric_server.nodes.node import Node
from protocol.aio.server import ServerTunnel
from protocol.tunnel.keepalive import QUIET_SECONDS
from tests.engine import ScriptedEngine
from tests.fabric import Fabric
from tests.faults import Connection, FaultProxy

STREAM: Any = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
CHAT = "/v1/chat/completions"
HOST = "127.0.5.1"


async def until(condition: Callable[[], bool]) -> None:
    """Poll for a condition that depends on time, for which there is no event."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def ask(fabric: Fabric) -> bytes:
    async with fabric.user() as user, user.post(CHAT, json=STREAM) as answer:
        return await answer.read()


async def the_next_one(node: Node) -> ServerTunnel:
    """Return the tunnel of the next request, once all have been idle for a while."""
    loop = asyncio.get_running_loop()
    while True:
        silent = loop.time() - max(
            tunnel.connection.keepalive.last_received for tunnel in node.tunnels
        )
        if silent > QUIET_SECONDS:
            break
        await asyncio.sleep(QUIET_SECONDS - silent + 0.01)
    tunnel = node.tunnel(asyncio.get_running_loop().time())
    assert tunnel is not None
    return tunnel


def wire_of(proxy: FaultProxy, tunnel: ServerTunnel) -> Connection:
    [wire] = (wire for wire in proxy.tunnels if wire.seen_as == tunnel.peer)
    return wire


async def test_a_question_that_a_dead_tunnel_swallows_is_asked_on_the_other_one(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with Fabric(tmp_path) as fabric, fabric.faults(HOST) as proxy:
        await fabric.join(engine.url, via=HOST)
        [node] = fabric.app.control_plane.registry.nodes()
        dead = await the_next_one(node)
        wire_of(proxy, dead).black_hole()
        assert b"[DONE]" in await ask(fabric)
        assert dead.connection.closed
        assert len(engine.requests) == 1
        entry = (await fabric.ledger())[0]
        assert (entry.outcome, entry.attempts) == ("ok", 2)


async def test_a_node_all_of_whose_tunnels_are_dead_is_left_before_they_are_given_up(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with (
        Fabric(tmp_path) as fabric,
        fabric.faults(HOST) as proxy,
        ScriptedEngine(models=["tiny", "more"]) as other,
    ):
        await fabric.join(engine.url, via=HOST)
        [node] = fabric.app.control_plane.registry.nodes()
        await the_next_one(node)
        proxy.each(Connection.black_hole)
        task = asyncio.create_task(ask(fabric))
        await until(lambda: node.active > 0)
        await fabric.join(other.url, name="other")
        await other.started()
        assert len(node.tunnels) == 2, "neither has been given up"
        assert b"[DONE]" in await task
        await until(lambda: not node.reachable)  # nobody else is sent there


async def test_a_tunnel_that_is_only_slow_answers_what_it_was_asked(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with Fabric(tmp_path, tunnels=1) as fabric, fabric.faults(HOST) as proxy:
        await fabric.join(engine.url, via=HOST)
        [node] = fabric.app.control_plane.registry.nodes()
        slow = await the_next_one(node)
        wire_of(proxy, slow).black_hole()
        task = asyncio.create_task(ask(fabric))
        await until(lambda: slow.connection.suspected)
        wire_of(proxy, slow).heal()
        assert b"[DONE]" in await task
        assert node.tunnels == [slow]
        assert len(engine.requests) == 1
        assert (await fabric.ledger())[0].attempts == 1
