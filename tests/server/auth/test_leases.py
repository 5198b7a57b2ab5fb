"""Limits that hold for all workers: leases of several workers at one bank, with messages between
them that arrive at any time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_server.auth.bank import Amounts, Bank, KeyLimits, Need, Reply
from fabric_server.auth.keys import Key
from fabric_server.auth.leases import FULL_SECONDS, MAX_WAIT, PERIOD, Leases
from fabric_server.auth.rate_limits import Headers
from fabric_server.dialects.errors import ApiError
from protocol.token_bucket import TokenBucket

STEP = FULL_SECONDS * 2


def key(requests: int | None = None, tokens: int | None = None, places: int | None = None) -> Key:
    return Key(
        *("key_a", "ada", "laptop", "sk-fab-x", False, None, requests, tokens),
        requests_at_once=places,
    )


class Fabric:
    """Workers and a bank; ``deliver`` moves one message, ``settle`` all."""

    def __init__(self, workers: int) -> None:
        self.now = 1000.0
        self.bank = Bank(workers)
        self.inbox: deque[tuple[int, Sequence[Need]]] = deque()
        self.outboxes: list[deque[Reply]] = [deque() for _ in range(workers)]
        self.messages = 0
        self.workers = [self.begin(number) for number in range(workers)]
        self.asked: set[asyncio.Task[Headers]] = set()

    def begin(self, number: int) -> Leases:
        def send(needs: Sequence[Need]) -> None:
            self.messages += 1
            self.inbox.append((number, needs))

        return Leases(send, lambda: self.now)

    def spread(self, replies: list[Reply]) -> None:
        for reply in replies:
            self.outboxes[int(reply.holder)].append(reply)

    def to_bank(self) -> None:
        if self.inbox:
            number, needs = self.inbox.popleft()
            self.spread(self.bank.handle_needs(str(number), needs, self.now))

    def to_worker(self, number: int) -> None:
        if self.outboxes[number]:
            _, grants, recalls = self.outboxes[number].popleft()
            self.workers[number].on_answer(grants, recalls)

    async def settle(self) -> None:
        """Deliver all messages."""
        for _ in range(1000):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if not self.inbox and not any(self.outboxes):
                return
            self.to_bank()
            for number in range(len(self.workers)):
                self.to_worker(number)
        raise AssertionError("messages without end")

    async def ask(self, number: int, who: Key) -> Headers | ApiError:
        """Ask a worker, and deliver messages until it has answered."""
        task = asyncio.create_task(self.workers[number].admit(who))
        await self.settle()
        assert task.done(), "every request has an answer"
        try:
            return task.result()
        except ApiError as refusal:
            assert (refusal.status, refusal.code) == (429, "rate_limit_exceeded")
            return refusal


def run(story: Coroutine[Any, Any, None]) -> None:
    """Run a story of a property's test."""
    asyncio.run(asyncio.wait_for(story, 30))


at_workers = st.lists(st.integers(0, 2), min_size=1, max_size=60)


@given(at_workers, st.integers(1, 30))
@settings(max_examples=100)
def test_as_many_are_let_in_as_the_limit_says_wherever_they_come(
    where: list[int], limit: int
) -> None:
    async def story() -> None:
        fabric, who = Fabric(3), key(requests=limit)
        answers = [await fabric.ask(number, who) for number in where]
        let_in = [not isinstance(answer, ApiError) for answer in answers]
        assert let_in == [True] * min(limit, len(where)) + [False] * (len(where) - limit)
        for answer in answers[limit:]:
            assert isinstance(answer, ApiError)
            assert answer.retry_after == pytest.approx(60 / limit)
            assert (b"x-ratelimit-remaining-requests", b"0") in (answer.headers or [])

    run(story())


class Over(AssertionError):
    """More was let in than the limit says."""


events = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 2)),
        st.tuples(st.just("ask"), st.integers(0, 2)),
        st.tuples(st.just("wait"), st.sampled_from([0.001, 0.02, 0.3, 1.0, 7.0])),
        st.tuples(st.just("to bank"), st.none()),
        st.tuples(st.just("to worker"), st.integers(0, 2)),
        st.tuples(st.just("tell"), st.integers(0, 2)),
        st.tuples(st.just("hang up"), st.integers(0, 5)),
        st.tuples(st.just("end"), st.integers(0, 5)),
        st.tuples(st.just("kill"), st.integers(0, 2)),
    ),
    max_size=80,
)


class Model:
    """One key, its true bucket, its requests under way, and all that is known of them."""

    def __init__(self, requests: int | None, places: int | None) -> None:
        self.fabric = Fabric(3)
        self.key = key(requests=requests, places=places)
        self.bucket = requests and TokenBucket(float(requests), requests / 60, self.fabric.now)
        self.asking: list[tuple[int, asyncio.Task[Headers]]] = []
        self.running: list[int] = []

    async def play(self, events: list[tuple[str, Any]]) -> None:
        for what, value in events:
            await getattr(self, "_" + what.replace(" ", "_"))(value)
            await self._look()
        await self._finish()

    async def _look(self) -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for number, task in tuple(self.asking):
            if not task.done():
                continue
            self.asking.remove((number, task))
            if task.cancelled() or task.exception() is not None:
                continue
            self.running.append(number)
            if self.bucket and self.bucket.take(1, self.fabric.now) < -1e-3:
                raise Over(self.bucket)
        if self.key.requests_at_once is not None and len(self.running) > self.key.requests_at_once:
            raise Over(self.running)

    async def _ask(self, number: int) -> None:
        worker = self.fabric.workers[number]
        self.asking.append((number, asyncio.create_task(worker.admit(self.key))))

    async def _wait(self, seconds: float) -> None:
        self.fabric.now += seconds

    async def _to_bank(self, _: None) -> None:
        self.fabric.to_bank()

    async def _to_worker(self, number: int) -> None:
        self.fabric.to_worker(number)

    async def _tell(self, number: int) -> None:
        self.fabric.workers[number].tell()

    async def _hang_up(self, index: int) -> None:
        if index < len(self.asking):
            self.asking[index][1].cancel()

    async def _end(self, index: int) -> None:
        if index < len(self.running):
            self.fabric.workers[self.running.pop(index)].leave(self.key)

    async def _kill(self, number: int) -> None:
        """The worker ends, with its requests and what it has not said."""
        fabric = self.fabric
        for one, task in self.asking:
            if one == number:
                task.cancel()
        await self._look()
        self.running = [one for one in self.running if one != number]
        fabric.inbox = deque(item for item in fabric.inbox if item[0] != number)
        fabric.outboxes[number].clear()
        fabric.spread(fabric.bank.forget(str(number), fabric.now))
        fabric.workers[number] = fabric.begin(number)

    async def _finish(self) -> None:
        """Everything is answered, and what is not in use comes back."""
        await self.fabric.settle()
        self.fabric.now += 0.1
        self.fabric.spread(self.fabric.bank.handle_timer(self.fabric.now))
        await self.fabric.settle()
        await self._look()
        assert not self.asking, "every request has an answer"
        for number in tuple(self.running):
            self.fabric.workers[number].leave(self.key)
        self.running.clear()
        for _ in range(3):
            self.fabric.now += 60.0
            for worker in self.fabric.workers:
                worker.tell()
            await self.fabric.settle()
        limits = [self.key.requests_per_minute, self.key.requests_at_once]
        most = min(one for one in limits if one is not None)
        for number in range(most):
            answer = await self.fabric.ask(number % 3, self.key)
            assert not isinstance(answer, ApiError), f"{number} of {most}: {answer}"
        assert isinstance(await self.fabric.ask(0, self.key), ApiError)


@given(events, st.sampled_from([1, 2, 5, 30, 600]))
@settings(max_examples=150, deadline=None)
def test_never_more_requests_than_the_limit_and_none_are_lost(
    events: list[tuple[str, Any]], limit: int
) -> None:
    run(story_of(limit, None, events))


@given(events, st.sampled_from([1, 2, 3, 10]))
@settings(max_examples=150, deadline=None)
def test_never_more_at_once_than_the_limit_and_no_place_is_lost(
    events: list[tuple[str, Any]], limit: int
) -> None:
    run(story_of(None, limit, events))


async def story_of(requests: int | None, places: int | None, events: list[tuple[str, Any]]) -> None:
    await Model(requests, places).play(events)


spending = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 2)),
        st.tuples(st.just("end"), st.integers(1, 400)),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 3.0, 20.0])),
    ),
    max_size=60,
)


@given(spending, st.sampled_from([1, 60, 1000]))
@settings(deadline=None)
def test_a_request_begins_as_long_as_all_workers_together_have_left_a_token(
    events: list[tuple[str, Any]], limit: int
) -> None:
    run(spend(events, limit))


async def spend(events: list[tuple[str, Any]], limit: int) -> None:
    fabric, who = Fabric(3), key(tokens=limit)
    model = TokenBucket(float(limit), limit / 60, fabric.now)
    running: deque[int] = deque()
    for what, value in events:
        if what == "ask":
            level = model.level(fabric.now)
            begun = not isinstance(await fabric.ask(value, who), ApiError)
            assert begun == (level > 1 - 1e-3), level
            if begun:
                running.append(value)
        elif what == "end" and running:
            fabric.workers[running.popleft()].charge(who, value)
            model.take(min(value, model.level(fabric.now) + 5 * limit), fabric.now)
        else:
            for worker in fabric.workers:  # what is told late is refilled late
                worker.tell()
            await fabric.settle()
            fabric.now += value if what == "wait" else 0.0
        await fabric.settle()


async def test_a_key_with_a_grant_is_decided_at_once_and_few_messages_are_sent() -> None:
    fabric, who = Fabric(2), key(requests=60_000)
    await fabric.ask(0, who)
    at_once = 0
    for number in range(1000):
        taken = fabric.workers[0].take(who)
        if isinstance(taken, asyncio.Future):
            await fabric.settle()
            await taken
        else:
            at_once += 1
        if number % 4 == 0:  # the bank answers within some requests
            await fabric.settle()
    assert at_once > 950
    assert fabric.messages < 30


async def test_a_limit_below_two_for_each_worker_is_the_banks_each_time() -> None:
    fabric, who = Fabric(2), key(requests=3)
    for number in (0, 1, 1):
        taken = fabric.workers[number].take(who)
        assert isinstance(taken, asyncio.Future)
        await fabric.settle()
        assert (b"x-ratelimit-limit-requests", b"3") in await taken
    with pytest.raises(ApiError):
        fabric.workers[1].take(who)


async def test_who_is_over_the_limit_is_refused_without_asking_the_bank_again() -> None:
    fabric, who = Fabric(2), key(requests=1)
    await fabric.ask(0, who)
    assert isinstance(await fabric.ask(1, who), ApiError)
    before = fabric.messages
    for _ in range(100):
        assert isinstance(await fabric.ask(1, who), ApiError)
    assert fabric.messages == before
    fabric.now += 60.0
    assert not isinstance(await fabric.ask(1, who), ApiError)


async def test_all_places_are_usable_at_any_worker_and_come_back() -> None:
    fabric, who = Fabric(2), key(places=3)
    for number in (0, 1, 0):
        assert await fabric.ask(number, who) == []
    for number in (0, 1):
        refusal = await fabric.ask(number, who)
        assert isinstance(refusal, ApiError)
        assert "3 requests at once" in str(refusal.message)
        assert refusal.retry_after == 1.0
    for before, after in ((0, 1), (0, 1), (1, 0), (1, 0), (1, 0)):
        fabric.workers[before].leave(who)
        fabric.now += STEP
        assert await fabric.ask(after, who) == []
        assert isinstance(await fabric.ask(before, who), ApiError)
        fabric.now += STEP


async def test_tokens_are_overdrawn_only_by_what_is_under_way() -> None:
    fabric, who = Fabric(2), key(tokens=600)
    for number in (0, 1, 0, 1):
        assert not isinstance(await fabric.ask(number, who), ApiError)
    fabric.workers[0].charge(who, 900)
    await fabric.settle()
    for number in (0, 1):
        refusal = await fabric.ask(number, who)
        assert isinstance(refusal, ApiError)
        assert refusal.retry_after == pytest.approx(30.1)
        assert (b"x-ratelimit-remaining-tokens", b"0") in (refusal.headers or [])
    fabric.workers[1].charge(who, 10)
    await fabric.settle()
    fabric.now += 30.2
    assert isinstance(await fabric.ask(0, who), ApiError), "what was under way is paid, too"
    fabric.now += 1.0
    for number in (0, 1):
        assert not isinstance(await fabric.ask(number, who), ApiError)


async def test_a_changed_limit_holds_at_once_and_keeps_what_was_used() -> None:
    fabric = Fabric(2)
    for _ in range(4):
        await fabric.ask(0, key(requests=10))
    assert [
        isinstance(await fabric.ask(number % 2, key(requests=6)), ApiError) for number in range(3)
    ] == [False, False, True]
    for number in range(5):
        await fabric.ask(number % 2, key())
    assert not isinstance(await fabric.ask(1, key(requests=7)), ApiError)


async def test_without_an_answer_of_the_bank_requests_are_refused() -> None:
    fabric, who = Fabric(1), key(requests=5)
    task = asyncio.create_task(fabric.workers[0].admit(who))
    for _ in range(2):  # it begins, and the bank is asked at the end of the turn
        await asyncio.sleep(0)
    assert fabric.inbox
    fabric.now += MAX_WAIT
    fabric.workers[0].tell()
    with pytest.raises(ApiError) as caught:
        await task
    assert (caught.value.status, caught.value.code) == (503, "overloaded")
    await fabric.settle()
    assert not isinstance(await fabric.ask(0, who), ApiError), "the answer may come later"


async def test_jobs_ask_without_counting() -> None:
    fabric, who = Fabric(1), key(requests=1, places=1)

    async def must_wait() -> float:
        asking = asyncio.create_task(fabric.workers[0].must_wait(who))
        await fabric.settle()
        return await asking

    for _ in range(3):
        assert await must_wait() == 0.0
    await fabric.ask(0, who)
    assert await must_wait() > 0
    fabric.workers[0].leave(who)
    assert await must_wait() == pytest.approx(60.0)


async def test_an_idle_key_gives_all_back_and_costs_nothing() -> None:
    fabric, who = Fabric(2), key(requests=600, tokens=6000, places=50)
    await fabric.ask(0, who)
    fabric.workers[0].leave(who)
    for _ in range(3):
        fabric.now += PERIOD
        fabric.workers[0].tell()
        await fabric.settle()
    assert repr(fabric.workers[0]) == "<Leases keys=0>"
    before = fabric.messages
    fabric.workers[0].tell()
    assert fabric.messages == before


def test_keys_without_end_are_forgotten_first_those_of_which_nothing_is_promised() -> None:
    bank, one = Bank(2, most=10), Amounts(places=1)
    limits = KeyLimits(places=1)

    def ask(name: str) -> int:
        [reply] = bank.handle_needs("w0", [Need(name, limits, lacks=one, asks=True)], 0.0)
        return sum(grant.granted.places for grant in reply.grants)

    assert ask("held") == 1
    for number in range(100):
        assert ask(f"key_{number}") == 1
        bank.handle_needs("w0", [Need(f"key_{number}", back=one)], 0.0)
    assert repr(bank) == "<Bank keys=10 waiting=0>"
    assert ask("held") == 0


async def test_what_a_worker_was_granted_counts_as_used_if_it_ends_without_a_word() -> None:
    fabric, who = Fabric(2), key(requests=30)
    await fabric.ask(0, who)
    unsaid = 0
    while not isinstance(taken := fabric.workers[0].take(who), asyncio.Future):
        unsaid += 1
    taken.cancel()
    assert unsaid > 0
    await asyncio.sleep(0)
    fabric.inbox.clear()
    fabric.spread(fabric.bank.forget("0", fabric.now))
    seen = [isinstance(await fabric.ask(1, who), ApiError) for _ in range(30)]
    assert seen.count(False) == 29 - unsaid


async def test_a_request_that_was_not_sent_in_the_end_fills_no_bucket_beyond_its_limit() -> None:
    fabric, who = Fabric(1), key(requests=2)
    asking = asyncio.create_task(fabric.workers[0].must_wait(who))
    await fabric.settle()
    assert await asking == 0.0
    fabric.now += 60.0
    fabric.workers[0].tell()
    await fabric.settle()
    seen = [isinstance(await fabric.ask(0, who), ApiError) for _ in range(4)]
    assert seen == [False, False, True, True]


async def test_a_grant_that_comes_too_late_is_given_back() -> None:
    fabric, who = Fabric(2), key(requests=30, places=2)
    task = asyncio.create_task(fabric.workers[0].admit(who))
    for _ in range(2):
        await asyncio.sleep(0)
    fabric.now += MAX_WAIT
    fabric.workers[0].tell()
    with pytest.raises(ApiError):
        await task
    fabric.workers[0].tell()
    await fabric.settle()
    for _ in range(2):
        answer = await fabric.ask(1, who)
        assert not isinstance(answer, ApiError)
    assert (b"x-ratelimit-remaining-requests", b"28") in answer
