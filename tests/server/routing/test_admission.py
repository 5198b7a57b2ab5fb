"""Who waits for a slot, who gets it, and that none is ever lost."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fabric_server.dialects.errors import ApiError
from fabric_server.nodes.node import Engine
from fabric_server.routing.admission import Admission
from fabric_server.routing.criteria import Priority, Requirements
from fabric_server.routing.queues import QueueLimits, QueueStats
from protocol.messages import EngineReport, Figures, RequestHead, ResponseHead
from tests.site import ScriptedNode, Site


class FairQueue:
    """Requests that want in, by name, and what became of them."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.tasks: dict[str, asyncio.Task[Engine]] = {}
        self.keys: dict[str, str] = {}
        self.order: list[str] = []
        """Those that were let in, in that order."""

    async def join(
        self,
        name: str,
        model: str = "tiny",
        *excluded_nodes: str,
        key: str = "",
        priority: Priority = Priority.MEDIUM,
    ) -> None:
        requirements = Requirements(model, key, priority, excluded_nodes=list(excluded_nodes))

        async def go() -> Engine:
            choice = await self.site.admission.admit(requirements, request_id=name)
            self.order.append(name)
            return choice.engine

        self.keys[name] = key
        self.tasks[name] = asyncio.get_running_loop().create_task(go())
        await turn()

    def engine(self, name: str) -> Engine:
        return self.tasks[name].result()

    def give_back(self, name: str) -> None:
        self.site.registry.release(self.engine(name), self.keys[name])

    async def leave(self, name: str) -> None:
        """Gives back what it got."""
        self.give_back(name)
        await turn()

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()
        await turn()


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_free_slot_is_given_in_the_same_turn() -> None:
    site = Site()
    node = site.node(slots=1)
    admitting = site.admission.admit(Requirements("tiny"))
    with pytest.raises(StopIteration) as done:
        admitting.send(None)
    assert done.value.value.engine is node.engine
    assert node.engine.active == 1


async def test_who_came_first_is_served_first() -> None:
    site = Site()
    site.node(slots=1)
    line = FairQueue(site)
    for name in "abcd":
        await line.join(name)
    assert site.admission.waiting == 3
    for name in "abc":
        await line.leave(name)
    assert line.order == ["a", "b", "c", "d"]
    assert site.taken() == 1


@pytest.mark.parametrize(("other", "order"), [("b", "014253"), ("a", "012345")])
async def test_keys_take_turns_at_an_engine_whatever_their_models(other: str, order: str) -> None:
    site = Site()
    site.node(["one", "two:latest"], slots=1, kind="ollama")
    line = FairQueue(site)
    for number, model in enumerate(["one", "one", "one", "one", "two", "two"]):
        await line.join(str(number), model, key="a" if model == "one" else other)
    for number in order[:-1]:
        await line.leave(number)
    assert "".join(line.order) == order


async def test_a_slot_that_is_given_back_is_nobody_else_s() -> None:
    """Whoever comes between the giving and the waking must not take it."""
    site = Site()
    node = site.node(slots=1)
    line = FairQueue(site)
    await line.join("a")
    await line.join("b")
    line.give_back("a")
    assert node.engine.active == 1
    await line.join("c")
    assert line.order == ["a", "b"]
    assert site.admission.waiting == 1


async def test_a_retry_does_not_wait_for_the_node_that_failed_nor_keep_others_from_it() -> None:
    site = Site()
    first, second = site.node(slots=1), site.node(slots=1)
    line = FairQueue(site)
    await line.join("a")
    await line.join("b")
    await line.join("retry", "tiny", first.node.id)
    site.registry.release(first.engine, "")
    await turn()
    assert line.order == ["a", "b"], "the retry may not have it"
    await line.join("c")
    assert line.order == ["a", "b", "c"], "but somebody else may"
    site.registry.release(second.engine, "")
    await turn()
    assert line.order == ["a", "b", "c", "retry"]


async def test_one_that_gives_up_waiting_leaves_no_trace() -> None:
    site = Site()
    site.node(slots=1)
    line = FairQueue(site)
    for name in "abc":
        await line.join(name)
    await line.cancel("b")
    assert site.admission.waiting == 1
    await line.leave("a")
    assert line.order == ["a", "c"]
    await line.leave("c")
    assert site.taken() == 0


async def test_one_that_is_cancelled_when_just_served_passes_the_slot_on() -> None:
    site = Site()
    node = site.node(slots=1)
    line = FairQueue(site)
    for name in "abc":
        await line.join(name)
    line.give_back("a")
    line.tasks["b"].cancel()
    await turn()
    assert line.order == ["a", "c"]
    assert node.engine.active == 1
    await line.leave("c")
    assert site.taken() == 0


async def test_one_whose_time_is_up_when_just_served_passes_the_slot_on() -> None:
    site = Site(queue_timeout=0.01)
    site.node(slots=1)
    line = FairQueue(site)
    await line.join("a")
    await line.join("b")
    site.loop.call_later(0.01, line.give_back, "a")
    await asyncio.wait([line.tasks["b"]], timeout=5)
    await asyncio.sleep(0.02)  # its time may have been up before the slot was released
    if line.tasks["b"].exception() is None:  # it may have been served in time, too
        await line.leave("b")
    assert site.taken() == 0


async def test_a_wait_ends_in_a_refusal_that_says_when_to_come_back() -> None:
    site = Site(queue_timeout=0.01, queue_length=1)
    site.node(slots=1)
    line = FairQueue(site)
    await line.join("a")
    await line.join("b")
    with pytest.raises(ApiError) as refused:
        await site.admission.admit(Requirements("tiny"))
    assert (refused.value.status, refused.value.code) == (429, "queue_share_full")
    with pytest.raises(ApiError) as waited:
        await line.tasks["b"]
    assert (waited.value.status, waited.value.code) == (503, "queue_timeout")
    assert (refused.value.retry_after, waited.value.retry_after) == (10.0, 5.0)
    assert site.admission.waiting == 0


@pytest.mark.parametrize(
    ("tunnels", "words"), [(True, "a free slot"), (False, "a connection to what serves")]
)
async def test_a_wait_that_ends_says_what_was_missing(tunnels: bool, words: str) -> None:
    site = Site(queue_timeout=0.01)
    node = site.node(slots=1)
    line = FairQueue(site)
    if tunnels:
        await line.join("a")
    else:
        node.node.tunnels.clear()
    await line.join("b")
    with pytest.raises(ApiError, match=words) as waited:
        await line.tasks["b"]
    assert waited.value.code == "queue_timeout"


async def test_a_line_of_no_length_refuses_at_once_and_forgets_it() -> None:
    site = Site(queue_length=0)
    site.node(slots=1)
    line = FairQueue(site)
    await line.join("a")
    for _ in range(2):
        with pytest.raises(ApiError, match="queue for 'tiny' is full"):
            await site.admission.admit(Requirements("tiny"))
    await line.leave("a")
    await line.join("b")
    assert line.order == ["a", "b"]


# ── order of service; test_fair_queue.py has the rest ─────────────────────────────────────────


async def test_the_higher_goes_before_the_lower() -> None:
    site = Site()
    site.node(slots=1)
    line = FairQueue(site)
    await line.join("first")
    for priority in (Priority.LOW, Priority.MEDIUM, Priority.HIGH):
        await line.join(priority.name, priority=priority)
    for name in ("first", "HIGH", "MEDIUM"):
        await line.leave(name)
    assert line.order == ["first", "HIGH", "MEDIUM", "LOW"]


async def test_a_key_with_a_hundred_requests_holds_up_one_with_one_for_one_turn() -> None:
    site = Site()
    site.node(slots=1)
    line = FairQueue(site)
    for number in range(100):
        await line.join(f"many {number}", key="many")
    await line.join("one", key="one")
    await line.leave("many 0")
    await line.leave("many 1")
    assert line.order == ["many 0", "many 1", "one"]


async def test_a_slot_that_the_next_in_line_may_not_have_goes_to_the_one_behind() -> None:
    site = Site()
    first, second = site.node(slots=1), site.node(slots=1)
    line = FairQueue(site)
    await line.join("a")
    await line.join("b")
    await line.join("retry", "tiny", first.node.id, key="k", priority=Priority.HIGH)
    await line.join("c", key="k", priority=Priority.LOW)
    site.registry.release(first.engine, "")
    site.registry.release(second.engine, "")
    await turn()
    assert sorted(line.order) == ["a", "b", "c", "retry"]
    assert line.engine("c") is first.engine
    assert line.engine("retry") is second.engine


# ── how long it will take ─────────────────────────────────────────────────────────────────────


async def refused(site: Site, key: str, deadline: float = math.inf) -> tuple[int, str, float]:
    with pytest.raises(ApiError) as refusal:
        await site.admission.admit(Requirements("tiny", key), deadline)
    assert refusal.value.retry_after is not None
    return refusal.value.status, refusal.value.code, refusal.value.retry_after


async def test_a_full_line_is_429_for_who_fills_it_and_503_for_others() -> None:
    site = Site(queue_length=4)
    site.node(slots=1)
    line = FairQueue(site)
    for number in range(5):
        await line.join(str(number), key="greedy")
    site.admission.record_service_time("tiny", 3.0)
    assert await refused(site, "greedy") == (429, "queue_share_full", 15.0)
    assert await refused(site, "modest") == (503, "overloaded", 6.0), "behind one turn of greedy's"


async def test_one_key_can_t_have_the_whole_line() -> None:
    site = Site(queue_length=4, queue_length_per_key=2)
    site.node(slots=1)
    line = FairQueue(site)
    await line.join("inside", key="greedy")
    for number in range(2):
        await line.join(str(number), key="greedy")
    assert (await refused(site, "greedy"))[:2] == (429, "queue_share_full")
    await line.join("modest", key="modest")
    assert site.admission.waiting == 3
    await line.leave("inside")
    await line.leave("0")
    assert line.order == ["inside", "0", "modest"]


async def test_the_time_to_come_back_is_measured_and_bounded() -> None:
    site = Site(queue_length=3)
    node = site.node(slots=2)
    line = FairQueue(site)
    for number in range(5):
        await line.join(str(number))
    site.admission.record_service_time("tiny", 10.0)
    assert (await refused(site, "other"))[2] == 2 * 10.0 / 2
    site.admission.record_service_time("tiny", 20.0)
    assert (await refused(site, "other"))[2] == 2 * 11.0 / 2
    site.registry.report(node.node, [node.report(["tiny"], slots=1)])
    assert (await refused(site, "other"))[2] == 2 * 11.0
    for _ in range(100):
        site.admission.record_service_time("tiny", 10_000.0)
    assert (await refused(site, "other"))[2] == 120.0
    for _ in range(1000):
        site.admission.record_service_time("tiny", 0.001)
    assert (await refused(site, "other"))[2] == 1.0


async def test_a_deadline_that_has_passed_is_no_reason_to_begin() -> None:
    site = Site()
    site.node()
    assert (await refused(site, "", site.loop.time()))[:2] == (503, "queue_timeout")
    assert site.taken() == 0


async def test_a_request_s_own_deadline_comes_before_the_queue_s() -> None:
    site = Site()
    site.node(slots=1)
    line = FairQueue(site)
    await line.join("a")
    assert (await refused(site, "", site.loop.time() + 0.01))[:2] == (503, "queue_timeout")
    assert site.admission.waiting == 0


async def test_everybody_s_place_can_be_seen() -> None:
    site = Site()
    now = float(round(site.loop.time()))
    site.admission = Admission(
        site.registry,
        rng=site.rng,
        limits=QueueLimits(9, 9, 60.0),
        clock=lambda: now,
    )
    node = site.node(slots=1)
    line = FairQueue(site)
    await line.join("inside", key="a")
    await line.join("a1", key="a")
    now += 1
    await line.join("a2", key="a")
    await line.join("b1", key="b", priority=Priority.HIGH)
    now += 2
    admission = site.admission
    assert [admission.position(name) for name in ("inside", "b1", "a1", "a2")] == [None, 1, 2, 3]
    admission.record_service_time("tiny", 4.0)
    place = admission.place("a2")
    assert place is not None
    assert (place.waited, place.estimate) == (2.0, 12.0)
    [figures] = admission.queues()
    assert figures == QueueStats("tiny", 3, (1, 2, 0), 2, 3.0, 1, 4.0, 16.0)
    node.leave()
    [figures] = admission.queues()
    assert (figures.slots, figures.estimate) == (0, None)
    for name in ("a1", "a2", "b1"):
        await line.cancel(name)
        assert admission.place(name) is None
    assert admission.queues() == []


async def test_what_can_t_come_is_not_waited_for() -> None:
    site = Site()
    node = site.node(["tiny"])

    async def code(model: str = "tiny", *exclude: str) -> str:
        with pytest.raises(ApiError) as refused:
            await site.admission.admit(Requirements(model, excluded_nodes=list(exclude)))
        return refused.value.code

    assert await code("none") == "model_not_found"
    assert await code("tiny", node.node.id) == "no_capacity"
    site.registry.report(node.node, [node.report(["tiny"], healthy=False)])
    assert await code() == "no_capacity"
    site.registry.report(node.node, [node.report(["tiny"], slots=0)])
    assert await code() == "no_capacity"
    site.registry.report(node.node, [node.report([])])
    assert await code() == "no_capacity"
    site.registry.report(node.node, [node.report(["tiny"])])
    node.node.draining = True
    assert await code() == "no_capacity"
    node.leave()
    assert await code() == "no_capacity"
    assert site.admission.waiting == 0


@pytest.mark.parametrize("what", ["a tunnel", "slots", "health", "a node"])
async def test_whoever_waits_is_served_by_what_comes(what: str) -> None:
    site = Site()
    node = site.node(slots=1)
    line = FairQueue(site)
    if what == "a tunnel":
        tunnels, node.node.tunnels = node.node.tunnels, []
        await line.join("a")
        node.node.tunnels = tunnels
        site.registry.room(node.node)
    else:
        await line.join("first")
        await line.join("a")
        if what == "slots":
            site.registry.report(node.node, [node.report(["tiny"], slots=2)])
        elif what == "health":
            site.registry.report(node.node, [node.report(["tiny"], slots=2, healthy=False)])
            await turn()
            assert "a" not in line.order
            site.registry.report(node.node, [node.report(["tiny"], slots=2)])
        else:
            site.node()
    await turn()
    assert "a" in line.order


def paused(node: ScriptedNode, back_at: float = 0.0) -> EngineReport:
    report = node.report(["tiny"], slots=0, healthy=False)
    return msgspec.structs.replace(report, paused=True, back_at=back_at)


@pytest.mark.parametrize("what", ["at once", "when it comes back"])
async def test_what_waits_is_refused_at_once_when_the_last_node_is_paused(what: str) -> None:
    site = Site()
    node, other = site.node(slots=1), site.node(["other"], slots=1)
    line = FairQueue(site)
    for name, model in (("runs", "tiny"), ("a", "tiny"), ("b", "tiny"), ("runs too", "other")):
        await line.join(name, model)
    await line.join("c", "other")
    if what == "at once":
        site.registry.report(node.node, [paused(node, time.time() + 600)])
    else:
        link = node.node.link
        node.leave()
        await turn()
        assert not line.tasks["a"].done(), "a lost node can be back at once"
        node.node.link, node.node.engines = link, {}  # as in a new registration
        site.registry.add(node.node)
        site.registry.report(node.node, [paused(node, time.time() + 600)])
    await turn()
    for name in ("a", "b"):
        error = line.tasks[name].exception()
        assert isinstance(error, ApiError)
        assert error.code == "no_capacity"
        assert 590 <= (error.retry_after or 0) <= 600
    assert site.admission.waiting == 1
    assert not line.tasks["c"].done()
    site.registry.report(other.node, [other.report(["other"], slots=2)])
    await turn()
    assert line.order == ["runs", "runs too", "c"]


async def test_what_another_node_may_serve_goes_on_waiting() -> None:
    site = Site()
    node, other = site.node(slots=1), site.node(slots=1)
    line = FairQueue(site)
    for name in ("one", "two", "a"):
        await line.join(name)
    await line.join("b", "tiny", other.node.id)
    site.registry.report(node.node, [paused(node)])
    await turn()
    assert not line.tasks["a"].done()
    assert line.tasks["b"].exception() is not None, "the other node was tried already"
    site.registry.report(node.node, [node.report(["tiny"], slots=2)])
    await turn()
    assert line.order == ["one", "two", "a"]


async def test_what_ends_its_wait_in_the_same_turn_as_it_is_refused_leaves_nothing() -> None:
    site = Site()
    node = site.node(slots=1)
    line = FairQueue(site)
    await line.join("runs")
    await line.join("a")
    site.registry.report(node.node, [paused(node)])
    line.tasks["a"].cancel()
    await turn()
    assert line.tasks["a"].cancelled()
    assert site.admission.waiting == 0
    site.registry.report(node.node, [node.report(["tiny"], slots=1)])
    line.give_back("runs")
    assert node.engine.active == 0


async def test_a_full_tunnel_holds_up_no_other_engine_of_its_node_for_ever() -> None:
    """A tunnel carries so many streams at once, whichever engine they are for."""
    site = Site()
    node = site.node(["tiny"], slots=1000)
    other = node.report(["other"])
    reports = [node.report(["tiny"], slots=1000), other]
    site.registry.report(node.node, [reports[0], _named(other, "second")])
    line = FairQueue(site)
    tunnels, node.node.tunnels = node.node.tunnels, []  # as when it is full of streams
    await line.join("other", "other")
    node.node.tunnels = tunnels
    site.registry.take(node.engine, "", 0.0)
    site.registry.release(node.engine, "")
    await turn()
    assert line.order == ["other"]


def _named(report: Any, name: str) -> Any:
    return type(report)(name, report.kind, report.healthy, report.slots, report.models)


# ── whatever happens, in any order ────────────────────────────────────────────────────────────


class Anything(RuleBasedStateMachine):
    """Slots are taken exactly by those who have them, and nobody waits for what is free."""

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.runner.run(self._begin())

    async def _begin(self) -> None:
        self.site = Site(queue_length=5, queue_length_per_key=3)
        self.nodes: list[ScriptedNode] = [self.site.node(["tiny"], slots=1)]
        self.line = FairQueue(self.site)
        self.asked: dict[str, tuple[str, tuple[str, ...]]] = {}
        self.inside: set[str] = set()

    def run(self, work: Any) -> None:
        self.runner.run(work)
        for name, task in list(self.line.tasks.items()):
            if task.done():
                if not task.cancelled() and task.exception() is None:
                    self.inside.add(name)
                elif not task.cancelled():
                    assert isinstance(task.exception(), ApiError)
                    del self.line.tasks[name]
                else:
                    del self.line.tasks[name]

    @property
    def waiting(self) -> list[str]:
        return [name for name, task in self.line.tasks.items() if not task.done()]

    @rule(
        model=st.sampled_from(["tiny", "large", "none"]),
        exclude=st.booleans(),
        key=st.sampled_from("abc"),
        priority=st.sampled_from(Priority),
    )
    def join(self, model: str, exclude: bool, key: str, priority: Priority) -> None:
        name = f"r{len(self.asked)}"
        excluded = (self.nodes[0].node.id,) if exclude else ()
        self.asked[name] = model, excluded
        self.run(self.line.join(name, model, *excluded, key=key, priority=priority))

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.inside)))
        self.inside.discard(name)
        self.run(self._leave(name))

    async def _leave(self, name: str) -> None:
        await self.line.leave(name)
        del self.line.tasks[name]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), just_served=st.booleans())
    def cancel(self, data: st.DataObject, just_served: bool) -> None:
        name = data.draw(st.sampled_from(self.waiting))
        other = ""
        if just_served and self.inside:
            other = data.draw(st.sampled_from(sorted(self.inside)))
            self.inside.discard(other)
        self.run(self._cancel(name, other))

    async def _cancel(self, name: str, other: str) -> None:
        if other:
            self.line.give_back(other)
            del self.line.tasks[other]
        self.line.tasks[name].cancel()
        await turn()

    @precondition(lambda self: len(self.nodes) < 4)
    @rule(slots=st.integers(0, 3))
    def node_comes(self, slots: int) -> None:
        self.run(self._node_comes(slots))

    async def _node_comes(self, slots: int) -> None:
        models = [["tiny"], ["tiny", "large"], ["large"]][len(self.nodes) - 1]
        self.nodes.append(self.site.node(models, slots=slots))
        await turn()

    @rule(which=st.integers(0, 3), slots=st.integers(0, 4), healthy=st.booleans())
    def report(self, which: int, slots: int, healthy: bool) -> None:
        node = self.nodes[which % len(self.nodes)]
        models = list(node.engine.models)
        report = node.report(models, slots=slots, healthy=healthy)
        self.run(self._report(node, report))

    async def _report(self, node: ScriptedNode, report: Any) -> None:
        self.site.registry.report(node.node, [report])
        await turn()

    @invariant()
    def slots_are_taken_by_those_who_have_them(self) -> None:
        held = [(self.line.engine(name), self.line.keys[name]) for name in self.inside]
        for node in self.nodes:
            by_key = [key for engine, key in held if engine is node.engine]
            assert node.engine.active == len(by_key)
            for key in "abc":
                assert node.engine.held.of(key) == by_key.count(key)
        for key in "abc":
            assert self.site.registry.held.of(key) == [one for _, one in held].count(key)

    @invariant()
    def nobody_waits_for_what_is_free(self) -> None:
        for name in self.waiting:
            model, exclude = self.asked[name]
            for engine in self.site.registry.candidates(model):
                assert not engine.has_room or engine.node.id in exclude
        assert len(self.waiting) == self.site.admission.waiting

    @invariant()
    def everybody_in_line_has_a_place_of_their_own(self) -> None:
        by_model: dict[str, list[int | None]] = {}
        for name in self.waiting:
            place = self.site.admission.position(name)
            by_model.setdefault(self.asked[name][0], []).append(place)
        for places in by_model.values():
            assert sorted(places, key=lambda place: place or 0) == [*range(1, len(places) + 1)]

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            for name in self.waiting:
                self.line.tasks[name].cancel()
            self.runner.run(turn())
            assert self.site.admission.waiting == 0
            self.runner.close()


TestWhateverHappens = Anything.TestCase
TestWhateverHappens.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


# ── slots without a tunnel ────────────────────────────────────────────────────────────────────


async def test_requests_that_only_wait_for_a_tunnel_are_not_refused() -> None:
    site = Site(queue_length=4, queue_length_per_key=2)
    node = site.node(slots=1000)
    room = 256  # streams of a tunnel
    line = FairQueue(site)
    tunnel = node.node.tunnels[0]
    held = [await open_stream(site) for _ in range(room)]
    assert tunnel.connection.free_streams == 0
    for number in range(600):
        await line.join(f"{number}", key="alice")
    assert site.admission.waiting == 600  # far more than the queue's limits
    node.add_tunnel()
    await turn()
    assert len(line.order) == room  # and not one more than the tunnel has streams for
    assert line.order == [f"{number}" for number in range(room)]
    assert held


async def test_beyond_the_free_slots_the_limits_hold() -> None:
    site = Site(queue_length=4, queue_length_per_key=2)
    node = site.node(slots=3)
    for tunnel in list(node.node.tunnels):
        tunnel.connection.keepalive.suspected = True  # as while it is silent
    line = FairQueue(site)
    for number in range(5):
        await line.join(f"{number}", key="alice")
    assert site.admission.waiting == 5  # three for the slots, two beyond them
    await line.join("refused", key="alice")
    with pytest.raises(ApiError) as refused:
        line.engine("refused")
    assert refused.value.status == 429
    await line.join("other", key="bob")
    assert site.admission.waiting == 6


async def open_stream(site: Site) -> object:
    """Take a slot and a stream of the only node, as a request does."""
    choice = await site.admission.admit(Requirements("tiny"))
    tunnel = choice.engine.node.tunnel(site.loop.time())
    assert tunnel is not None
    head = RequestHead("req", "engine", "POST", "/v1/chat/completions", [], 0, 1000, 1)
    return tunnel.open(head, Silent(), ended=True)


class Silent:
    """Handles a stream on which nothing comes."""

    def on_head(self, head: ResponseHead) -> None: ...
    def on_data(self, data: bytes, ended: bool) -> None: ...
    def on_end(self, figures: Figures) -> None: ...
    def on_reset(self, code: int, reason: str) -> None: ...
    def on_writable(self) -> None: ...
    def on_stuck(self) -> None: ...
