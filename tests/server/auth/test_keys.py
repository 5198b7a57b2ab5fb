"""Whose key it is: quickly when known, rightly when revoked, and without a store."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_server.auth.keys import Accounts, Key, NewKey, mint
from fabric_server.dialects.errors import ApiError
from fabric_server.storage.cached_keys import name_of
from fabric_server.storage.change_feed import ChangeFeed
from fabric_server.storage.connect import open_store
from fabric_server.storage.memory import MemoryCache
from fabric_server.storage.rows import Changes, KeyRow
from fabric_server.storage.store import SqlStore
from runtime.errors import BackendError, StoreError
from tests.contracts.samples import NOON


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


class Keys:
    """A store that counts, and that can be slow or away."""

    revision_at_open = 1

    def __init__(self, *new: NewKey) -> None:
        self.rows = {one.row.hash: one.row for one in new}
        self.asked = 0
        self.away = False
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def key_by_hash(self, digest: bytes) -> KeyRow | None:
        self.asked += 1
        self.entered.set()
        row = self.rows.get(digest)
        await self.gate.wait()
        if self.away:
            raise StoreError("the store is away")
        return row


class NoCache:
    """A cache that is away."""

    async def get(self, name: str) -> bytes | None:
        raise BackendError("no cache")

    async def set(self, name: str, value: bytes, seconds: float) -> None:
        raise BackendError("no cache")


class Rubbish:
    """A cache in which another program writes."""

    def __init__(self, value: bytes) -> None:
        self.value = value

    async def get(self, name: str) -> bytes | None:
        return self.value

    async def set(self, name: str, value: bytes, seconds: float) -> None:
        pass


class Forgetful:
    """A cache that never keeps anything."""

    async def get(self, name: str) -> bytes | None:
        return None

    async def set(self, name: str, value: bytes, seconds: float) -> None:
        pass


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> MemoryCache:
    return MemoryCache(clock=clock)


async def refusal(accounts: Accounts, token: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await accounts.authenticate(token)
    return caught.value


def revoked(new: NewKey) -> KeyRow:
    row = new.row
    return KeyRow(
        row.id, row.account, row.name, row.prefix, row.hash, row.management, NOON, None, NOON
    )


# ── making keys ───────────────────────────────────────────────────────────────────────────────


def test_a_key_is_long_random_and_recognisable() -> None:
    new, other = mint("laptop", now=NOON), mint("laptop", now=NOON)
    assert new.text.startswith("sk-fab-")
    assert len(new.text) == len("sk-fab-") + 43
    assert new.text.startswith(new.row.prefix)
    assert len(new.row.prefix) == 13
    assert new.text not in repr(new.row)
    assert new.text != other.text
    assert new.row.id != other.row.id


def test_a_management_key_looks_different() -> None:
    new = mint("ops", now=NOON, management=True)
    assert new.text.startswith("mk-fab-")
    assert new.row.management


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"name": ""}, "name is 1 to 256"),
        ({"name": "a\nb"}, "name is 1 to 256 printable"),
        ({"name": "x" * 257}, "name is 1 to 256"),
        ({"account": " "}, "account is 1 to 256"),
        ({"expires_at": NOON}, "expired already"),
        ({"models": []}, "at least one name"),
        ({"models": ["m"], "management": True}, "not for management keys"),
    ],
)
def test_keys_that_make_no_sense_are_not_made(properties: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mint(**({"name": "n", "now": NOON} | properties))  # type: ignore[arg-type]


def test_a_model_list_allows_what_is_on_it_with_or_without_latest() -> None:
    key = Key("key_1", "a", "n", "p", False, frozenset({"llama3.2", "qwen/qwen3:8b"}))
    assert [
        key.allows(model)
        for model in ("llama3.2", "llama3.2:latest", "llama3.2:3b", "qwen/qwen3:8b", "qwen3:8b")
    ] == [True, True, False, True, False]
    assert Key("key_1", "a", "n", "p", False, None).allows("anything")


async def test_latest_on_the_list_means_the_bare_name(cache: MemoryCache, clock: Clock) -> None:
    new = mint("n", now=NOON, models=["llama3.2:latest"])
    key = await Accounts(Keys(new), cache, clock=clock).authenticate(new.text)
    assert key.allows("llama3.2")


# ── looking up ────────────────────────────────────────────────────────────────────────────────


async def test_a_key_is_asked_of_the_store_once(cache: MemoryCache, clock: Clock) -> None:
    new = mint("laptop", account="acme", now=NOON)
    keys = Keys(new)
    accounts = Accounts(keys, cache, clock=clock)
    assert accounts.known(new.text) is None
    key = await accounts.authenticate(new.text)
    assert (key.id, key.account, key.management) == (new.row.id, "acme", False)
    assert accounts.known(new.text) is key
    assert await accounts.authenticate(new.text) is key
    assert keys.asked == 1


async def test_another_process_finds_it_in_the_cache(cache: MemoryCache, clock: Clock) -> None:
    new = mint("laptop", now=NOON)
    keys = Keys(new)
    first = await Accounts(keys, cache, clock=clock).authenticate(new.text)
    assert await Accounts(keys, cache, clock=clock).authenticate(new.text) == first
    assert keys.asked == 1


async def test_many_requests_with_a_new_key_cost_one_look_up(
    cache: MemoryCache, clock: Clock
) -> None:
    new = mint("laptop", now=NOON)
    keys = Keys(new)
    keys.gate.clear()
    accounts = Accounts(keys, cache, clock=clock)
    tasks = [asyncio.create_task(accounts.authenticate(new.text)) for _ in range(50)]
    await asyncio.sleep(0)
    keys.gate.set()
    assert {key.id for key in await asyncio.gather(*tasks)} == {new.row.id}
    assert keys.asked == 1


async def test_whoever_waits_for_a_look_up_survives_the_one_who_began_it(
    cache: MemoryCache, clock: Clock
) -> None:
    new = mint("laptop", now=NOON)
    keys = Keys(new)
    keys.gate.clear()
    accounts = Accounts(keys, cache, clock=clock)
    tasks = [asyncio.create_task(accounts.authenticate(new.text)) for _ in range(3)]
    await keys.entered.wait()
    tasks[0].cancel()
    await asyncio.wait([tasks[0]])
    keys.gate.set()
    assert [(await task).id for task in tasks[1:]] == [new.row.id] * 2
    assert keys.asked == 2


async def test_no_key_at_all_is_told_from_a_wrong_one(cache: MemoryCache, clock: Clock) -> None:
    accounts = Accounts(Keys(), cache, clock=clock)
    assert "No API key provided" in (await refusal(accounts, "")).message
    wrong = await refusal(accounts, mint("x", now=NOON).text)
    assert (wrong.status, wrong.code) == (401, "invalid_api_key")


@given(token=st.text(max_size=80))
def test_no_text_makes_it_raise_anything_but_a_refusal(token: str) -> None:
    async def check() -> int:
        keys = Keys()
        accounts = Accounts(keys, MemoryCache())
        assert accounts.known(token) is None
        assert (await refusal(accounts, token)).status == 401
        return keys.asked

    assert asyncio.run(check()) == 0  # what can't be a key costs no look-up


@pytest.mark.parametrize("change", [lambda t: t[:-1], lambda t: t + "a", lambda t: t + "\n"])
async def test_a_key_must_match_to_the_last_character(
    cache: MemoryCache, clock: Clock, change: object
) -> None:
    new = mint("laptop", now=NOON)
    accounts = Accounts(Keys(new), cache, clock=clock)
    await accounts.authenticate(new.text)
    changed = change(new.text)  # type: ignore[operator]
    assert accounts.known(changed) is None
    assert (await refusal(accounts, changed)).status == 401


async def test_a_wrong_key_is_remembered_for_a_while(cache: MemoryCache, clock: Clock) -> None:
    keys, wrong = Keys(), mint("x", now=NOON)
    accounts = Accounts(keys, cache, clock=clock)
    for _ in range(5):
        await refusal(accounts, wrong.text)
    assert keys.asked == 1
    clock.now += 31
    keys.rows[wrong.row.hash] = wrong.row
    assert (await accounts.authenticate(wrong.text)).id == wrong.row.id


async def test_wrong_keys_cost_bounded_memory_and_drive_out_no_good_one(clock: Clock) -> None:
    new = mint("laptop", now=NOON)
    cache = MemoryCache(max_values=50, clock=clock)
    accounts = Accounts(Keys(new), cache, clock=clock, most=20)
    await accounts.authenticate(new.text)
    for _ in range(300):
        await refusal(accounts, mint("x", now=NOON).text)
    assert len(cache) == 50
    assert repr(accounts) == "<Accounts keys=1 lookups=0>"
    assert accounts.known(new.text) is not None


async def test_the_keys_used_last_are_kept(clock: Clock) -> None:
    new = [mint(f"k{n}", now=NOON) for n in range(4)]
    accounts = Accounts(Keys(*new), Forgetful(), clock=clock, most=3)
    for one in new[:3]:
        await accounts.authenticate(one.text)
    accounts.known(new[0].text)
    await accounts.authenticate(new[3].text)
    assert [accounts.known(one.text) is not None for one in new] == [True, False, True, True]


async def test_too_many_look_ups_at_once_are_refused_and_known_keys_are_not(clock: Clock) -> None:
    new = mint("laptop", now=NOON)
    keys = Keys(new)
    accounts = Accounts(keys, Forgetful(), clock=clock, most_lookups=3, fresh_seconds=10)
    await accounts.authenticate(new.text)
    keys.gate.clear()
    flood = [asyncio.create_task(accounts.authenticate(mint("x", now=NOON).text)) for _ in range(3)]
    await asyncio.sleep(0)
    too_many = await refusal(accounts, mint("x", now=NOON).text)
    assert (too_many.status, too_many.retry_after) == (503, 1.0)
    clock.now += 11  # and would be looked up again by now
    assert (await accounts.authenticate(new.text)).id == new.row.id
    keys.gate.set()
    await asyncio.wait(flood)
    assert all(isinstance(task.exception(), ApiError) for task in flood)


async def test_a_key_ends_when_it_expires(cache: MemoryCache, clock: Clock) -> None:
    new = mint("brief", now=NOON, expires_at=NOON + 60)
    accounts = Accounts(Keys(new), cache, clock=clock)
    await accounts.authenticate(new.text)
    clock.now = NOON + 59.9
    assert accounts.known(new.text) is not None
    clock.now = NOON + 60
    assert accounts.known(new.text) is None
    assert (await refusal(accounts, new.text)).status == 401
    assert (await refusal(Accounts(Keys(new), cache, clock=clock), new.text)).status == 401


# ── what changes meanwhile ────────────────────────────────────────────────────────────────────


async def test_a_revoked_key_is_refused_when_told(cache: MemoryCache, clock: Clock) -> None:
    new, other = mint("laptop", now=NOON), mint("other", now=NOON)
    keys = Keys(new, other)
    accounts = Accounts(keys, cache, clock=clock)
    await accounts.authenticate(new.text)
    await accounts.authenticate(other.text)
    keys.rows[new.row.hash] = revoked(new)

    accounts.changed(Changes(2, False, [revoked(new)]))
    assert accounts.known(new.text) is None
    assert (await refusal(accounts, new.text)).status == 401
    assert accounts.known(other.text) is not None
    clock.now += 1000  # long after everything was forgotten
    assert (await refusal(accounts, new.text)).status == 401


async def test_an_older_row_in_the_cache_does_not_bring_a_revoked_key_back(
    cache: MemoryCache, clock: Clock
) -> None:
    new = mint("laptop", now=NOON)
    slow = Accounts(Keys(new), cache, clock=clock)
    accounts = Accounts(Keys(new), cache, clock=clock)
    accounts.changed(Changes(2, False, [revoked(new)]))
    await slow.authenticate(new.text)  # another server, a moment behind, fills the cache
    assert (await refusal(accounts, new.text)).status == 401


async def test_a_look_up_overtaken_by_a_revocation_does_not_count(clock: Clock) -> None:
    new = mint("laptop", now=NOON)
    keys = Keys(new)
    keys.gate.clear()
    accounts = Accounts(keys, Forgetful(), clock=clock)
    task = asyncio.create_task(accounts.authenticate(new.text))
    await keys.entered.wait()
    accounts.changed(Changes(2, False, [revoked(new)]))
    keys.gate.set()
    await asyncio.wait([task])
    assert isinstance(task.exception(), ApiError)
    assert accounts.known(new.text) is None


async def test_a_store_put_back_from_a_backup_is_asked_anew(
    cache: MemoryCache, clock: Clock
) -> None:
    new, gone = mint("laptop", now=NOON), mint("gone", now=NOON)
    keys = Keys(new, gone)
    accounts = Accounts(keys, cache, clock=clock)
    await accounts.authenticate(new.text)
    await accounts.authenticate(gone.text)
    del keys.rows[gone.row.hash]
    accounts.changed(Changes(1, True, [new.row]))
    assert accounts.known(new.text) is None
    assert (await accounts.authenticate(new.text)).id == new.row.id
    assert (await refusal(accounts, gone.text)).status == 401


async def test_a_look_up_begun_before_everything_changed_is_done_again(clock: Clock) -> None:
    gone = mint("gone", now=NOON)
    keys = Keys(gone)
    keys.gate.clear()
    accounts = Accounts(keys, Forgetful(), clock=clock)
    task = asyncio.create_task(accounts.authenticate(gone.text))
    await keys.entered.wait()
    keys.rows.clear()
    accounts.forget_all()
    keys.gate.set()
    await asyncio.wait([task])
    assert isinstance(task.exception(), ApiError)
    assert keys.asked == 2


# ── without a store, without a cache ──────────────────────────────────────────────────────────


async def test_without_the_store_known_keys_go_on_and_others_hear_why(
    cache: MemoryCache, clock: Clock
) -> None:
    new = mint("laptop", now=NOON)
    keys = Keys(new)
    accounts = Accounts(keys, cache, clock=clock)
    await accounts.authenticate(new.text)
    keys.away = True
    clock.now += 10_000
    assert (await accounts.authenticate(new.text)).id == new.row.id
    assert accounts.known(new.text) is not None  # without asking again for a while
    away = await refusal(accounts, mint("x", now=NOON).text)
    assert (away.status, away.code, away.retry_after) == (503, "keys_unavailable", 5.0)

    keys.away = False
    keys.rows[new.row.hash] = revoked(new)
    clock.now += 31
    assert (await refusal(accounts, new.text)).status == 401


async def test_without_the_store_an_expired_key_is_still_expired(clock: Clock) -> None:
    new = mint("brief", now=NOON, expires_at=NOON + 60)
    keys = Keys(new)
    accounts = Accounts(keys, Forgetful(), clock=clock)
    await accounts.authenticate(new.text)
    keys.away = True
    clock.now += 61
    assert (await refusal(accounts, new.text)).status in (401, 503)
    assert accounts.known(new.text) is None


async def test_a_store_that_does_not_answer_delays_one_request_and_no_other(clock: Clock) -> None:
    new = mint("laptop", now=NOON)
    keys = Keys(new)
    accounts = Accounts(keys, Forgetful(), clock=clock, store_seconds=0.02)
    await accounts.authenticate(new.text)
    clock.now += 301
    keys.gate.clear()
    keys.entered.clear()
    first = asyncio.create_task(accounts.authenticate(new.text))
    await keys.entered.wait()
    assert accounts.known(new.text) is not None
    assert not first.done()
    assert (await first).id == new.row.id
    assert (await refusal(accounts, mint("x", now=NOON).text)).status == 503


@pytest.mark.parametrize(
    "cache",
    [NoCache(), Rubbish(b""), Rubbish(b"\xc1"), Rubbish(b"\x80")],
    ids=["away", "empty", "no msgpack", "no key"],
)
async def test_without_a_usable_cache_the_store_is_asked(
    clock: Clock, cache: NoCache | Rubbish
) -> None:
    new = mint("laptop", now=NOON)
    accounts = Accounts(Keys(new), cache, clock=clock)
    assert (await accounts.authenticate(new.text)).id == new.row.id
    assert (await refusal(accounts, mint("x", now=NOON).text)).status == 401


async def test_another_key_in_the_cache_is_not_believed(clock: Clock) -> None:
    good, evil = mint("good", now=NOON), mint("evil", now=NOON)
    cache = MemoryCache(clock=clock)
    await Accounts(Keys(good), cache, clock=clock).authenticate(good.text)
    value = await cache.get(name_of(good.row.hash))
    assert value is not None
    assert (await refusal(Accounts(Keys(), Rubbish(value), clock=clock), evil.text)).status == 401


# ── one cache, several servers ────────────────────────────────────────────────────────────────


async def test_a_server_that_began_after_a_revocation_believes_no_row_from_before(
    cache: MemoryCache, clock: Clock
) -> None:
    new, other = mint("laptop", now=NOON), mint("other", now=NOON)
    keys = Keys(new, other)
    await Accounts(keys, cache, clock=clock).authenticate(new.text)
    keys.rows[new.row.hash] = revoked(new)
    keys.revision_at_open += 1
    late = Accounts(keys, cache, clock=clock)
    assert (await refusal(late, new.text)).status == 401
    await late.authenticate(other.text)
    asked = keys.asked
    await Accounts(keys, cache, clock=clock).authenticate(other.text)  # begun at the same revision
    assert keys.asked == asked


async def test_what_another_release_keeps_of_a_key_is_not_believed(clock: Clock) -> None:
    """It may know of no limits, and the key has some."""
    new = mint("laptop", now=NOON, requests_per_minute=5)
    cache = MemoryCache(clock=clock)
    await Accounts(Keys(new), cache, clock=clock).authenticate(new.text)
    value = await cache.get(name_of(new.row.hash))
    assert value is not None
    other = MemoryCache(clock=clock)
    without = value.replace(b"requests_per_minute", b"something_different")
    await other.set(f"key:{new.row.hash.hex()}", without, 60.0)  # as it was called there
    key = await Accounts(Keys(new), other, clock=clock).authenticate(new.text)
    assert key.requests_per_minute == 5


async def test_a_value_the_cache_kept_too_late_ends_when_it_would_have(clock: Clock) -> None:
    new = mint("laptop", now=NOON)
    keys = Keys(new)
    cache = MemoryCache(clock=clock)
    await Accounts(keys, cache, clock=clock).authenticate(new.text)
    value = await cache.get(name_of(new.row.hash))
    assert value is not None
    keys.rows[new.row.hash] = revoked(new)
    clock.now += 301
    await cache.set(name_of(new.row.hash), value, 300)  # a Redis that had been stopped
    assert (await refusal(Accounts(keys, cache, clock=clock), new.text)).status == 401


async def test_between_servers_whose_clocks_are_wrong_revisions_count(
    cache: MemoryCache, clock: Clock
) -> None:
    new = mint("laptop", now=NOON)
    keys, ahead = Keys(new), Clock()
    ahead.now += 60
    await Accounts(keys, cache, clock=ahead).authenticate(new.text)
    keys.rows[new.row.hash] = revoked(new)
    keys.revision_at_open += 1
    clock.now += 25
    late = Accounts(keys, cache, clock=clock)
    clock.now += 15  # by now the value looks as if it had been read after that
    assert (await refusal(late, new.text)).status == 401


async def test_a_value_from_the_far_future_is_not_believed(clock: Clock) -> None:
    new = mint("laptop", now=NOON)
    keys, cache = Keys(new), MemoryCache(clock=clock)
    ahead = Clock()
    ahead.now += 3600
    await Accounts(keys, cache, clock=ahead).authenticate(new.text)
    await Accounts(keys, cache, clock=clock).authenticate(new.text)
    assert keys.asked == 2


async def test_what_was_cached_before_everything_changed_is_not_believed(
    cache: MemoryCache, clock: Clock
) -> None:
    gone = mint("gone", now=NOON)
    keys = Keys(gone)
    keys.revision_at_open = 50
    accounts = Accounts(keys, cache, clock=clock)
    await Accounts(keys, cache, clock=clock).authenticate(gone.text)
    keys.rows.clear()
    accounts.changed(Changes(20, True, []))
    assert (await refusal(accounts, gone.text)).status == 401
    await cache.set(name_of(gone.row.hash), b"", 1)
    await Accounts(Keys(gone), cache, clock=clock).authenticate(gone.text)
    keys.revision_at_open = 20  # and it has been written by one who has not noticed yet
    assert (await refusal(Accounts(keys, cache, clock=clock), gone.text)).status == 401


async def test_when_more_is_told_than_is_kept_the_cache_is_not_believed(
    cache: MemoryCache, clock: Clock
) -> None:
    new = [mint(f"k{n}", now=NOON) for n in range(4)]
    keys = Keys(*new)
    await Accounts(keys, cache, clock=clock).authenticate(new[0].text)
    accounts = Accounts(keys, cache, clock=clock, most=3)
    for n, one in enumerate(new):
        keys.rows[one.row.hash] = revoked(one)
        accounts.changed(Changes(n + 2, False, [revoked(one)]))
    assert (await refusal(accounts, new[0].text)).status == 401


async def test_a_key_revoked_while_the_store_fails_is_not_used_on(clock: Clock) -> None:
    new = mint("laptop", now=NOON)
    keys = Keys(new)
    accounts = Accounts(keys, Forgetful(), clock=clock)
    await accounts.authenticate(new.text)
    clock.now += 301
    keys.gate.clear()
    keys.entered.clear()
    keys.away = True
    asking = asyncio.create_task(accounts.authenticate(new.text))
    await keys.entered.wait()
    accounts.changed(Changes(2, False, [revoked(new)]))
    keys.gate.set()
    await asyncio.wait([asking])
    error = asking.exception()
    assert isinstance(error, ApiError)
    assert error.status == 401


async def test_a_cache_that_is_away_is_told_of_until_it_is_back(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    class Flaky(MemoryCache):
        away = False

        async def get(self, name: str) -> bytes | None:
            if self.away:
                raise BackendError("gone")
            return await super().get(name)

    new = [mint(f"k{n}", now=NOON) for n in range(4)]
    cache = Flaky(clock=clock)
    accounts = Accounts(Keys(*new), cache, clock=clock)
    await accounts.authenticate(new[0].text)
    assert accounts.cache_problem is None
    cache.away = True
    for one in new[1:3]:
        await accounts.authenticate(one.text)
    assert accounts.cache_problem == "gone"
    cache.away = False
    await accounts.authenticate(new[3].text)
    assert accounts.cache_problem is None
    assert [r.message for r in caplog.records] == ["the cache is away", "the cache is back"]


async def test_a_cache_that_hangs_is_waited_for_once(clock: Clock) -> None:
    class Hanging:
        entered = 0

        async def get(self, name: str) -> bytes | None:
            self.entered += 1
            await asyncio.Event().wait()
            return None

        async def set(self, name: str, value: bytes, seconds: float) -> None:
            self.entered += 1
            await asyncio.Event().wait()

    new, cache = mint("laptop", now=NOON), Hanging()
    accounts = Accounts(Keys(new), cache, clock=clock, cache_seconds=0.01)
    await accounts.authenticate(new.text)
    assert cache.entered == 1
    assert accounts.cache_problem == "it does not answer"


class World:
    """A store, a cache that may keep values late, and two servers, all moved by hand.

    Everything that a server waits for stands in ``gates`` until it is let go.
    """

    def __init__(self) -> None:
        self.now = NOON
        self.new = [mint(f"k{n}", now=NOON) for n in range(3)]
        self.rows = {one.row.hash: one.row for one in self.new[:2]}
        self.revision = 1
        self.changed_at = dict.fromkeys(self.rows, 1)
        self.backup = (dict(self.rows), dict(self.changed_at), self.revision)
        self.values: dict[str, tuple[bytes, float]] = {}
        self.late: list[tuple[str, bytes, float]] = []
        self.gates: list[asyncio.Future[None]] = []
        self.servers = [OneOfSeveral(self, skew) for skew in (-12.0, 12.0)]

    def change(self, row: KeyRow) -> None:
        for server in self.servers:  # they look far more often than revisions are made up for
            if server.since > self.revision:
                server.look()
        self.revision += 1
        self.rows[row.hash] = row
        self.changed_at[row.hash] = self.revision

    async def gate(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self.gates.append(future)
        await future

    async def settle(self) -> None:
        for _ in range(12):  # as many steps as there are layers
            await asyncio.sleep(0)

    async def let_go(self, which: int) -> None:
        gate = self.gates.pop(which % len(self.gates))
        if not gate.done():
            gate.set_result(None)
        await self.settle()

    async def let_all_go(self) -> None:
        await self.settle()
        while self.gates:
            await self.let_go(0)

    def keep_late(self, which: int) -> None:
        name, value, seconds = self.late.pop(which % len(self.late))
        self.values[name] = (value, self.now + seconds)

    def put_back(self) -> None:
        for server in self.servers:  # who looks twice a second has seen what was last changed
            server.look()
        rows, changed_at, self.revision = self.backup
        self.rows, self.changed_at = dict(rows), dict(changed_at)
        # What cached.py says is left: read in the half second before the backup's revision passed.
        fits = self._fits
        self.values = {name: kept for name, kept in self.values.items() if fits(kept[0])}
        self.late = [kept for kept in self.late if fits(kept[1])]

    def _fits(self, value: bytes) -> bool:
        row, as_of, _, _ = msgspec.msgpack.decode(value)
        if as_of != self.revision:
            return True
        known = row is not None and self.rows.get(msgspec.convert(row, KeyRow).hash)
        return bool(known) and known == msgspec.convert(row, KeyRow)


class OneOfSeveral:
    """A server process, and what it asks."""

    def __init__(self, world: World, skew: float) -> None:
        self.world = world
        self.skew = skew
        self.tasks: list[tuple[NewKey, asyncio.Task[Key]]] = []
        self.start()

    def start(self) -> None:
        for _, task in self.tasks:
            task.cancel()
        self.tasks.clear()
        self.since = self.revision_at_open = self.world.revision
        self.accounts = Accounts(
            self, self, clock=lambda: self.world.now + self.skew, most=2, cache_seconds=5.0
        )

    async def key_by_hash(self, digest: bytes) -> KeyRow | None:
        await self.world.gate()
        row = self.world.rows.get(digest)
        await self.world.gate()
        return row

    async def get(self, name: str) -> bytes | None:
        value, until = self.world.values.get(name, (None, 0.0))
        await self.world.gate()
        return value if self.world.now < until else None

    async def set(self, name: str, value: bytes, seconds: float) -> None:
        self.world.late.append((name, value, seconds))

    def ask(self, new: NewKey) -> None:
        self.tasks.append((new, asyncio.create_task(self.accounts.authenticate(new.text))))

    def look(self) -> None:
        world = self.world
        everything = world.revision < self.since
        after = 0 if everything else self.since
        rows = [row for digest, row in world.rows.items() if world.changed_at[digest] > after]
        if world.revision != self.since:
            self.since = world.revision
            self.accounts.changed(Changes(self.since, everything, rows))

    def refuses(self, new: NewKey) -> bool:
        """It has seen that the key is not good any more."""
        if self.since != self.world.revision:
            changed = self.world.changed_at.get(new.row.hash, self.world.revision)
            if self.since > self.world.revision or changed > self.since:
                return False
        row = self.world.rows.get(new.row.hash)
        return row is None or row.revoked_at is not None

    def check(self) -> None:
        for new in self.world.new:
            if self.refuses(new):
                assert self.accounts.known(new.text) is None
        for new, task in list(self.tasks):
            if task.done():
                self.tasks.remove((new, task))
                if task.exception() is None:
                    assert not self.refuses(new)


ANY = st.integers(0, 5)
USES = st.tuples(st.sampled_from(["use", "use, kept late", "ask", "keep, use"]), ANY)
ENDS = st.tuples(
    st.sampled_from(["revoke", "revoke all", "revoke, all look", "put back", "look", "start"]), ANY
)
WAITS = st.tuples(st.just("wait"), st.sampled_from([1, 20, 40, 200, 290, 345]))
PARTS = st.tuples(
    st.sampled_from(["go", "go all", "keep", "make", "back up", "look", "start"]), ANY
)
FEW = st.lists(st.one_of(USES, ENDS, WAITS, PARTS), max_size=2)
# What any flaw needs, with anything between: a row is read, it comes to an end, time passes.
STORY = st.tuples(FEW, USES, FEW, ENDS, FEW, WAITS)
STORIES = st.lists(STORY, min_size=1, max_size=2).map(
    lambda stories: [
        step
        for story in stories
        for part in story
        for step in (part if isinstance(part, list) else [part])
    ]
)


async def play(steps: list[tuple[str, int]]) -> None:
    world = World()
    for step, number in steps:
        new = world.new[
            0 if not 4 <= number <= 5 else number - 3
        ]  # one key has the most adventures
        server = world.servers[number % 2]
        match step:
            case "make":
                if new.row.hash not in world.rows:
                    world.change(new.row)
            case "revoke" | "revoke all" | "revoke, all look":
                for one in world.new if step == "revoke all" else [new]:
                    if one.row.hash in world.rows:
                        world.change(revoked(one))
                if step == "revoke, all look":
                    for other in world.servers:
                        other.look()
            case "ask" | "use" | "use, kept late" | "keep, use":
                while step == "keep, use" and world.late:
                    world.keep_late(0)
                server.ask(new)
                await world.settle()
                if step != "ask":
                    await world.let_all_go()
                while step == "use" and world.late:
                    world.keep_late(0)
            case "look":
                server.look()
            case "start":
                server.start()
                await world.settle()
            case "go" if world.gates:
                await world.let_go(number)
            case "keep" if world.late:
                world.keep_late(number)
            case "go all":
                await world.let_all_go()
            case "wait":
                if number > 1:  # nobody waits so long for the store
                    await world.let_all_go()
                world.now += number
            case "back up":
                world.backup = (dict(world.rows), dict(world.changed_at), world.revision)
            case "put back":
                await world.let_all_go()
                world.put_back()
        for each in world.servers:
            each.check()
    await world.let_all_go()
    while world.late:
        world.keep_late(0)
    for each in world.servers:
        for new in world.new:
            each.ask(new)
        await world.let_all_go()
        each.check()
        each.start()
    await world.settle()


@settings(max_examples=500, deadline=None)
@given(steps=STORIES)
def test_a_revoked_key_is_never_accepted_by_who_knows_or_began_later(
    steps: list[tuple[str, int]],
) -> None:
    asyncio.run(play(steps))


# ── with the real store, watched ──────────────────────────────────────────────────────────────


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    store = await open_store(f"sqlite:///{tmp_path / 'store.db'}")
    yield store
    await store.close()


async def test_a_key_revoked_by_another_process_is_refused_within_a_second(
    store: SqlStore, tmp_path: Path
) -> None:
    new, other = mint("laptop", now=time.time()), mint("other", now=time.time())
    await store.create_key(new.row)
    await store.create_key(other.row)
    accounts = Accounts(store, MemoryCache())
    running = asyncio.create_task(ChangeFeed(store, [accounts.changed]).run())
    await accounts.authenticate(new.text)
    await accounts.authenticate(other.text)

    program = (
        "import asyncio, sys, time\n"
        "from fabric_server.storage.connect import open_store\n"
        "async def main():\n"
        "    store = await open_store(sys.argv[1])\n"
        "    await store.revoke_key(sys.argv[2], time.time())\n"
        "    print(time.monotonic(), flush=True)\n"
        "    await store.close()\n"
        "asyncio.run(main())\n"
    )
    url = f"sqlite:///{tmp_path / 'store.db'}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, url, new.row.id), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(30):
        while accounts.known(new.text) is not None:  # noqa: ASYNC110 - what is measured
            await asyncio.sleep(0.005)
    refused_at = time.monotonic()
    said, _ = await process.communicate()
    assert process.returncode == 0
    assert refused_at - float(said) < 1.0
    assert (await refusal(accounts, new.text)).status == 401
    assert accounts.known(other.text) is not None
    running.cancel()
    await asyncio.wait([running])


async def test_a_change_between_opening_and_watching_is_not_missed(store: SqlStore) -> None:
    new = mint("laptop", now=time.time())
    await store.create_key(new.row)
    accounts = Accounts(store, MemoryCache())
    await accounts.authenticate(new.text)
    await store.revoke_key(new.row.id, time.time())
    watch = ChangeFeed(store, [accounts.changed])
    await watch.sync()
    assert accounts.known(new.text) is None
    assert (await refusal(accounts, new.text)).status == 401


async def test_every_listener_hears_of_each_change_once(store: SqlStore) -> None:
    heard: list[Changes] = []
    watch = ChangeFeed(store, [heard.append, heard.append])
    await watch.sync()
    assert heard == []
    new = mint("laptop", now=NOON)
    await store.create_key(new.row)
    await watch.sync()
    await watch.sync()
    assert [changes.keys for changes in heard] == [[new.row], [new.row]]


async def test_watching_goes_on_when_the_store_comes_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    class Flaky:
        revision_at_open = 1
        away = True

        async def changes(self, since: int) -> Changes:
            if self.away:
                raise StoreError("gone")
            return Changes(2, False)

        async def writable(self) -> bool:
            return True

    heard: list[Changes] = []
    flaky = Flaky()
    watch = ChangeFeed(flaky, [heard.append])
    await watch.sync()
    await watch.sync()
    assert watch.problem == "gone"
    flaky.away = False
    await watch.sync()
    assert watch.problem is None
    assert [changes.revision for changes in heard] == [2]
    assert [r.message for r in caplog.records] == [
        "can't poll the store for changes",
        "the store can be polled again",
    ]


class Slow:
    """A store whose changes come when they are let through."""

    revision_at_open = 1

    async def writable(self) -> bool:
        return True

    def __init__(self) -> None:
        self.looking = self.most = self.looks = 0
        self.revision = 1
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()

    async def changes(self, since: int) -> Changes:
        self.looks += 1
        self.looking += 1
        self.most = max(self.most, self.looking)
        self.entered.set()
        revision = self.revision
        try:
            await self.gate.wait()
        finally:
            self.looking -= 1
        return Changes(revision, False)


async def test_looks_never_overlap_so_that_changes_come_in_order() -> None:
    store = Slow()
    seen: list[int] = []
    watch = ChangeFeed(store, [lambda changes: seen.append(changes.revision)])
    store.revision = 2
    first = asyncio.create_task(watch.sync())
    await store.entered.wait()
    store.revision = 3
    second = asyncio.create_task(watch.sync())
    await asyncio.sleep(0)
    assert store.looks == 1
    store.gate.set()
    await asyncio.gather(first, second)
    assert (seen, store.looks, store.most) == ([2, 3], 2, 1)


async def test_a_store_that_hangs_while_it_is_watched_is_noticed() -> None:
    store = Slow()
    watch = ChangeFeed(store, [], timeout=0.02)
    await asyncio.gather(watch.sync(), watch.sync())  # he who waits for the other gives up, too
    assert watch.problem == "it does not answer"
    assert store.looking == 0
    store.gate.set()
    await watch.sync()
    assert watch.problem is None


async def test_a_watch_looks_at_once_when_told_and_tells_of_its_own_changes() -> None:
    store, notices = Slow(), MemoryCache()
    store.gate.set()
    seen = asyncio.Event()
    watch = ChangeFeed(store, [lambda changes: seen.set()], notices, every=600)
    running = asyncio.create_task(watch.run())
    await store.entered.wait()
    assert not seen.is_set()
    store.revision = 2
    await notices.notify()
    async with asyncio.timeout(10):
        await seen.wait()
    running.cancel()
    await asyncio.wait([running])

    looks = store.looks
    await watch.sync()
    assert store.looks == looks + 1
    async with asyncio.timeout(10):
        await notices.wait_for_notice()


async def test_without_notices_it_looks_now_and_then() -> None:
    class Deaf(MemoryCache):
        async def notify(self) -> None:
            raise BackendError("gone")

    store = Slow()
    store.gate.set()
    seen = asyncio.Event()
    watch = ChangeFeed(store, [lambda changes: seen.set()], Deaf(), every=0.01)
    await watch.sync()  # raises nothing
    running = asyncio.create_task(watch.run())
    store.revision = 2
    async with asyncio.timeout(10):
        await seen.wait()
    running.cancel()
    await asyncio.wait([running])
