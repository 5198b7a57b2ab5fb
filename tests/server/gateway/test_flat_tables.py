"""What one request costs the tables of what is open is the same however much is open.

Steps are counted in instructions of Python's interpreter: clocks say little on a busy machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from fabric_server.auth.keys import Key
from fabric_server.dialects.body import ParsedBody
from fabric_server.gateway.active_requests import ActiveRequests
from fabric_server.net.deadlines import NEVER, Deadlines
from fabric_server.nodes.departures import Departures
from fabric_server.nodes.held_slots import HeldSlots
from fabric_server.nodes.key_holders import KeyHolders
from fabric_server.proxy.hedging import Hedging
from fabric_server.proxy.request_record import RequestRecord
from fabric_server.routing.criteria import Requirements
from fabric_server.routing.fair_queue import FairQueue
from fabric_server.routing.latency import LatencyEstimates
from fabric_server.routing.prefix_affinity import PrefixAffinity
from fabric_server.routing.shares import Shares, Turns
from tests.site import Site

FEW, MANY = 20, 800
SLACK = 60
"""Instructions for what is tidied up now and then."""

Work = Callable[[], object]


def instructions(work: Work) -> int:
    """Count the instructions that Python interprets."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def active_requests(count: int) -> Work:
    site, active = Site(), ActiveRequests()

    def record(key: str) -> RequestRecord:
        key_of = Key(key, "alice", "name", "sk-fab-abc", False, None, requests_at_once=count + 2)
        request = site.edge().new_request()
        return RequestRecord(key_of, request, None, ParsedBody("tiny", True, False, None))

    for number in range(count):
        active.add(record("key" if number % 2 else f"key_{number}"))
    one = record("key")

    def work() -> None:
        active.add(one)
        active.check(one.key)
        assert not active.at_limit(one.key)
        assert active.find(one.request.id) is one
        active.remove(one)

    return work


def held_slots(count: int) -> Work:
    held = HeldSlots()
    for number in range(count):
        held.take(f"key_{number}", 0.0)

    def work() -> None:
        held.take("key_1", 0.0)
        assert held.of("key_1") == 2
        assert held.is_shared(0.0)
        held.give_back("key_1")

    return work


def departures(count: int) -> Work:
    left = Departures()
    left.add("first", ["tiny:latest"], 0.0)
    for number in range(count):
        left.add(f"node_{number}", ["shared", f"model_{number}"], 1.0)

    def work() -> None:
        assert left.last("tiny", 1.0) == 0.0
        assert left.last("none", 1.0) is None
        left.add("node_1", ["shared", "model_1"], 1.0)
        left.forget("node_1")

    return work


def key_holders(count: int) -> Work:
    holders = KeyHolders()
    for number in range(count):
        holders.register(f"node_{number}", "instance", "192.0.2.1", 0.0)

    def work() -> None:
        assert holders.wait("node_1", 0.0) == 0.0
        assert holders.register("node_1", "instance", "192.0.2.1", 0.0) is None

    return work


def hedging(count: int) -> Work:
    hedges = Hedging(on=True)
    for number in range(count):
        hedges.observe(f"model_{number}", 1.0, stream=True)

    def work() -> None:
        hedges.observe("model_1", 1.0, stream=True)
        hedges.after("model_1", stream=True)

    return work


class Waits:
    deadline = NEVER

    def expire(self, now: float) -> None:
        raise AssertionError


def deadlines(count: int) -> Work:
    kept, one = Deadlines(), Waits()
    for _ in range(count):
        kept.add(Waits())
    return lambda: (kept.add(one), kept.discard(one))


class Waiter:
    def __init__(self, key_id: str) -> None:
        self.requirements = Requirements("tiny", key_id)
        self.since = 0.0


def fair_queue(count: int) -> Work:
    queue, nothing = FairQueue[Waiter](Turns()), HeldSlots()
    shares = Shares(nothing, nothing)
    for number in range(count):
        queue.add(Waiter("key" if number % 2 else f"key_{number}"))
    one = Waiter("key")
    queue.add(one)
    for _ in range(count):  # positions of all are computed at once, and reused
        queue.position(one, 0.0)

    def work() -> None:
        assert queue.position(one, 0.0) == len(queue)
        other = Waiter("new")
        queue.add(other)
        found = queue.first(0.0, lambda waiter: True, shares)
        assert found is not None
        queue.remove(other)

    return work


def measurements(count: int) -> Work:
    site, latency, affinity = Site(), LatencyEstimates(), PrefixAffinity()
    engines = [site.node().engine for _ in range(count)]
    for number, engine in enumerate(engines):
        latency.update(engine, "tiny", 1.0, 30.0, now=0.0)
        affinity.remember((number,), engine)

    def work() -> None:
        latency.update(engines[1], "tiny", 1.0, 30.0, now=0.0)
        assert latency.estimate(engines[1], "tiny", 0.0).known
        assert affinity.find((1,)) is not None
        affinity.remember((1,), engines[2])

    return work


@pytest.mark.parametrize(
    "table",
    [
        active_requests,
        held_slots,
        departures,
        key_holders,
        hedging,
        deadlines,
        fair_queue,
        measurements,
    ],
    ids=lambda table: table.__name__,
)
async def test_one_request_takes_as_many_steps_among_many_as_among_few(
    table: Callable[[int], Work],
) -> None:
    found = []
    for count in (FEW, MANY):
        work = table(count)
        work()
        found.append(max(instructions(work) for _ in range(3)))
    few, many = found
    assert 0 < many <= few + SLACK
