"""Nothing is left behind by a request that is over, or by a defect."""

from __future__ import annotations

import asyncio
import gc
import logging
from dataclasses import replace
from typing import Any

import pytest

from fabric_server.edge.connection import Connection
from fabric_server.edge.request import Request
from fabric_server.proxy.attempt import Attempt
from protocol.errors import Code
from tests.site import (
    ANSWER,
    ASK,
    CHAT,
    DONE,
    PATIENT,
    STREAM,
    Ledger,
    Site,
    ask,
    begin_stream,
    chunk,
    first_call,
    turns,
)
from tests.users import request


async def test_a_finished_request_is_forgotten_without_the_garbage_collector() -> None:
    site = Site()
    node = site.node()
    user = site.user()
    gc.collect()
    gc.disable()
    try:
        before = _count(Attempt, Request)
        for body in (ASK, STREAM) * 10:
            user.send(request("POST", CHAT, body, **site.key))
            call = await node.call()
            if body is ASK:
                call.answer(200, ANSWER)
            else:
                call.stream_all(chunk("a"), chunk(None), DONE)
            await user.answer()
            del call
        await site.gateway.active.wait_idle()
        await asyncio.sleep(0)
        assert _count(Attempt, Request) == before
    finally:
        gc.enable()


@pytest.mark.parametrize("ending", ["first", "second", "breaks", "both fail", "hangs up"])
async def test_a_request_that_two_nodes_were_asked_is_forgotten_likewise(ending: str) -> None:
    site = Site(timeouts=replace(PATIENT, stall=30.0))
    nodes = [site.node(), site.node()]
    user = site.user()
    gc.collect()
    gc.disable()
    try:
        before = _count(Attempt, Request)
        for _ in range(5 if ending in ("first", "second") else 1):
            user.send(request("POST", CHAT, STREAM, **site.key))
            first, slow = await first_call(nodes)
            site.wait(31.0)
            second = await nodes[nodes[0] is slow].call()
            winner, loser = (first, second) if ending == "first" else (second, first)
            if ending == "hangs up":
                user.hang_up()
                calls = (first, second)
            elif ending == "both fail":
                first.fail(Code.REFUSED)
                second.fail(Code.REFUSED)
                calls = ()
            else:
                winner.begin_stream()
                winner.data(chunk("a"))
                calls = (loser,)
                if ending == "breaks":
                    await user.until(b'"a"')
                    winner.fail(Code.ENGINE_FAILED)
                else:
                    winner.data(chunk(None) + DONE)
                    winner.end()
            for call in calls:
                await call.stopped()
                call.confirm()
            if ending != "hangs up":
                await user.answer()
            await site.free()
            first = second = winner = loser = call = None  # type: ignore[assignment]
            calls = ()
        await site.gateway.active.wait_idle()
        user.hang_up()
        await turns()
        assert _count(Attempt, Request) == before
    finally:
        gc.enable()


def _count(*kinds: type) -> int:
    return sum(isinstance(thing, kinds) for thing in gc.get_objects())


async def test_a_connection_that_is_gone_is_forgotten_without_the_garbage_collector() -> None:
    site = Site()
    gc.collect()
    before = _count(Connection)
    gc.disable()
    try:
        user = site.user()
        await user.ask("GET", "/")
        user.send(b"POST / HTTP/1.1\r\nhost")
        assert _count(Connection) == before + 1
        user.hang_up()
        del user
        await asyncio.sleep(0)
        assert _count(Connection) == before
    finally:
        gc.enable()


async def test_a_long_prompt_is_not_kept_for_as_long_as_its_answer_takes() -> None:
    site = Site()
    node = site.node()
    user, call = await begin_stream(site, node, {**STREAM, "x": "x" * 200_000})
    await call.whole_body()
    call.body.clear()
    [record] = site.gateway.active.list()
    assert record.request.body.replay_buffer == b""
    assert record.request.body.buffered == 0
    user.hang_up()


async def test_a_defect_costs_its_request_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Ledger):
        def publish(self, topic: str, record: Any) -> None:
            raise RuntimeError("the bus is broken")

    site = Site(ledger=Broken())
    node = site.node()
    user = ask(site)
    node.refuses = Code.ENGINE_DOWN
    with caplog.at_level(logging.ERROR):
        answer = await user.answer()
    assert (answer.status, answer.code) == (500, "internal_error")
    assert "the bus is broken" in caplog.text
    assert site.gateway.active.count == 0
    assert (await user.ask("GET", "/")).status == 200


async def test_a_server_that_leaves_breaks_off_what_runs_and_stops_the_engines() -> None:
    site = Site()
    node = site.node()
    user, call = await begin_stream(site, node)
    site.edge.close()
    assert user.aborted
    assert await call.stopped() == Code.CANCELLED
    await site.gateway.active.wait_idle()
    assert site.edge.connections == 0
