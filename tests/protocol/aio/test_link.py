"""Links on transports."""

from __future__ import annotations

import asyncio
from random import Random

from protocol.aio.link import LinkDriver
from protocol.aio.memory import connect
from protocol.control.link import LinkClosed
from protocol.errors import Code
from protocol.messages import Leaving, Message, Tunnels
from tests.loops import on_both_loops
from tests.protocol.aio.ends import (
    turns,
)


class LinkWatch:
    def __init__(self) -> None:
        self.heard: list[Message | LinkClosed] = []

    def on_message(self, link: LinkDriver, message: Message) -> None:
        self.heard.append(message)

    def on_closed(self, link: LinkDriver, closed: LinkClosed) -> None:
        self.heard.append(closed)


def link_ends() -> tuple[LinkDriver, LinkWatch, LinkDriver, LinkWatch]:
    loop = asyncio.get_running_loop()
    owners = LinkWatch(), LinkWatch()
    server, node = (LinkDriver(owner, loop, rng=Random(1)) for owner in owners)
    connect(server, node, loop)
    return server, owners[0], node, owners[1]


@on_both_loops
async def test_messages_cross_a_link_and_a_refusal_ends_it():
    server, server_owner, node, node_owner = link_ends()
    node.send(Leaving("going home", 3.0))
    await turns()
    assert server_owner.heard == [Leaving("going home", 3.0)]
    server.send(Tunnels(4))
    server.close(Code.UNAUTHORISED, "revoked", again=False)
    assert server_owner.heard[-1] == LinkClosed(Code.UNAUTHORISED, "revoked", False, False)
    await turns()
    assert node_owner.heard == [
        Tunnels(4),
        LinkClosed(Code.UNAUTHORISED, "revoked", False, True),
    ]
    assert server.peer_certificate() == node.peer_certificate() == {}
    assert repr(server) == "<LinkDriver in process <Link closed>>"


@on_both_loops
async def test_an_owner_that_fails_costs_the_link_and_says_so(caplog):
    server, _, node, node_owner = link_ends()

    class Failing(LinkWatch):
        def on_message(self, link: LinkDriver, message: Message) -> None:
            raise ZeroDivisionError("a defect")

    failing = server.owner = Failing()
    node.send(Tunnels(3))
    node.send(Tunnels(4))
    await turns()
    closed = LinkClosed(Code.INTERNAL, "defect", True, True)
    assert node_owner.heard == [closed]
    assert [type(heard) for heard in failing.heard] == [LinkClosed]
    assert "a defect" in caplog.text
