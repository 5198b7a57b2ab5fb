"""How many of a model's engines are left out at once, whatever happens to them."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_server.nodes.circuit_breaker import (
    ACCOUNT_SECONDS,
    FAILURES,
    FIRST_SECONDS,
    MAX_BREAKERS,
    CircuitBreaker,
)
from fabric_server.nodes.node import Engine
from fabric_server.nodes.registry import Registry
from fabric_server.nodes.slot_limit import FIRST_REST, LONGEST_REST, RAISE_SECONDS, SlotLimit
from tests.site import ScriptedNode, Site

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["fail", "suspect", "succeed", "wait", "leave", "sick", "well", "probe"]),
        st.integers(0, 5),
        st.sampled_from(["a", "b", "c", "d"]),
    ),
    max_size=80,
)


def able(registry: Registry) -> list[Engine]:
    return [one for one in registry.candidates("tiny") if one.may_serve and one.node.tunnels]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), EVENTS)
def test_never_more_than_half_are_ejected_and_the_worst_stay_out(
    count: int, events: list[tuple[str, int, str]]
) -> None:
    asyncio.run(_play(count, events))


async def _play(count: int, events: list[tuple[str, int, str]]) -> None:
    site = Site()
    nodes = [site.node() for _ in range(count)]
    registry, now = site.registry, 1000.0
    for what, number, account in events:
        _happen(site, nodes[number % count], what, account, now)
        now += 2.0 if what == "wait" else 0.1
        candidates, good = registry.candidates("tiny"), able(registry)
        available = registry.available("tiny", now)
        ejected = [one for one in candidates if one not in available]
        assert len(ejected) <= len(good) // 2
        assert not good or any(one in available for one in good)
        let_in = [one for one in good if one in available and not one.allows("tiny", now)]
        for one in ejected:
            for other in let_in:
                worst = one.breakers["tiny", ""].badness
                assert worst >= other.breakers["tiny", ""].badness


def _happen(site: Site, node: ScriptedNode, what: str, account: str, now: float) -> None:
    engine = node.engine
    if what == "fail":
        engine.breaker(("tiny", "")).record_failure(now)
    elif what == "suspect":
        engine.breaker(("tiny", "")).record_suspicion(now, account)
    elif what == "succeed":
        engine.breakers.clear()
    elif what == "leave":
        node.leave()
    elif what in ("sick", "well") and node.node.link is not None:
        site.registry.report(node.node, [node.report(["tiny"], healthy=what == "well")])
    elif what == "probe":
        for breaker in engine.breakers.values():
            breaker.on_attempt(now)


async def test_breakers_of_one_engine_are_bounded() -> None:
    site = Site()
    engine = site.node().engine
    for number in range(10 * MAX_BREAKERS):
        engine.breaker((f"model-{number}", "")).record_failure(0.0)
    assert len(engine.breakers) == MAX_BREAKERS


def test_suspicions_of_a_thousand_accounts_take_no_room_and_need_three_within_a_minute() -> None:
    breaker = CircuitBreaker()
    for number in range(1000):
        now = number * ACCOUNT_SECONDS
        assert breaker.record_suspicion(now, f"account-{number}") is None
    for number in range(1000):
        assert breaker.record_suspicion(1e6, f"account-{number % 2}") is None
    assert breaker.allows(1e6)
    assert breaker.record_suspicion(1e6, "a third") == FIRST_SECONDS
    assert not breaker.allows(1e6)
    assert breaker.badness[0] == FAILURES


def test_a_limit_falls_by_halves_and_grows_back() -> None:
    limit = SlotLimit()
    assert limit.lower(8, 1.0, 2.0, alone=False) == RAISE_SECONDS
    assert limit.slots == 4
    assert limit.lower(8, 1.5, 3.0, alone=False) is None, "it began before the limit fell"
    assert limit.lower(4, 2.5, 3.0, alone=False) == RAISE_SECONDS
    assert limit.slots == 2
    limit.grow()
    assert limit.slots == 4


def test_an_engine_that_is_busy_with_nothing_rests_ever_longer_unless_it_is_alone() -> None:
    limit, now, rests = SlotLimit(), 0.0, []
    for _ in range(8):
        now += 20.0
        rest = limit.lower(1, now - 0.1, now, alone=False)
        assert rest is not None
        rests.append(rest)
        limit.grow()
        assert limit.slots == 1
    assert rests == [FIRST_REST, 2.0, 4.0, 8.0, *[LONGEST_REST] * 4]
    assert limit.lower(1, now + 1, now + 2, alone=True) == RAISE_SECONDS
    assert limit.slots == 1
