"""What one key sends takes nothing from another one's share of the slots."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from fabric_server.nodes.held_slots import SHARED_SECONDS, HeldSlots
from fabric_server.nodes.node import KEPT_FREE, Engine
from fabric_server.routing.admission import Admission
from fabric_server.routing.criteria import Priority, Requirements
from fabric_server.routing.queues import QueueLimits
from fabric_server.routing.shares import HIGH_WEIGHT, Turns
from tests.server.routing.test_admission import FairQueue as Line
from tests.server.routing.test_admission import turn
from tests.site import Site

VICTIM, ATTACKER = "victim", "attacker"
MODELS = ("tiny", "large", "third")


class Rivals:
    """Two keys that both want more slots than there are, on one fabric."""

    def __init__(
        self, layout: list[tuple[int, tuple[str, ...]]], highest: Priority, rng: Random
    ) -> None:
        self.rng, self.highest = rng, highest
        self.late = 0.0
        self.site = site = Site()
        site.admission = Admission(
            site.registry,
            rng=rng,
            limits=QueueLimits(10_000, 10_000, 1e6),
            clock=lambda: site.loop.time() + self.late,
        )
        self.line = Line(site)
        self.engines = [
            site.node(["tiny", *models], slots=slots).engine for slots, models in layout
        ]
        self.weight = HIGH_WEIGHT if highest == Priority.HIGH else 1

    def inside(self, key: str = "") -> list[str]:
        return [
            name
            for name, task in self.line.tasks.items()
            if task.done() and key in ("", self.line.keys[name])
        ]

    def waiting(self, key: str) -> list[str]:
        return [
            name
            for name, task in self.line.tasks.items()
            if not task.done() and self.line.keys[name] == key
        ]

    async def ask(self, key: str, model: str, priority: Priority) -> None:
        name = f"{key} {len(self.line.keys)}"
        await self.line.join(name, model, key=key, priority=priority)

    async def attack(self) -> None:
        """Send anything that the operator allows: bursts, any model, cancellations."""
        served = {model for engine in self.engines for model in engine.models}
        for _ in range(self.rng.choice((0, 1, 1, 2, 20))):
            priority = Priority(self.rng.randint(self.highest, Priority.LOW))
            await self.ask(ATTACKER, self.rng.choice(sorted(served)), priority)
        waiting = self.waiting(ATTACKER)
        for name in self.rng.sample(waiting, min(len(waiting), self.rng.choice((0, 0, 1, 8)))):
            self.line.tasks.pop(name).cancel()
        await turn()

    async def use(self) -> None:
        """Keep a few more of the victim's requests waiting than there are slots."""
        while len(self.waiting(VICTIM)) < 3:
            await self.ask(VICTIM, "tiny", Priority.MEDIUM)

    async def end_one(self) -> None:
        """End one request: those of the victim are short, those of the attacker are long."""
        key = VICTIM if self.rng.random() < 0.8 and self.inside(VICTIM) else ""
        name = self.rng.choice(self.inside(key))
        self.line.give_back(name)
        del self.line.tasks[name]
        if (waiting := self.waiting(ATTACKER)) and self.rng.random() < 0.2:
            self.line.tasks.pop(waiting[0]).cancel()  # perhaps just when it is served
        await turn()

    def check(self) -> None:
        for engine in self.engines:
            assert engine.held.of(VICTIM) >= engine.slots / (1 + self.weight) - 1
        if all(engine.slots == 1 for engine in self.engines):
            share = len(self.engines) / (1 + self.weight)
            assert self.site.registry.held.of(VICTIM) >= share - 1


async def rival(layout: list[tuple[int, tuple[str, ...]]], highest: Priority, number: int) -> None:
    rivals = Rivals(layout, highest, Random(number))
    for _ in range(2 * sum(slots for slots, _ in layout)):
        await rivals.ask(ATTACKER, "tiny", highest)
    await rivals.use()
    for name in rivals.inside(ATTACKER):  # each request of the attacker ends once
        rivals.line.give_back(name)
        del rivals.line.tasks[name]
        await turn()
        await rivals.use()
    rivals.check()
    for _ in range(60):
        rivals.late += rivals.rng.choice((0.0, 0.0, 1.0, 20.0))
        await rivals.attack()
        await rivals.end_one()
        await rivals.use()
        rivals.check()
    for task in rivals.line.tasks.values():
        task.cancel()
    await turn()


Layouts = st.lists(
    st.tuples(st.integers(1, 9), st.sets(st.sampled_from(MODELS)).map(tuple)),
    min_size=1,
    max_size=4,
)
Single = st.lists(
    st.tuples(st.just(1), st.sets(st.sampled_from(MODELS)).map(tuple)), min_size=2, max_size=8
)


@seed(7)
@settings(max_examples=40, deadline=None)
@given(Layouts | Single, st.sampled_from(Priority), st.integers(0, 2**32))
def test_a_key_never_has_less_than_its_share_minus_one_slot(
    layout: list[tuple[int, tuple[str, ...]]], highest: Priority, number: int
) -> None:
    """Whatever one other key sends: of medium priority the share is a half, of high a fifth."""
    asyncio.run(rival(layout, highest, number))


def held_by(engine: Engine, key: str) -> int:
    return engine.held.of(key)


async def test_of_many_slots_that_are_shared_some_are_kept_from_the_key_that_has_the_others() -> (
    None
):
    site = Site()
    engine = site.node(slots=2 * KEPT_FREE).engine
    line = Line(site)
    for number in range(2 * KEPT_FREE):
        await line.join(f"alone {number}", key="many")
    assert held_by(engine, "many") == 2 * KEPT_FREE, "nobody else is there"
    await line.join("few", key="few")
    await line.leave("alone 0")
    await line.leave("few")
    for number in range(4):
        await line.join(f"more {number}", key="many")
    assert held_by(engine, "many") == 2 * KEPT_FREE - 1
    for number in (1, 2):
        await line.leave(f"alone {number}")
    assert held_by(engine, "many") == 2 * KEPT_FREE - 2
    await line.join("few again", key="few")
    assert line.order[-1] == "few again", "at once"


def test_an_engine_counts_as_shared_for_a_while() -> None:
    held = HeldSlots()
    for now, key in ((0.0, "a"), (1.0, "a")):
        held.take(key, now)
        assert not held.is_shared(now)
    held.take("b", 2.0)
    held.give_back("b")
    assert held.is_shared(1.9 + SHARED_SECONDS)
    assert not held.is_shared(2.1 + SHARED_SECONDS)
    with pytest.raises(KeyError):
        held.give_back("b")


def test_turns_of_keys_are_remembered_within_bounds() -> None:
    turns = Turns()
    for number in range(20_000):
        turns.serve(f"k{number}")
    assert turns.last("k0") == 0
    assert turns.last("k19999") == 20_000


async def test_a_key_that_goes_leaves_no_count_behind() -> None:
    site = Site()
    engine = site.node(slots=1).engine
    choice = site.admission.admit_now(Requirements("tiny", "k"), 0.0)
    assert choice is not None and choice.key_id == "k"
    assert (held_by(engine, "k"), site.registry.held.of("k")) == (1, 1)
    site.registry.release(engine, choice.key_id)
    assert (held_by(engine, "k"), site.registry.held.of("k")) == (0, 0)
