"""A server's stop ends all requests, and does not wait for ever for one that does not end."""

from __future__ import annotations

import asyncio

from fabric_server.edge.request import Request
from protocol.errors import Code
from tests.site import ASK, STREAM, Site, ask, begin_stream, turns
from tests.users import request


async def test_all_requests_are_ended_wherever_they_are() -> None:
    site = Site()
    node = site.node(slots=2)
    _, streaming = await begin_stream(site, node, STREAM)
    ask(site)
    asked = await node.call()
    ask(site)  # waits for a slot
    sending = site.user()
    whole = request("POST", "/v1/chat/completions", ASK, **site.key)
    sending.send(whole[:-5])
    await turns()
    active = site.gateway.active
    assert active.count == 4
    assert len(active.ids(20).split()) == 4
    assert len(active.ids(3).split()) == 3
    assert await active.end_all(5.0)
    assert active.count == 0
    assert [entry.outcome for entry in site.ledger] == ["cancelled"] * 4
    for call in (streaming, asked):
        assert await call.stopped() is Code.CANCELLED
        call.confirm()
    await site.free()


async def test_a_request_that_does_not_end_is_not_waited_for() -> None:
    """A defect that no real part shows: its task ignores that it is cancelled."""
    site = Site()
    site.node()
    go_on = asyncio.Event()

    async def ignore(_: object) -> None:
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue

    handle = site.edge.handler

    async def with_defect(asked: Request) -> None:
        asked.body.preparations = (ignore,)
        await handle(asked)

    site.edge.handler = with_defect
    ask(site)
    await turns()
    active = site.gateway.active
    assert active.count == 1
    assert not await active.end_all(0.01)
    go_on.set()
    await turns()
    assert await active.end_all(5.0)
