"""What becomes of a node's tunnels is seen by routing at once, without looking at each node."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from random import Random
from typing import Any, cast

import pytest

from fabric_server.net.connection_budget import Peer
from fabric_server.nodes.candidates import UNSORTED
from fabric_server.nodes.node import Node
from fabric_server.nodes.registry import Registry
from fabric_server.nodes.tunnels import Tunnels
from protocol.aio.memory import MemoryTransport
from protocol.aio.node import NodeTunnel
from protocol.aio.server import ServerTunnel
from protocol.messages import EngineReport, ModelReport, Register
from tests.site import turns


class Certified(MemoryTransport):
    """The server's end of a connection whose other end has shown a node's certificate."""

    def __init__(self, tunnel: ServerTunnel, loop: asyncio.AbstractEventLoop, node_id: str) -> None:
        super().__init__(tunnel, loop)
        self._certificate = {
            "subject": ((("commonName", node_id),),),
            "notAfter": "Jan  1 00:00:00 2099 GMT",
        }

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._certificate if name == "peercert" else default


class End:
    """The node's end of its only tunnel (``protocol.aio.node.NodeTunnelOwner``)."""

    def __init__(self, tunnels: Tunnels, node: Node) -> None:
        loop = asyncio.get_running_loop()
        self.server = tunnels(Peer(ip_address("127.0.0.1")))
        self.tunnel = NodeTunnel(self, loop, rng=Random(1), accept=lambda *_: None)
        self.tunnel.hello(node.session)
        wire, own = Certified(self.server, loop, node.id), MemoryTransport(self.tunnel, loop)
        wire.join(own)
        self.server.connection_made(wire)
        self.tunnel.connection_made(own)

    def on_drain(self, tunnel: NodeTunnel, reason: str, seconds: float) -> None: ...
    def on_closed(self, tunnel: NodeTunnel, code: int, reason: str) -> None: ...


def with_room(registry: Registry) -> set[Node]:
    """The nodes that a choice looks at."""
    engines, count, more = registry.candidates("tiny").with_room(0.0, "")
    return {engine.node for engine in (*engines[:count], *more)}


async def connected(count: int) -> tuple[Registry, Tunnels, list[End]]:
    registry, ends = Registry(), []
    tunnels = Tunnels(registry, Random(1))
    report = EngineReport("engine", "vllm", True, 4, [ModelReport("tiny")])
    for number in range(count):
        register = Register(1, "0", "name", "test", [report])
        node = Node(f"node_{number}", 1, register, cast(Any, object()), 0.0)
        registry.add(node)
        registry.report(node, [report])
        ends.append(End(tunnels, node))
    return registry, tunnels, ends


@pytest.mark.parametrize("what", ["drained", "closed", "silent"])
async def test_a_node_whose_tunnel_is_lost_is_not_looked_at(what: str) -> None:
    registry, tunnels, ends = await connected(UNSORTED + 1)
    assert with_room(registry) == set(), "no tunnel has said yet whose it is"
    await turns()
    first, *others = registry.nodes()
    assert with_room(registry) == {first, *others}
    server, end = ends[0].server, ends[0].tunnel
    if what == "drained":
        end.drain("test", 60.0)
    elif what == "closed":
        end.close(0, "test")
    else:
        server.connection.keepalive.suspected = True
        tunnels.on_silence(server)
    await turns()
    assert with_room(registry) == set(others)
    if what == "silent":
        server.probe()
        await turns()
        assert with_room(registry) == {first, *others}, "it has answered"
