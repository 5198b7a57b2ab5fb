"""Who is next, by priority, age, key and arrival: a value that is told the time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from fabric_server.routing.criteria import Priority, Requirements
from fabric_server.routing.fair_queue import AGEING_SECONDS, FairQueue, present_level

HIGH, MEDIUM, LOW = Priority


@dataclass(eq=False)
class Waiter:
    requirements: Requirements
    since: float
    name: str = ""

    def __repr__(self) -> str:
        wanted = self.requirements
        return f"{wanted.key_id}/{wanted.priority.name}@{self.since:g} {self.name}"


def waiter(key: str, priority: Priority = MEDIUM, since: float = 0.0, name: str = "") -> Waiter:
    return Waiter(Requirements("tiny", key, priority), since, name)


def queue_of(*waiters: Waiter) -> FairQueue[Waiter]:
    queue = FairQueue[Waiter](count())
    for one in waiters:
        queue.add(one)
    return queue


def take(queue: FairQueue[Waiter], now: float = 0.0) -> Waiter:
    found = queue.first(now, lambda one: True)
    assert found is not None
    queue.serve(found[1])
    return found[1]


def take_all(queue: FairQueue[Waiter], now: float = 0.0) -> list[Waiter]:
    return [take(queue, now) for _ in range(len(queue))]


def test_nobody_is_next_in_an_empty_line() -> None:
    assert queue_of().first(0.0, lambda one: True) is None


def test_within_a_key_who_came_first_is_first() -> None:
    waiters = [waiter("a", since=float(number)) for number in range(5)]
    assert take_all(queue_of(*waiters), 5.0) == waiters


def test_keys_take_turns_however_many_each_has() -> None:
    many = [waiter("many", since=number / 100) for number in range(4)]
    few = [waiter("few", since=0.5), waiter("few", since=0.6)]
    assert take_all(queue_of(*many, *few), 1.0) == [many[0], few[0], many[1], few[1], *many[2:]]


def test_a_wait_of_so_long_raises_by_one_class() -> None:
    low = waiter("a", LOW)
    assert present_level(low, AGEING_SECONDS - 0.1) == LOW
    assert present_level(low, AGEING_SECONDS) == MEDIUM
    assert present_level(low, 2 * AGEING_SECONDS) == HIGH
    assert present_level(low, 99 * AGEING_SECONDS) == HIGH


def test_one_that_has_waited_goes_before_one_of_its_key_that_has_just_come() -> None:
    old, new = waiter("a", LOW), waiter("a", HIGH, since=2 * AGEING_SECONDS)
    assert take_all(queue_of(new, old), 2 * AGEING_SECONDS) == [old, new]
    old, new = waiter("a", LOW), waiter("a", HIGH, since=AGEING_SECONDS)
    assert take_all(queue_of(old, new), AGEING_SECONDS) == [new, old]


def test_one_that_does_not_fit_is_passed_over_and_keeps_its_place() -> None:
    first, second = waiter("a", name="first"), waiter("a", since=1.0)
    queue = queue_of(first, second)
    found = queue.first(1.0, lambda one: one is not first)
    assert found is not None
    assert found[1] is second
    queue.serve(second)
    assert take(queue) is first


def test_how_many_go_before_one_more() -> None:
    queue = queue_of(*(waiter("many") for _ in range(5)), waiter("few"))
    assert queue.ahead("new") == 2
    assert queue.ahead("few") == 1 + 2
    assert queue.ahead("many") == 5 + 1


Crowd = st.lists(
    st.builds(
        waiter,
        st.sampled_from("abcd"),
        st.sampled_from(Priority),
        st.integers(0, 60).map(float),
    ),
    max_size=40,
).map(lambda crowd: sorted(crowd, key=lambda one: one.since))


@given(Crowd)
def test_positions_are_the_order_in_which_all_are_taken(crowd: list[Waiter]) -> None:
    queue = queue_of(*crowd)
    told = sorted(crowd, key=lambda one: queue.position(one, 60.0))
    assert told == queue.order(60.0) == take_all(queue, 60.0)


@given(Crowd, st.data())
def test_positions_hold_after_some_have_gone(crowd: list[Waiter], data: st.DataObject) -> None:
    queue = queue_of(*crowd)
    here = list(crowd)
    for _ in range(data.draw(st.integers(0, len(crowd)))):
        gone = data.draw(st.sampled_from(here))
        here.remove(gone)
        if data.draw(st.booleans()):
            queue.remove(gone)
        else:
            queue.serve(gone)
        for one in here:
            assert queue.position(one, 60.0) <= len(here)
    assert len(queue) == len(here) == sum(queue.queued(key) for key in "abcd")
    assert sum(queue.by_priority) == len(here)
    assert all(one in queue for one in here)
    assert queue.oldest is None or queue.oldest.since == min(one.since for one in here)
    assert set(take_all(queue, 60.0)) == set(here)
    assert queue.keys == 0


@given(Crowd)
def test_the_lower_never_goes_before_the_higher_of_its_time(crowd: list[Waiter]) -> None:
    classes = [present_level(one, 60.0) for one in take_all(queue_of(*crowd), 60.0)]
    assert classes == sorted(classes)


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=60))
def test_while_a_key_waits_no_other_is_served_twice(keys: list[str]) -> None:
    taken = [one.requirements.key_id for one in take_all(queue_of(*map(waiter, keys)))]
    for key, several in Counter(keys).items():
        places = [place for place, one in enumerate(taken) if one == key]
        assert len(places) == several
        for before, after in zip([-1, *places], places, strict=False):
            between = Counter(taken[before + 1 : after])
            assert max(between.values(), default=0) <= 1


@given(
    st.integers(1, 5), st.lists(st.sampled_from([HIGH, MEDIUM]), min_size=1), st.sampled_from("abz")
)
def test_the_lowest_is_served_though_higher_ones_keep_coming(
    keys: int, priorities: list[Priority], own: str
) -> None:
    """One is served each second, and all the keys have more waiting than are served."""
    names = "abcde"[:keys]
    low = waiter(own, LOW)
    queue = queue_of(low)
    for second in range(200):
        now = float(second)
        for name in names:
            queue.add(waiter(name, priorities[second % len(priorities)], now))
        if take(queue, now) is low:
            break
    assert second <= 2 * AGEING_SECONDS + (keys + 1)
