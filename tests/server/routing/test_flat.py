"""A choice takes as many steps among thousands of nodes as among some, whatever their state.

Steps are counted in calls: clocks say little on a busy machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from random import Random
from typing import Any, cast

import pytest
from msgspec.structs import replace

from fabric_server.dialects.errors import ApiError
from fabric_server.nodes.circuit_breaker import FAILURES
from fabric_server.nodes.node import Engine, Node
from fabric_server.nodes.registry import Registry
from fabric_server.routing.admission import MAX_COUNTED, Admission
from fabric_server.routing.criteria import Requirements
from fabric_server.routing.load_balancer import relax_hints
from fabric_server.routing.queues import QueueLimits
from protocol.messages import EngineReport, ModelReport, Register

MODEL, CHAT, EMBEDDINGS = "tiny", "/v1/chat/completions", "/v1/embeddings"
REPORT = EngineReport("engine", "vllm", True, 2, [ModelReport(MODEL)])
FEW, MANY = MAX_COUNTED, 2000
SLACK = 40
"""Calls that chance makes of one choice more than of another: more draws, or engines compared."""


class Reachable:
    """As much of a tunnel and its connection as is looked at for a choice."""

    usable = True
    active = 0

    @property
    def connection(self) -> Reachable:
        return self


class Fleet:
    def __init__(self, count: int) -> None:
        self.registry = Registry()
        self.nodes = [self._come(number) for number in range(count)]
        self.engines = [node.engines["engine"] for node in self.nodes]
        self.admission = Admission(
            self.registry,
            rng=Random(1),
            limits=QueueLimits(0, 0, 60.0),
            clock=lambda: 0.0,
            wall=lambda: 0.0,
        )

    def _come(self, number: int) -> Node:
        register = Register(1, "0", f"name {number}", "test", [REPORT])
        node = Node(f"node_{number}", 1, register, cast(Any, object()), 0.0)
        node.tunnels.append(cast(Any, Reachable()))
        self.registry.add(node)
        self.registry.report(node, [REPORT])
        return node

    def fail(self, count: int) -> None:
        for engine in self.engines[:count]:
            for _ in range(FAILURES):
                engine.breaker((MODEL, "")).record_failure(0.0)

    def report(self, **changes: Any) -> None:
        for node in self.nodes:
            self.registry.report(node, [replace(REPORT, **changes)])

    def fill(self) -> None:
        for engine in self.engines:
            for _ in range(engine.slots):
                self.registry.take(engine, "other", 0.0)

    def ask(self) -> None:
        """Ask for a slot as a request does, which is refused where it would have to wait."""
        requirements = Requirements(MODEL, "key", path=CHAT)
        asking = self.admission.admit(requirements)
        try:
            asking.send(None)
        except StopIteration as done:
            self.registry.release(done.value.engine, "key")
        except ApiError:
            pass
        self.admission.has_alternative(requirements)
        engine = self.engines[0]
        self.registry.is_ejected(engine, MODEL, 0.0)
        self.registry.is_alone(engine, MODEL, 0.0)

    def leave_and_come(self) -> None:
        node = self.nodes[3]
        self.registry.remove(node)
        node.link = cast(Any, object())
        self.registry.add(node)
        self.registry.report(node, [REPORT])


STATES: dict[str, Callable[[Fleet], object]] = {
    "idle": lambda fleet: None,
    "one breaker open": lambda fleet: fleet.fail(1),
    "40% of the breakers open": lambda fleet: fleet.fail(len(fleet.engines) * 2 // 5),
    "all breakers open": lambda fleet: fleet.fail(len(fleet.engines)),
    "full": Fleet.fill,
    "all but one full": lambda fleet: (
        fleet.fill(),
        fleet.registry.release(fleet.engines[7], "other"),
    ),
    "all breakers open and full": lambda fleet: (fleet.fail(len(fleet.engines)), fleet.fill()),
    "drained": lambda fleet: [setattr(node, "drained", True) for node in fleet.nodes],
    "paused": lambda fleet: fleet.report(healthy=False, slots=0, paused=True, back_at=60.0),
    "without tunnels": lambda fleet: [
        (node.tunnels.clear(), node.refresh()) for node in fleet.nodes
    ],
}


def calls(work: Callable[[], object]) -> int:
    """Count the calls of functions, Python's and others."""
    count = 0

    def notice(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(notice)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("state", STATES)
def test_a_choice_takes_as_many_steps_among_many_nodes_as_among_few(state: str) -> None:
    found = []
    for count in (FEW, MANY):
        fleet = Fleet(count)
        STATES[state](fleet)
        fleet.ask()  # what has changed is settled by whoever comes first
        found.append(max(calls(fleet.ask) for _ in range(10)))
    few, many = found
    assert many <= few + SLACK


def test_a_hint_that_nobody_meets_is_dropped_without_looking_at_each_engine() -> None:
    """Clients choose what they send: an image for a model that reads none, or too long a prompt."""
    found = []
    for count in (FEW, MANY):
        fleet = Fleet(count)
        fleet.report(models=[ModelReport(MODEL, context_length=4096, capabilities=["tools"])])
        wanted = Requirements(MODEL, tokens=100_000, capabilities=frozenset({"vision"}))
        candidates = fleet.registry.candidates(MODEL)
        found.append(calls(lambda: relax_hints(candidates, wanted)))  # noqa: B023 - called at once
        assert (wanted.tokens, wanted.capabilities) == (0, frozenset())
    few, many = found
    assert many == few


@pytest.mark.parametrize("change", ["a report", "a node", "a breaker"])
def test_a_change_takes_as_many_steps_among_many_nodes_as_among_few(change: str) -> None:
    found = []
    for count in (FEW, MANY):
        fleet = Fleet(count)

        def work(fleet: Fleet = fleet) -> None:
            if change == "a report":
                fleet.registry.report(fleet.nodes[5], [replace(REPORT, models=[])])
                fleet.ask()
                fleet.registry.report(fleet.nodes[5], [REPORT])
            elif change == "a node":
                fleet.leave_and_come()
            else:
                fleet.fail(1)
                fleet.ask()
                fleet.engines[0].breakers.clear()
            fleet.ask()

        work()
        found.append(max(calls(work) for _ in range(10)))
    few, many = found
    assert many <= few + 2 * SLACK


def unplug(fleet: Fleet, but: Collection[Engine] = ()) -> None:
    """Make the tunnels of all engines but these unusable, without a word to the lists."""
    for engine in fleet.engines:
        if engine not in but:
            cast(Any, engine.node.tunnels[0]).usable = False


@pytest.mark.parametrize("state", ["idle", "all breakers open"])
def test_nodes_whose_tunnels_became_unusable_unnoticed_are_passed_over(state: str) -> None:
    fleet = Fleet(1500)
    STATES[state](fleet)
    engines, count, others = fleet.registry.candidates(MODEL).with_room(0.0, "")
    good = [*engines[:count], *others][-1]
    unplug(fleet, {good})
    choice = fleet.admission.admit_now(Requirements(MODEL, "key"), 0.0)
    assert choice is not None
    assert choice.engine is good
    fleet.registry.release(good, "key")
    unplug(fleet)
    assert fleet.admission.admit_now(Requirements(MODEL, "key"), 0.0) is None


@pytest.mark.parametrize("left", [0, 1, 100])
def test_each_node_that_became_unusable_unnoticed_costs_a_few_steps_once(left: int) -> None:
    fleet = Fleet(1500)
    unplug(fleet, fleet.engines[len(fleet.engines) - left :])
    found = [calls(fleet.ask) for _ in range(3)]
    assert found[0] < 30 * len(fleet.nodes)
    if not left:
        assert found[2] < 10 * SLACK


def refusal(fleet: Fleet, requirements: Requirements) -> ApiError:
    with pytest.raises(ApiError) as refused:
        fleet.admission.admit(requirements).send(None)
    return refused.value


def test_a_refusal_tells_about_the_only_node_with_the_path_however_many_serve_the_model() -> None:
    fleet = Fleet(200)
    fleet.report(paths=[CHAT])
    paused = replace(REPORT, paths=[EMBEDDINGS], healthy=False, slots=0, paused=True, back_at=90.0)
    fleet.registry.report(fleet.nodes[101], [paused])
    error = refusal(fleet, Requirements(MODEL, path=EMBEDDINGS))
    assert (error.status, error.code, error.retry_after) == (503, "no_capacity", 90.0)
    assert "paused" in error.message


@pytest.mark.parametrize(
    "wanted",
    [Requirements(MODEL, regions=frozenset({"far"})), Requirements(MODEL, path=EMBEDDINGS)],
    ids=["region", "path"],
)
def test_a_wait_is_estimated_from_the_slots_of_the_few_nodes_that_may_serve(
    wanted: Requirements,
) -> None:
    fleet = Fleet(200)
    fleet.report(paths=[CHAT])
    fleet.nodes[101].region = "far"
    fleet.registry.report(fleet.nodes[101], [replace(REPORT, paths=[CHAT, EMBEDDINGS])])
    fleet.fill()
    fleet.admission.record_service_time(MODEL, 100.0)
    error = refusal(fleet, wanted)
    assert (error.code, error.retry_after) == ("overloaded", 100.0 / REPORT.slots)
