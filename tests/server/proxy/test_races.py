"""However a second node comes to be asked, a user gets one answer, and the ledger one row."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from random import Random

import pytest

from fabric_server.proxy.hedging import Hedging
from fabric_server.proxy.quantile import MIN_SAMPLES
from ledger.records import LedgerEntry
from protocol.errors import Code
from tests.site import (
    ASK,
    DONE,
    PATIENT,
    STREAM,
    Call,
    ScriptedNode,
    Site,
    ask,
    chunk,
    first_call,
    turns,
    usage_chunk,
)
from tests.users import PATIENCE

STALLS = replace(PATIENT, stall=30.0)
USUAL = 40.0
"""Seconds until the first byte, as was observed: the stall is noticed first."""
MARKS = ("alpha", "beta", "gamma", "omega")


def race_site(nodes: int, *, hedges: bool) -> tuple[Site, list[ScriptedNode]]:
    site = Site(timeouts=STALLS)
    if hedges:
        site.upstream.hedging = Hedging(on=True)
        for stream in (True, False):
            for _ in range(MIN_SAMPLES):
                site.upstream.hedging.observe("tiny", USUAL, stream=stream)
    return site, [site.node(kind="vllm") for _ in range(nodes)]


@pytest.mark.parametrize("failover", ["off", "continue"])
@pytest.mark.parametrize("code", [Code.ENGINE_FAILED, Code.LOST, Code.DRAINING])
async def test_a_winner_that_breaks_off_ends_the_request(failover: str, code: Code) -> None:
    """Its answer has begun, so nobody is asked from the beginning again."""
    site, nodes = race_site(3, hedges=False)
    user = ask(site, STREAM, **{"x-fabric-failover": failover})
    first, slow = await first_call(nodes)
    site.wait(31.0)
    others = [node for node in nodes if node is not slow]
    second, quick = await first_call(others)
    second.begin_stream()
    second.data(chunk("Hi"))
    await user.until(b"Hi")
    assert await first.stopped() is Code.CANCELLED
    first.confirm()
    second.fail(code)
    [third] = [node for node in others if node is not quick]
    if failover == "continue":
        (await third.call()).stream_all(chunk(" there"), chunk(None), usage_chunk(5, 2), DONE)
        assert b"there" in (await user.answer()).body
    else:
        assert b"upstream_lost" in (await user.answer()).body
    entry = await site.entry()
    assert entry.outcome == ("ok" if failover == "continue" else "failed")
    await turns(50)
    assert all(node.idle for node in nodes)
    await site.free()


@pytest.mark.parametrize("body", [ASK, STREAM], ids=["whole", "stream"])
async def test_an_attempt_that_is_raced_already_is_not_hedged(body: dict[str, object]) -> None:
    site, nodes = race_site(3, hedges=True)
    user = ask(site, body)
    _first, slow = await first_call(nodes)
    site.wait(31.0)
    others = [node for node in nodes if node is not slow]
    second, quick = await first_call(others)
    site.wait(41.0)
    await turns(50)
    [third] = [node for node in others if node is not quick]
    assert third.idle
    second.stream_all(chunk("Hi"), chunk(None), DONE) if body is STREAM else second.answer(
        200, b'{"choices":[]}'
    )
    assert (await user.answer()).status == 200
    assert (await site.entry()).attempts == 2


async def answer(node: ScriptedNode, mark: str, rng: Random, *, stream: bool) -> None:
    """Answer whatever the node is asked, at any pace, well or not, with ``mark``."""

    async def some_turns(call: Call) -> bool:
        """False when it is not wanted any more."""
        await turns(rng.randrange(12))
        if call.reset is not None:
            call.confirm()
        return call.reset is None

    async def one(call: Call) -> None:
        if not await some_turns(call):
            return
        if rng.random() < 0.2:
            call.fail(rng.choice([Code.ENGINE_FAILED, Code.REFUSED, Code.DRAINING, Code.LOST]))
            return
        kind = "text/event-stream" if stream else "application/json"
        call.head(rng.choice([200, 200, 200, 400, 503]), ("content-type", kind))
        if not await some_turns(call):
            return
        call.data(chunk(mark) if stream else json.dumps({"said": mark}).encode())
        if not await some_turns(call):
            return
        if rng.random() < 0.3:
            call.fail(rng.choice([Code.ENGINE_FAILED, Code.LOST]))
            return
        if stream:
            call.data(chunk(None) + usage_chunk(5, 40) + DONE)
        call.end()

    async with asyncio.TaskGroup() as group:
        while True:
            group.create_task(one(await node.call(timeouts=None)))


@pytest.mark.parametrize("seed", range(120))
async def test_in_whatever_order_things_happen_there_is_one_answer_and_one_row(
    seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    rng = Random(seed)
    stream, failover = rng.random() < 0.7, rng.choice(["off", "continue"])
    site, nodes = race_site(rng.choice([2, 3, 4]), hedges=rng.random() < 0.7)
    user = ask(site, STREAM if stream else ASK, **{"x-fabric-failover": failover})
    call, slow = await first_call(nodes)
    for seconds in rng.choice([(31.0,), (31.0, 41.0), (41.0,), ()]):
        site.wait(seconds)
        await turns(rng.randrange(3))
    slow.put_back(call)
    going = [
        asyncio.create_task(answer(node, mark, rng, stream=stream))
        for node, mark in zip(nodes, MARKS, strict=False)
    ]
    if rng.random() < 0.3:
        await turns(rng.randrange(30))
        rng.choice([user.hang_up, lambda: site.wait(25.0)])()
    try:
        entry = await site.entry()
        user.hang_up()
        await site.free()
        await turns(50)
    finally:
        for task in going:
            task.cancel()
        await asyncio.gather(*going, return_exceptions=True)
    assert entry.attempts <= 3
    told = bytes(user.received)
    said = [mark for mark in MARKS if mark.encode() in told]
    if failover == "off":
        assert len(said) <= 1
    assert told.count(b"HTTP/1.1") <= 1
    assert not [line for line in caplog.records if line.levelno >= logging.ERROR], "a defect"
    async with asyncio.timeout(PATIENCE):
        await site.gateway.active.wait_idle()


class BrokenLedger:
    """A ledger with a defect, which no real one can be made to show."""

    full = False

    def publish(self, topic: str, record: LedgerEntry) -> None:
        raise RuntimeError("scripted")


async def test_a_defect_at_the_end_of_an_answer_gives_its_slot_back_once() -> None:
    site = Site(timeouts=PATIENT)
    node = site.node()
    site.upstream.ledger.bus = BrokenLedger()
    ask(site, ASK)
    (await node.call()).answer(200, b'{"choices":[]}')
    await turns()
    assert site.taken() == 0
