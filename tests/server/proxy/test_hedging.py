"""Hedged requests: one answer, one ledger entry, and no slot that stays taken."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from fabric_server.proxy.clock import Timeouts
from fabric_server.proxy.hedging import MAX_MODELS, Hedging
from fabric_server.proxy.quantile import MAX_SAMPLES, MIN_SAMPLES
from ledger.records import LedgerEntry
from protocol.errors import Code
from tests.site import (
    ASK,
    CHAT,
    DONE,
    PATIENT,
    STREAM,
    Call,
    ScriptedNode,
    Site,
    chunk,
    usage_chunk,
)
from tests.users import PATIENCE, MemoryUser, request

USUAL = 1.0
"""Seconds until the first byte, as was observed."""
SLOW = 1.5
ANSWER = (chunk("Hi"), chunk(None), usage_chunk(5, 40), DONE)
WHOLE = b'{"usage":{"prompt_tokens":5,"completion_tokens":40}}'


def trained() -> Hedging:
    hedging = Hedging(on=True)
    for stream in (True, False):
        for _ in range(MIN_SAMPLES):
            hedging.observe("tiny", USUAL, stream=stream)
    return hedging


# ── when ──────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_learnt_or_done_while_it_is_off() -> None:
    hedging = trained()
    hedging.on = False
    assert hedging.after("tiny", stream=True) is None
    off = Hedging()
    for _ in range(MIN_SAMPLES):
        off.observe("tiny", USUAL, stream=True)
    off.on = True
    assert off.after("tiny", stream=True) is None


def test_streams_whole_answers_and_models_are_told_apart() -> None:
    hedging = Hedging(on=True)
    for _ in range(MIN_SAMPLES):
        hedging.observe("tiny", 1.0, stream=True)
        hedging.observe("tiny", 9.0, stream=False)
    assert hedging.after("tiny", stream=True) == 1.0
    assert hedging.after("tiny", stream=False) == 9.0
    assert hedging.after("large", stream=True) is None


def test_an_attempt_that_lost_counts_only_when_it_was_slower_than_the_quantile() -> None:
    hedging = Hedging(on=True)
    hedging.observe_at_least("tiny", 99.0, stream=True)
    for number in range(1, MIN_SAMPLES + 1):
        hedging.observe("tiny", float(number), stream=True)
    assert hedging.after("tiny", stream=True) == 19.0
    for _ in range(MAX_SAMPLES):
        hedging.observe_at_least("tiny", 18.0, stream=True)
    assert hedging.after("tiny", stream=True) == 19.0
    hedging.observe_at_least("tiny", 30.0, stream=True)
    assert hedging.after("tiny", stream=True) == 20.0


def test_what_is_remembered_is_bounded() -> None:
    hedging = trained()
    for number in range(MAX_MODELS):
        hedging.observe(f"model {number}", 1.0, stream=True)
    assert hedging.after("tiny", stream=True) is None


# ── two at once ───────────────────────────────────────────────────────────────────────────────


class HedgedRequest:
    """One request that two nodes have been asked, the first of which has been slow."""

    def __init__(self, body: Any = STREAM, *, timeouts: Timeouts = PATIENT, **headers: str) -> None:
        self.site = site = Site(timeouts=timeouts)
        site.gateway.upstream.hedging = trained()
        self.nodes = [site.node(), site.node()]
        self.user = site.user()
        self.user.send(request("POST", CHAT, body, **{**site.key, **headers}))
        self.first: Call
        self.second: Call
        self.slow: ScriptedNode
        self.quick: ScriptedNode

    async def alone(self) -> HedgedRequest:
        async with asyncio.timeout(PATIENCE):
            while all(node.idle for node in self.nodes):  # noqa: ASYNC110 - some turns of the loop
                await asyncio.sleep(0)
        self.slow, self.quick = sorted(self.nodes, key=lambda node: node.idle)
        self.first = await self.slow.call()
        return self

    async def begun(self) -> HedgedRequest:
        await self.alone()
        self.site.wait(SLOW)
        self.second = await self.quick.call()
        return self

    async def end(self, *, hedged: int = 1, won: int = 0) -> LedgerEntry:
        """The one entry, once every slot has been given back and no stream is left."""
        entry = await self.site.entry()
        await self.site.free()
        assert all(tunnel.connection.active == 0 for n in self.nodes for tunnel in n.node.tunnels)
        metrics = self.site.metrics
        assert (metrics.hedged, metrics.hedges_won, metrics.retries) == (hedged, won, 0)
        assert bool(metrics.errors) is (entry.error is not None and entry.status >= 400)
        return entry


def finish(call: Call, body: Any) -> None:
    if body is STREAM:
        call.stream_all(*ANSWER)
    else:
        call.answer(200, WHOLE)


@pytest.mark.parametrize("body", [STREAM, ASK])
async def test_the_second_answers_when_it_is_quicker(body: Any) -> None:
    hedged = await HedgedRequest(body).begun()
    assert hedged.first.reset is None
    assert await hedged.first.whole_body() == await hedged.second.whole_body()
    finish(hedged.second, body)
    answer = await hedged.user.answer()
    assert answer.status == 200
    assert await hedged.first.stopped() is Code.CANCELLED
    assert hedged.site.taken() == 1  # until the node says that the work has stopped
    hedged.first.confirm()
    entry = await hedged.end(won=1)
    assert (entry.outcome, entry.attempts, entry.node_id) == ("ok", 2, hedged.quick.node.id)
    assert (entry.prompt_tokens, entry.completion_tokens) == (5, 40)
    assert entry.route == answer.headers["x-fabric-route"]
    assert not hedged.slow.engine.breakers  # to be slower is no failure


@pytest.mark.parametrize("body", [STREAM, ASK])
async def test_the_first_answers_when_it_comes_before_the_second(body: Any) -> None:
    hedged = await HedgedRequest(body).begun()
    finish(hedged.first, body)
    answer = await hedged.user.answer()
    assert answer.status == 200
    assert await hedged.second.stopped() is Code.CANCELLED
    hedged.second.confirm()
    entry = await hedged.end()
    assert (entry.outcome, entry.attempts, entry.node_id) == ("ok", 2, hedged.slow.node.id)
    assert entry.route == answer.headers["x-fabric-route"]


async def test_a_head_decides_nothing_and_the_loser_s_late_bytes_go_nowhere() -> None:
    hedged = await HedgedRequest().begun()
    hedged.first.begin_stream()
    hedged.second.begin_stream()
    hedged.second.data(chunk("second"))
    await hedged.user.until(b"second")
    hedged.first.data(chunk("first"))
    assert await hedged.first.stopped() is Code.CANCELLED
    hedged.first.confirm()
    hedged.second.data(chunk(None) + DONE)
    hedged.second.end()
    assert b"first" not in (await hedged.user.answer()).body
    await hedged.end(won=1)


async def test_an_answer_that_begins_in_time_is_not_hedged() -> None:
    hedged = await HedgedRequest().alone()
    hedged.first.begin_stream()
    hedged.first.data(chunk("Hi"))
    await hedged.user.until(b"Hi")
    hedged.site.wait(SLOW)
    assert hedged.quick.idle
    hedged.first.data(chunk(None) + DONE)
    hedged.first.end()
    await hedged.user.answer()
    entry = await hedged.end(hedged=0)
    assert entry.attempts == 1


@pytest.mark.parametrize("status", [None, 503])
@pytest.mark.parametrize("first_fails", [True, False])
async def test_when_one_fails_the_other_goes_on(first_fails: bool, status: int | None) -> None:
    hedged = await HedgedRequest().begun()
    broken, well = (hedged.first, hedged.second) if first_fails else (hedged.second, hedged.first)
    if status is None:
        broken.fail(Code.ENGINE_FAILED)
    else:
        broken.head(status)
        assert await broken.stopped() is Code.ENGINE_DOWN
        broken.confirm()
    well.stream_all(*ANSWER)
    assert (await hedged.user.answer()).status == 200
    entry = await hedged.end(won=int(first_fails))
    assert (entry.outcome, entry.error, entry.attempts) == ("ok", None, 2)
    assert entry.node_id == (hedged.quick if first_fails else hedged.slow).node.id
    failed = hedged.slow if first_fails else hedged.quick
    assert list(failed.engine.breakers) == [("tiny", "" if status is None else CHAT)]


@pytest.mark.parametrize("first_fails_first", [True, False])
async def test_when_both_fail_the_last_one_s_failure_is_told(first_fails_first: bool) -> None:
    hedged = await HedgedRequest().begun()
    calls = [hedged.first, hedged.second]
    before, last = calls if first_fails_first else reversed(calls)
    before.fail(Code.REFUSED)
    last.fail(Code.ENGINE_FAILED)
    answer = await hedged.user.answer()
    assert (answer.status, answer.code) == (502, "upstream_error")
    entry = await hedged.end()
    assert (entry.outcome, entry.error, entry.attempts) == ("failed", "engine_failed", 2)
    assert entry.node_id == (hedged.quick if first_fails_first else hedged.slow).node.id


async def test_when_both_fail_a_third_is_tried() -> None:
    hedged = await HedgedRequest().begun()
    third = hedged.site.node()
    hedged.first.fail(Code.ENGINE_FAILED)
    hedged.second.fail(Code.ENGINE_FAILED)
    (await third.call()).stream_all(*ANSWER)
    assert (await hedged.user.answer()).status == 200
    entry = await hedged.site.entry()
    assert (entry.outcome, entry.attempts, entry.node_id) == ("ok", 3, third.node.id)
    await hedged.site.free()


async def test_a_winner_that_breaks_off_is_told_as_ever() -> None:
    hedged = await HedgedRequest().begun()
    hedged.second.begin_stream()
    hedged.second.data(chunk("Hi"))
    await hedged.user.until(b"Hi")
    await hedged.first.stopped()
    hedged.first.confirm()
    hedged.second.fail(Code.ENGINE_FAILED)
    assert b"upstream_lost" in (await hedged.user.answer()).body
    entry = await hedged.end(won=1)
    assert (entry.outcome, entry.error, entry.attempts) == ("failed", "engine_failed", 2)


# ── what ends both ────────────────────────────────────────────────────────────────────────────


async def stopped(hedged: HedgedRequest, *calls: Call) -> None:
    for call in calls:
        assert await call.stopped() is Code.CANCELLED
        call.confirm()


@pytest.mark.parametrize("phase", ["alone", "both", "first lost", "second lost", "won"])
async def test_a_user_who_hangs_up_ends_whatever_runs(phase: str) -> None:
    hedged = await (HedgedRequest().alone() if phase == "alone" else HedgedRequest().begun())
    running = [hedged.first] if phase == "alone" else [hedged.first, hedged.second]
    if phase in ("first lost", "second lost"):
        lost = running.pop(0 if phase == "first lost" else 1)
        lost.fail(Code.ENGINE_FAILED)
    elif phase == "won":
        hedged.second.begin_stream()
        hedged.second.data(chunk("Hi"))
        await hedged.user.until(b"Hi")
    hedged.user.hang_up()
    await stopped(hedged, *running)
    entry = await hedged.end(hedged=int(phase != "alone"), won=int(phase == "won"))
    assert (entry.outcome, entry.attempts) == ("cancelled", 1 if phase == "alone" else 2)


@pytest.mark.parametrize("phase", ["both", "first lost", "won"])
async def test_a_key_that_is_withdrawn_ends_both(phase: str) -> None:
    hedged = await HedgedRequest().begun()
    running = [hedged.first, hedged.second]
    if phase == "first lost":
        running.pop(0).fail(Code.ENGINE_FAILED)
        async with asyncio.timeout(PATIENCE):
            while hedged.site.taken() == 2:  # noqa: ASYNC110 - some turns of the loop
                await asyncio.sleep(0)
    elif phase == "won":
        hedged.second.begin_stream()
        hedged.second.data(chunk("Hi"))
        await hedged.user.until(b"Hi")
    [record] = hedged.site.gateway.active.list()
    hedged.site.gateway.active.cancel_key(record.key.id)
    answer = await hedged.user.answer()
    assert b"key_withdrawn" in answer.body
    assert answer.status == (200 if phase == "won" else 401)
    await stopped(hedged, *running)
    entry = await hedged.end(won=int(phase == "won"))
    assert (entry.outcome, entry.error) == ("cancelled", "key_withdrawn")


async def test_the_user_s_deadline_ends_both() -> None:
    hedged = await HedgedRequest(ASK, **{"x-fabric-timeout": "20"}).begun()
    hedged.site.wait(25)
    assert (await hedged.user.answer()).status == 504
    for call in (hedged.first, hedged.second):
        assert await call.stopped() is Code.TIMEOUT
        call.confirm()
    entry = await hedged.end()
    assert (entry.outcome, entry.attempts) == ("timeout", 2)


# ── whatever happens ──────────────────────────────────────────────────────────────────────────


async def go(call: Call, mark: str, rng: Random, *, stream: bool) -> None:
    """What its node does, at any pace, until its work has stopped; it says ``mark``."""

    async def some_turns() -> bool:
        """False when it is not wanted any more."""
        for _ in range(rng.randrange(12)):
            await asyncio.sleep(0)
        if call.reset is not None:
            call.confirm()
        return call.reset is None

    if not await some_turns():
        return
    if rng.random() < 0.2:
        call.fail(rng.choice([Code.ENGINE_FAILED, Code.REFUSED, Code.DRAINING, Code.TIMEOUT]))
        return
    kind = "text/event-stream" if stream else "application/json"
    call.head(rng.choice([200, 200, 200, 400, 503]), ("content-type", kind))
    if not await some_turns():
        return
    call.data(chunk(mark) if stream else json.dumps({"said": mark}).encode())
    if not await some_turns():
        return
    if stream:
        call.data(chunk(None) + usage_chunk(5, 40) + DONE)
    if rng.random() < 0.2:
        call.fail(Code.ENGINE_FAILED)
    else:
        call.end()


@pytest.mark.parametrize("seed", range(150))
async def test_in_whatever_order_things_happen_there_is_one_answer_and_one_row(seed: int) -> None:
    rng = Random(seed)
    stream = rng.random() < 0.5
    hedged = await HedgedRequest(STREAM if stream else ASK).begun()
    marks = {"alpha": (hedged.first, hedged.slow), "omega": (hedged.second, hedged.quick)}
    going = [
        asyncio.create_task(go(call, mark, rng, stream=stream)) for mark, (call, _) in marks.items()
    ]
    if rng.random() < 0.4:
        for _ in range(rng.randrange(20)):
            await asyncio.sleep(0)
        rng.choice([hedged.user.hang_up, cut(hedged), lambda: hedged.site.wait(301)])()
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*going)
        await hedged.site.gateway.active.wait_idle()
    hedged.user.hang_up()
    entry = await hedged.site.entry()
    await hedged.site.free()
    assert entry.attempts == 2
    told = bytes(hedged.user.received)
    assert not (b"alpha" in told and b"omega" in told)
    for mark, (_, node) in marks.items():
        if mark.encode() in told:
            assert entry.node_id == node.node.id


def cut(hedged: HedgedRequest) -> Callable[[], None]:
    def now() -> None:
        for record in hedged.site.gateway.active.list():
            hedged.site.gateway.active.cancel_key(record.key.id)

    return now


# ── when there is none ────────────────────────────────────────────────────────────────────────


async def assert_no_hedge(hedged: HedgedRequest) -> None:
    hedged.site.wait(SLOW)
    hedged.first.stream_all(*ANSWER)
    assert (await hedged.user.answer()).status == 200
    assert hedged.quick.idle
    entry = await hedged.end(hedged=0)
    assert entry.attempts == 1


async def test_without_a_free_slot_nobody_waits_for_one() -> None:
    hedged = await HedgedRequest().alone()
    hedged.quick.engine.active = hedged.quick.engine.slots
    hedged.site.wait(SLOW)
    hedged.quick.engine.active = 0
    await assert_no_hedge(hedged)


async def test_without_a_retry_left_nobody_else_is_asked() -> None:
    hedged = HedgedRequest()
    budget = hedged.site.gateway.upstream.budget
    while budget.allows:
        budget.spend()
    budget.spend()
    await assert_no_hedge(await hedged.alone())


async def test_asking_twice_costs_what_a_retry_costs() -> None:
    hedged = HedgedRequest()
    budget = hedged.site.gateway.upstream.budget
    while budget.allows:
        budget.spend()
    for _ in range(10):
        budget.earn()
    await hedged.begun()
    assert not budget.allows
    hedged.second.stream_all(*ANSWER)
    assert (await hedged.user.answer()).status == 200
    hedged.first.confirm()
    await hedged.end(won=1)


async def test_while_two_are_asked_neither_is_given_up_for_a_third() -> None:
    hedged = await HedgedRequest(timeouts=replace(PATIENT, stall=30.0)).begun()
    third = hedged.site.node()
    hedged.site.wait(31)
    hedged.first.stream_all(*ANSWER)
    assert (await hedged.user.answer()).status == 200
    hedged.second.confirm()
    await hedged.end()
    assert third.idle


async def test_while_it_is_off_nobody_else_is_asked() -> None:
    hedged = HedgedRequest()
    hedged.site.gateway.upstream.hedging.on = False
    await assert_no_hedge(await hedged.alone())


async def test_a_second_node_is_of_the_regions_that_are_allowed() -> None:
    hedged = HedgedRequest(**{"x-fabric-region": "eu-west"})
    hedged.nodes[0].node.region = "eu-west"
    await assert_no_hedge(await hedged.alone())


async def test_a_body_that_flows_through_can_be_sent_once_only() -> None:
    site = Site()
    site.gateway.upstream.hedging = trained()
    nodes = [site.node(), site.node()]
    user: MemoryUser = site.user()
    large = {
        "model": "tiny",
        "stream": False,
        "messages": [{"role": "user", "content": "x" * 600_000}],
    }
    whole = request("POST", CHAT, large, **site.key)
    user.send(whole[:-1000])
    async with asyncio.timeout(PATIENCE):
        while all(node.idle for node in nodes):  # noqa: ASYNC110 - some turns of the loop
            await asyncio.sleep(0)
    asked, other = sorted(nodes, key=lambda node: node.idle)
    call = await asked.call()
    user.send(whole[-1000:])
    await call.whole_body()
    site.wait(SLOW)
    call.answer(200, WHOLE)
    assert (await user.answer()).status == 200
    assert other.idle
    assert site.metrics.hedged == 0
