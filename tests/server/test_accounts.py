"""Whose key it is: quickly when known, rightly when revoked, and without a store."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.errors import BackendError, StoreError
from fabric_server.accounts import Accounts, Key, NewKey, mint
from fabric_server.backends import open_store
from fabric_server.backends.memory import MemoryCache
from fabric_server.backends.rows import Changes, KeyRow
from fabric_server.backends.store import SqlStore
from fabric_server.backends.watch import Watch
from fabric_server.refusals import Refusal
from tests.contracts.samples import NOON


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


class Keys:
    """A store that counts, and that can be slow or away."""

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


async def refusal(accounts: Accounts, token: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
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
    assert "No API key was given" in (await refusal(accounts, "")).message
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
    cache = MemoryCache(most=50, clock=clock)
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
    assert all(isinstance(task.exception(), Refusal) for task in flood)


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
    assert isinstance(task.exception(), Refusal)
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
    assert isinstance(task.exception(), Refusal)
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
    row = await cache.get(f"key:0:{good.row.hash.hex()}")
    assert row is not None
    assert (await refusal(Accounts(Keys(), Rubbish(row), clock=clock), evil.text)).status == 401


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
    watching = asyncio.create_task(Watch(store, [accounts.changed]).run())
    await accounts.authenticate(new.text)
    await accounts.authenticate(other.text)

    program = (
        "import asyncio, sys, time\n"
        "from fabric_server.backends import open_store\n"
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
    watching.cancel()
    await asyncio.wait([watching])


async def test_a_change_between_opening_and_watching_is_not_missed(store: SqlStore) -> None:
    new = mint("laptop", now=time.time())
    await store.create_key(new.row)
    accounts = Accounts(store, MemoryCache())
    await accounts.authenticate(new.text)
    await store.revoke_key(new.row.id, time.time())
    watch = Watch(store, [accounts.changed])
    await watch.look()
    assert accounts.known(new.text) is None
    assert (await refusal(accounts, new.text)).status == 401


async def test_every_listener_hears_of_each_change_once(store: SqlStore) -> None:
    heard: list[Changes] = []
    watch = Watch(store, [heard.append, heard.append])
    await watch.look()
    assert heard == []
    new = mint("laptop", now=NOON)
    await store.create_key(new.row)
    await watch.look()
    await watch.look()
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

    heard: list[Changes] = []
    flaky = Flaky()
    watch = Watch(flaky, [heard.append])
    await watch.look()
    await watch.look()
    assert watch.problem == "gone"
    flaky.away = False
    await watch.look()
    assert watch.problem is None
    assert [changes.revision for changes in heard] == [2]
    assert [r.message for r in caplog.records] == [
        "the store can't be watched",
        "the store is watched again",
    ]
