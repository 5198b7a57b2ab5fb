"""A second node is asked while the first is slow to begin: one answer, one row, no slot kept."""

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
"""Seconds until the first byte, as has been learnt."""
SLOW = 1.5
ANSWER = (chunk("Hi"), chunk(None), usage_chunk(5, 40), DONE)
WHOLE = b'{"usage":{"prompt_tokens":5,"completion_tokens":40}}'


def learnt() -> Hedging:
    hedging = Hedging(on=True)
    for stream in (True, False):
        for _ in range(MIN_SAMPLES):
            hedging.observe("tiny", USUAL, stream=stream)
    return hedging


# ── when ──────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_learnt_or_done_while_it_is_off() -> None:
    hedging = learnt()
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


def test_who_was_beaten_counts_only_where_that_tells_something() -> None:
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
    hedging = learnt()
    for number in range(MAX_MODELS):
        hedging.observe(f"model {number}", 1.0, stream=True)
    assert hedging.after("tiny", stream=True) is None


# ── two at once ───────────────────────────────────────────────────────────────────────────────


class Race:
    """One request that two nodes have been asked, the first of which has been slow."""

    def __init__(self, body: Any = STREAM, *, timeouts: Timeouts = PATIENT, **headers: str) -> None:
        self.site = site = Site(timeouts=timeouts)
        site.gateway.upstream.hedging = learnt()
        self.nodes = [site.node(), site.node()]
        self.user = site.user()
        self.user.send(request("POST", CHAT, body, **{**site.key, **headers}))
        self.first: Call
        self.second: Call
        self.slow: ScriptedNode
        self.quick: ScriptedNode

    async def alone(self) -> Race:
        async with asyncio.timeout(PATIENCE):
            while all(node.idle for node in self.nodes):  # noqa: ASYNC110 - some turns of the loop
                await asyncio.sleep(0)
        self.slow, self.quick = sorted(self.nodes, key=lambda node: node.idle)
        self.first = await self.slow.call()
        return self

    async def begun(self) -> Race:
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
    race = await Race(body).begun()
    assert race.first.reset is None
    assert await race.first.whole_body() == await race.second.whole_body()
    finish(race.second, body)
    answer = await race.user.answer()
    assert answer.status == 200
    assert await race.first.stopped() is Code.CANCELLED
    assert race.site.taken() == 1  # until the node says that the work has stopped
    race.first.confirm()
    entry = await race.end(won=1)
    assert (entry.outcome, entry.attempts, entry.node_id) == ("ok", 2, race.quick.node.id)
    assert (entry.prompt_tokens, entry.completion_tokens) == (5, 40)
    assert entry.route == answer.headers["x-fabric-route"]
    assert not race.slow.engine.breakers  # to be slower is no failure


@pytest.mark.parametrize("body", [STREAM, ASK])
async def test_the_first_answers_when_it_comes_before_the_second(body: Any) -> None:
    race = await Race(body).begun()
    finish(race.first, body)
    answer = await race.user.answer()
    assert answer.status == 200
    assert await race.second.stopped() is Code.CANCELLED
    race.second.confirm()
    entry = await race.end()
    assert (entry.outcome, entry.attempts, entry.node_id) == ("ok", 2, race.slow.node.id)
    assert entry.route == answer.headers["x-fabric-route"]


async def test_a_head_decides_nothing_and_the_loser_s_late_bytes_go_nowhere() -> None:
    race = await Race().begun()
    race.first.begin_stream()
    race.second.begin_stream()
    race.second.data(chunk("second"))
    await race.user.until(b"second")
    race.first.data(chunk("first"))
    assert await race.first.stopped() is Code.CANCELLED
    race.first.confirm()
    race.second.data(chunk(None) + DONE)
    race.second.end()
    assert b"first" not in (await race.user.answer()).body
    await race.end(won=1)


async def test_who_begins_in_time_is_not_rivalled() -> None:
    race = await Race().alone()
    race.first.begin_stream()
    race.first.data(chunk("Hi"))
    await race.user.until(b"Hi")
    race.site.wait(SLOW)
    assert race.quick.idle
    race.first.data(chunk(None) + DONE)
    race.first.end()
    await race.user.answer()
    entry = await race.end(hedged=0)
    assert entry.attempts == 1


@pytest.mark.parametrize("status", [None, 503])
@pytest.mark.parametrize("first_fails", [True, False])
async def test_when_one_fails_the_other_goes_on(first_fails: bool, status: int | None) -> None:
    race = await Race().begun()
    broken, well = (race.first, race.second) if first_fails else (race.second, race.first)
    if status is None:
        broken.fail(Code.ENGINE_FAILED)
    else:
        broken.head(status)
        assert await broken.stopped() is Code.ENGINE_DOWN
        broken.confirm()
    well.stream_all(*ANSWER)
    assert (await race.user.answer()).status == 200
    entry = await race.end(won=int(first_fails))
    assert (entry.outcome, entry.error, entry.attempts) == ("ok", None, 2)
    assert entry.node_id == (race.quick if first_fails else race.slow).node.id
    failed = race.slow if first_fails else race.quick
    assert list(failed.engine.breakers) == ["tiny"]


@pytest.mark.parametrize("first_fails_first", [True, False])
async def test_when_both_fail_the_last_one_s_failure_is_told(first_fails_first: bool) -> None:
    race = await Race().begun()
    calls = [race.first, race.second]
    before, last = calls if first_fails_first else reversed(calls)
    before.fail(Code.REFUSED)
    last.fail(Code.ENGINE_FAILED)
    answer = await race.user.answer()
    assert (answer.status, answer.code) == (502, "upstream_error")
    entry = await race.end()
    assert (entry.outcome, entry.error, entry.attempts) == ("failed", "engine_failed", 2)
    assert entry.node_id == (race.quick if first_fails_first else race.slow).node.id


async def test_when_both_fail_a_third_is_tried() -> None:
    race = await Race().begun()
    third = race.site.node()
    race.first.fail(Code.ENGINE_FAILED)
    race.second.fail(Code.ENGINE_FAILED)
    (await third.call()).stream_all(*ANSWER)
    assert (await race.user.answer()).status == 200
    entry = await race.site.entry()
    assert (entry.outcome, entry.attempts, entry.node_id) == ("ok", 3, third.node.id)
    await race.site.free()


async def test_a_winner_that_breaks_off_is_told_as_ever() -> None:
    race = await Race().begun()
    race.second.begin_stream()
    race.second.data(chunk("Hi"))
    await race.user.until(b"Hi")
    await race.first.stopped()
    race.first.confirm()
    race.second.fail(Code.ENGINE_FAILED)
    assert b"upstream_lost" in (await race.user.answer()).body
    entry = await race.end(won=1)
    assert (entry.outcome, entry.error, entry.attempts) == ("failed", "engine_failed", 2)


# ── what ends both ────────────────────────────────────────────────────────────────────────────


async def stopped(race: Race, *calls: Call) -> None:
    for call in calls:
        assert await call.stopped() is Code.CANCELLED
        call.confirm()


@pytest.mark.parametrize("phase", ["alone", "both", "first lost", "second lost", "won"])
async def test_a_user_who_hangs_up_ends_whatever_runs(phase: str) -> None:
    race = await (Race().alone() if phase == "alone" else Race().begun())
    running = [race.first] if phase == "alone" else [race.first, race.second]
    if phase in ("first lost", "second lost"):
        lost = running.pop(0 if phase == "first lost" else 1)
        lost.fail(Code.ENGINE_FAILED)
    elif phase == "won":
        race.second.begin_stream()
        race.second.data(chunk("Hi"))
        await race.user.until(b"Hi")
    race.user.hang_up()
    await stopped(race, *running)
    entry = await race.end(hedged=int(phase != "alone"), won=int(phase == "won"))
    assert (entry.outcome, entry.attempts) == ("cancelled", 1 if phase == "alone" else 2)


@pytest.mark.parametrize("phase", ["both", "first lost", "won"])
async def test_a_key_that_is_withdrawn_ends_both(phase: str) -> None:
    race = await Race().begun()
    running = [race.first, race.second]
    if phase == "first lost":
        running.pop(0).fail(Code.ENGINE_FAILED)
        async with asyncio.timeout(PATIENCE):
            while race.site.taken() == 2:  # noqa: ASYNC110 - some turns of the loop
                await asyncio.sleep(0)
    elif phase == "won":
        race.second.begin_stream()
        race.second.data(chunk("Hi"))
        await race.user.until(b"Hi")
    [draft] = race.site.gateway.active.list()
    race.site.gateway.active.cancel_key(draft.key.id)
    answer = await race.user.answer()
    assert b"key_withdrawn" in answer.body
    assert answer.status == (200 if phase == "won" else 401)
    await stopped(race, *running)
    entry = await race.end(won=int(phase == "won"))
    assert (entry.outcome, entry.error) == ("cancelled", "key_withdrawn")


async def test_the_user_s_deadline_ends_both() -> None:
    race = await Race(ASK, **{"x-fabric-timeout": "20"}).begun()
    race.site.wait(25)
    assert (await race.user.answer()).status == 504
    for call in (race.first, race.second):
        assert await call.stopped() is Code.TIMEOUT
        call.confirm()
    entry = await race.end()
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
    race = await Race(STREAM if stream else ASK).begun()
    marks = {"alpha": (race.first, race.slow), "omega": (race.second, race.quick)}
    going = [
        asyncio.create_task(go(call, mark, rng, stream=stream)) for mark, (call, _) in marks.items()
    ]
    if rng.random() < 0.4:
        for _ in range(rng.randrange(20)):
            await asyncio.sleep(0)
        rng.choice([race.user.hang_up, cut(race), lambda: race.site.wait(301)])()
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*going)
        await race.site.gateway.active.wait_idle()
    race.user.hang_up()
    entry = await race.site.entry()
    await race.site.free()
    assert entry.attempts == 2
    told = bytes(race.user.received)
    assert not (b"alpha" in told and b"omega" in told)
    for mark, (_, node) in marks.items():
        if mark.encode() in told:
            assert entry.node_id == node.node.id


def cut(race: Race) -> Callable[[], None]:
    def now() -> None:
        for draft in race.site.gateway.active.list():
            race.site.gateway.active.cancel_key(draft.key.id)

    return now


# ── when there is none ────────────────────────────────────────────────────────────────────────


async def unrivalled(race: Race) -> None:
    race.site.wait(SLOW)
    race.first.stream_all(*ANSWER)
    assert (await race.user.answer()).status == 200
    assert race.quick.idle
    entry = await race.end(hedged=0)
    assert entry.attempts == 1


async def test_without_a_free_slot_nobody_waits_for_one() -> None:
    race = await Race().alone()
    race.quick.engine.active = race.quick.engine.slots
    race.site.wait(SLOW)
    race.quick.engine.active = 0
    await unrivalled(race)


async def test_without_a_retry_left_nobody_else_is_asked() -> None:
    race = Race()
    budget = race.site.gateway.upstream.budget
    while budget.allows:
        budget.spend()
    budget.spend()
    await unrivalled(await race.alone())


async def test_asking_twice_costs_what_a_retry_costs() -> None:
    race = Race()
    budget = race.site.gateway.upstream.budget
    while budget.allows:
        budget.spend()
    for _ in range(10):
        budget.earn()
    await race.begun()
    assert not budget.allows
    race.second.stream_all(*ANSWER)
    assert (await race.user.answer()).status == 200
    race.first.confirm()
    await race.end(won=1)


async def test_while_two_are_asked_neither_is_given_up_for_a_third() -> None:
    race = await Race(timeouts=replace(PATIENT, stall=30.0)).begun()
    third = race.site.node()
    race.site.wait(31)
    race.first.stream_all(*ANSWER)
    assert (await race.user.answer()).status == 200
    race.second.confirm()
    await race.end()
    assert third.idle


async def test_while_it_is_off_nobody_else_is_asked() -> None:
    race = Race()
    race.site.gateway.upstream.hedging.on = False
    await unrivalled(await race.alone())


async def test_a_second_node_is_of_the_regions_that_are_allowed() -> None:
    race = Race(**{"x-fabric-region": "eu-west"})
    race.nodes[0].node.region = "eu-west"
    await unrivalled(await race.alone())


async def test_a_body_that_flows_through_can_be_sent_once_only() -> None:
    site = Site()
    site.gateway.upstream.hedging = learnt()
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
