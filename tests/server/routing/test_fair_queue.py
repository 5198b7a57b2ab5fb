"""Who is next, by priority, age, key and arrival: a value that is told the time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_server.nodes.held_slots import HeldSlots
from fabric_server.routing.criteria import Priority, Requirements
from fabric_server.routing.fair_queue import AGEING_SECONDS, MAX_LOOKS, FairQueue, is_high
from fabric_server.routing.shares import HIGH_WEIGHT, Shares, Turns
from runtime.version import COMPILED

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
    queue = FairQueue[Waiter](Turns())
    for one in waiters:
        queue.add(one)
    return queue


def take(queue: FairQueue[Waiter], now: float = 0.0, held: HeldSlots | None = None) -> Waiter:
    """Serve one; whoever is served gives the slot back at once."""
    held = held or HeldSlots()
    found = queue.first(now, lambda one: True, Shares(held, held))
    assert found is not None
    queue.serve(found[1])
    held.serve(is_high(found[0]))
    return found[1]


def take_all(queue: FairQueue[Waiter], now: float = 0.0) -> list[Waiter]:
    held = HeldSlots()
    return [take(queue, now, held) for _ in range(len(queue))]


def test_nobody_is_next_in_an_empty_line() -> None:
    nothing = HeldSlots()
    assert queue_of().first(0.0, lambda one: True, Shares(nothing, nothing)) is None


def test_within_a_key_who_came_first_is_first() -> None:
    waiters = [waiter("a", since=float(number)) for number in range(5)]
    assert take_all(queue_of(*waiters), 5.0) == waiters


def test_keys_take_turns_however_many_each_has() -> None:
    many = [waiter("many", since=number / 100) for number in range(4)]
    few = [waiter("few", since=0.5), waiter("few", since=0.6)]
    assert take_all(queue_of(*many, *few), 1.0) == [many[0], few[0], many[1], few[1], *many[2:]]


def test_low_priority_lets_others_pass_until_it_has_waited_long() -> None:
    low, medium = waiter("a", LOW), waiter("b", MEDIUM, since=1.0)
    assert take_all(queue_of(low, medium), AGEING_SECONDS - 0.1) == [medium, low]
    assert take_all(queue_of(low, medium), AGEING_SECONDS) == [low, medium]


def test_no_wait_puts_a_request_before_those_of_high_priority() -> None:
    """The key with the most requests would be served most."""
    old = [waiter("many", priority) for priority in (LOW, MEDIUM)]
    new = waiter("few", HIGH, since=99 * AGEING_SECONDS)
    assert take(queue_of(*old, new), 99 * AGEING_SECONDS) is new


def test_one_that_has_waited_goes_before_one_of_its_key_that_has_just_come() -> None:
    old, new = waiter("a", LOW), waiter("a", HIGH, since=2 * AGEING_SECONDS)
    assert take_all(queue_of(new, old), 2 * AGEING_SECONDS) == [old, new]
    old, new = waiter("a", LOW), waiter("a", HIGH, since=AGEING_SECONDS)
    assert take_all(queue_of(old, new), AGEING_SECONDS) == [new, old]


def test_old_requests_in_the_place_of_high_ones_count_as_such() -> None:
    """Otherwise a key that may send both would always be the first."""
    old = [waiter("many") for _ in range(30)]
    high, few = waiter("many", HIGH, since=AGEING_SECONDS), waiter("few", since=AGEING_SECONDS)
    assert take_all(queue_of(*old, high, few), AGEING_SECONDS).index(few) <= HIGH_WEIGHT


def test_high_priority_goes_first_but_not_for_ever() -> None:
    crowd = [waiter("many", HIGH) for _ in range(20)]
    few = [waiter("few") for _ in range(2)]
    taken = take_all(queue_of(*crowd, *few))
    assert [taken.index(one) for one in few] == [HIGH_WEIGHT, 2 * HIGH_WEIGHT + 1]


def test_who_holds_the_fewest_slots_is_next() -> None:
    """However long they were held, and however often the others were served."""
    held = HeldSlots()
    for _ in range(2):
        held.take("many", 0.0)
    held.take("few", 0.0)
    queue = queue_of(*(waiter("many") for _ in range(3)), waiter("few"), waiter("few"))
    assert take(queue, held=held).requirements.key_id == "few"
    assert take(queue, held=held).requirements.key_id == "few"
    assert take(queue, held=held).requirements.key_id == "many"


def test_high_priority_counts_for_less_of_a_share() -> None:
    held = HeldSlots()
    for _ in range(HIGH_WEIGHT):
        held.take("high", 0.0)
    assert (
        take(queue_of(waiter("high", HIGH), waiter("few")), held=held).requirements.key_id == "few"
    )
    held.take("few", 0.0)
    assert (
        take(queue_of(waiter("high", HIGH), waiter("few")), held=held).requirements.key_id == "high"
    )


def test_one_that_does_not_fit_is_passed_over_and_keeps_its_place() -> None:
    first, second = waiter("a", name="first"), waiter("a", since=1.0)
    queue = queue_of(first, second)
    nothing = HeldSlots()
    found = queue.first(1.0, lambda one: one is not first, Shares(nothing, nothing))
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


@pytest.mark.skipif(COMPILED, reason="a compiled class can't be watched by a class made of it")
def test_in_a_long_queue_positions_move_up_without_being_computed_anew() -> None:
    """Clients of all its requests ask every few seconds, and each answer changes it."""
    computed: list[float] = []

    class Watched(FairQueue[Waiter]):
        def order(self, now: float) -> list[Waiter]:
            computed.append(now)
            return super().order(now)

    queue = Watched(Turns())
    for number in range(500):
        queue.add(waiter(f"k{number % 7}", since=number / 1000))
    order = queue.order(1.0)
    last = order[-1]
    assert queue.position(last, 1.0) == 500
    computed.clear()
    for number, served in enumerate(order[:50], start=1):
        queue.serve(served)
        assert queue.position(last, 1.0) == 500 - number
    new = waiter("new", since=1.1)
    queue.add(new)
    assert queue.position(new, 1.1) == 451
    queue.remove(order[60])
    assert queue.position(last, 1.1) == 450
    assert computed == []
    assert queue.position(new, 9.0) < 20, "its key holds nothing, and it is told so at last"
    assert computed == [9.0]


@given(Crowd)
def test_low_priority_never_goes_before_others_of_its_time(crowd: list[Waiter]) -> None:
    young = [one for one in crowd if 60.0 - one.since < AGEING_SECONDS]
    low = [one.requirements.priority == LOW for one in take_all(queue_of(*young), 60.0)]
    assert low == sorted(low)


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
    low, held = waiter(own, LOW), HeldSlots()
    queue = queue_of(low)
    for second in range(200):
        now = float(second)
        for name in names:
            queue.add(waiter(name, priorities[second % len(priorities)], now))
        if take(queue, now, held) is low:
            break
    assert second <= 2 * AGEING_SECONDS + (HIGH_WEIGHT + 1) * (keys + 1)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40), st.sampled_from([1, 3]))
def test_models_give_a_key_no_more_turns(keys: list[str], models: int) -> None:
    """A key that waits for several models takes turns with one that waits for one of them."""
    turns = Turns()
    queues = [FairQueue[Waiter](turns) for _ in range(models)]
    for number, key in enumerate(keys):
        queues[number % models if key == "a" else 0].add(waiter(key, since=number / 100))
    nothing, taken = HeldSlots(), list[str]()
    for _ in keys:
        shares = Shares(nothing, nothing)
        found = [queue.first(1.0, lambda one: True, shares) for queue in queues]
        rank, place = min((one[0], place) for place, one in enumerate(found) if one is not None)
        chosen = found[place]
        assert chosen is not None and chosen[0] == rank
        queues[place].serve(chosen[1])
        taken.append(chosen[1].requirements.key_id)
    left = Counter(keys)
    for before, key in zip(["", *taken], taken, strict=False):
        others = [other for other in left if left[other] and other != before]
        assert key != before or not others
        left[key] -= 1


def test_finding_the_next_one_takes_no_longer_with_more_keys() -> None:
    """Counted in looks at what is known of the keys: clocks say little on a busy machine."""

    class Counted(str):
        looks = 0

        def __hash__(self) -> int:
            Counted.looks += 1
            return super().__hash__()

    def questions(keys: int) -> int:
        held = HeldSlots()
        queue = queue_of(*(waiter(Counted(f"k{number}"), LOW) for number in range(keys)))
        before = Counted.looks
        queue.first(0.0, lambda one: True, Shares(held, held))
        return Counted.looks - before

    assert questions(4000) == questions(1000) <= 6 * MAX_LOOKS
