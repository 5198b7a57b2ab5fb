"""Authentication: memory, cache and store, and what changes meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_server.auth.authenticator import DEFAULT_TIMES, AuthenticatorSettings, KeyAuthenticator
from fabric_server.auth.keys import mint
from fabric_server.dialects.errors import ApiError
from fabric_server.storage.cached_keys import name_of
from fabric_server.storage.memory import MemoryCache
from fabric_server.storage.rows import Changes
from tests.contracts.samples import NOON
from tests.server.auth.fakes import Clock, Forgetful, Keys, NoCache, Rubbish, refusal, revoked

# ── looking up ────────────────────────────────────────────────────────────────────────────────


async def test_a_key_is_asked_of_the_store_once(cache: MemoryCache, clock: Clock) -> None:
    new = mint("laptop", account="acme", now=NOON)
    keys = Keys(new)
    authenticator = KeyAuthenticator(keys, cache, clock=clock)
    assert authenticator.cached(new.text) is None
    key = await authenticator.authenticate(new.text)
    assert (key.id, key.account, key.management) == (new.row.id, "acme", False)
    assert authenticator.cached(new.text) is key
    assert await authenticator.authenticate(new.text) is key
    assert keys.asked == 1


async def test_another_process_finds_it_in_the_cache(cache: MemoryCache, clock: Clock) -> None:
    new = mint("laptop", now=NOON)
    keys = Keys(new)
    first = await KeyAuthenticator(keys, cache, clock=clock).authenticate(new.text)
    assert await KeyAuthenticator(keys, cache, clock=clock).authenticate(new.text) == first
    assert keys.asked == 1


async def test_many_requests_with_a_new_key_cost_one_look_up(
    cache: MemoryCache, clock: Clock
) -> None:
    new = mint("laptop", now=NOON)
    keys = Keys(new)
    keys.gate.clear()
    authenticator = KeyAuthenticator(keys, cache, clock=clock)
    tasks = [asyncio.create_task(authenticator.authenticate(new.text)) for _ in range(50)]
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
    authenticator = KeyAuthenticator(keys, cache, clock=clock)
    tasks = [asyncio.create_task(authenticator.authenticate(new.text)) for _ in range(3)]
    await keys.entered.wait()
    tasks[0].cancel()
    await asyncio.wait([tasks[0]])
    keys.gate.set()
    assert [(await task).id for task in tasks[1:]] == [new.row.id] * 2
    assert keys.asked == 2


async def test_no_key_at_all_is_told_from_a_wrong_one(cache: MemoryCache, clock: Clock) -> None:
    authenticator = KeyAuthenticator(Keys(), cache, clock=clock)
    assert "No API key provided" in (await refusal(authenticator, "")).message
    wrong = await refusal(authenticator, mint("x", now=NOON).text)
    assert (wrong.status, wrong.code) == (401, "invalid_api_key")


@given(token=st.text(max_size=80))
def test_no_text_makes_it_raise_anything_but_a_refusal(token: str) -> None:
    async def check() -> int:
        keys = Keys()
        authenticator = KeyAuthenticator(keys, MemoryCache())
        assert authenticator.cached(token) is None
        assert (await refusal(authenticator, token)).status == 401
        return keys.asked

    assert asyncio.run(check()) == 0  # what can't be a key costs no look-up


@pytest.mark.parametrize("change", [lambda t: t[:-1], lambda t: t + "a", lambda t: t + "\n"])
async def test_a_key_must_match_to_the_last_character(
    cache: MemoryCache, clock: Clock, change: object
) -> None:
    new = mint("laptop", now=NOON)
    authenticator = KeyAuthenticator(Keys(new), cache, clock=clock)
    await authenticator.authenticate(new.text)
    changed = change(new.text)  # type: ignore[operator]
    assert authenticator.cached(changed) is None
    assert (await refusal(authenticator, changed)).status == 401


async def test_a_wrong_key_is_remembered_for_a_while(cache: MemoryCache, clock: Clock) -> None:
    keys, wrong = Keys(), mint("x", now=NOON)
    authenticator = KeyAuthenticator(keys, cache, clock=clock)
    for _ in range(5):
        await refusal(authenticator, wrong.text)
    assert keys.asked == 1
    clock.now += 31
    keys.rows[wrong.row.hash] = wrong.row
    assert (await authenticator.authenticate(wrong.text)).id == wrong.row.id


async def test_wrong_keys_cost_bounded_memory_and_drive_out_no_good_one(clock: Clock) -> None:
    new = mint("laptop", now=NOON)
    cache = MemoryCache(max_values=50, clock=clock)
    settings = AuthenticatorSettings(max_keys=20)
    authenticator = KeyAuthenticator(Keys(new), cache, clock=clock, settings=settings)
    await authenticator.authenticate(new.text)
    for _ in range(300):
        await refusal(authenticator, mint("x", now=NOON).text)
    assert len(cache) == 50
    assert repr(authenticator) == "<KeyAuthenticator keys=1 lookups=0>"
    assert authenticator.cached(new.text) is not None


async def test_the_keys_used_last_are_kept(clock: Clock) -> None:
    new = [mint(f"k{n}", now=NOON) for n in range(4)]
    authenticator = KeyAuthenticator(
        Keys(*new), Forgetful(), clock=clock, settings=AuthenticatorSettings(max_keys=3)
    )
    for one in new[:3]:
        await authenticator.authenticate(one.text)
    authenticator.cached(new[0].text)
    await authenticator.authenticate(new[3].text)
    assert [authenticator.cached(one.text) is not None for one in new] == [True, False, True, True]


async def test_look_ups_beyond_the_limit_wait_for_their_turn_and_known_keys_do_not(
    clock: Clock,
) -> None:
    new, unused = mint("laptop", now=NOON), mint("unused", now=NOON)
    keys = Keys(new, unused)
    authenticator = KeyAuthenticator(
        keys,
        Forgetful(),
        clock=clock,
        settings=AuthenticatorSettings(
            max_lookups=3, times=replace(DEFAULT_TIMES, valid_seconds=10.0)
        ),
    )
    await authenticator.authenticate(new.text)
    keys.gate.clear()
    flood = [
        asyncio.create_task(authenticator.authenticate(mint("x", now=NOON).text)) for _ in range(3)
    ]
    await asyncio.sleep(0)
    waiting = asyncio.create_task(authenticator.authenticate(unused.text))
    await asyncio.sleep(0)
    assert keys.asked == 4
    clock.now += 11  # and would be looked up again by now
    assert (await authenticator.authenticate(new.text)).id == new.row.id
    keys.gate.set()
    await asyncio.wait(flood)
    assert all(isinstance(task.exception(), ApiError) for task in flood)
    assert (await waiting).id == unused.row.id


class Unread(str):
    """A text of which nothing may be read but its length."""

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        raise AssertionError("read")


async def test_what_is_too_long_for_a_key_is_not_even_hashed(clock: Clock) -> None:
    authenticator = KeyAuthenticator(Keys(), Forgetful(), clock=clock)
    assert authenticator.cached(Unread("sk-fab-" + "x" * 30_000)) is None


async def test_a_key_ends_when_it_expires(cache: MemoryCache, clock: Clock) -> None:
    new = mint("brief", now=NOON, expires_at=NOON + 60)
    authenticator = KeyAuthenticator(Keys(new), cache, clock=clock)
    await authenticator.authenticate(new.text)
    clock.now = NOON + 59.9
    assert authenticator.cached(new.text) is not None
    clock.now = NOON + 60
    assert authenticator.cached(new.text) is None
    assert (await refusal(authenticator, new.text)).status == 401
    assert (await refusal(KeyAuthenticator(Keys(new), cache, clock=clock), new.text)).status == 401


# ── what changes meanwhile ────────────────────────────────────────────────────────────────────


async def test_a_revoked_key_is_refused_when_told(cache: MemoryCache, clock: Clock) -> None:
    new, other = mint("laptop", now=NOON), mint("other", now=NOON)
    keys = Keys(new, other)
    authenticator = KeyAuthenticator(keys, cache, clock=clock)
    await authenticator.authenticate(new.text)
    await authenticator.authenticate(other.text)
    keys.rows[new.row.hash] = revoked(new)

    authenticator.on_changes(Changes(2, False, [revoked(new)]))
    assert authenticator.cached(new.text) is None
    assert (await refusal(authenticator, new.text)).status == 401
    assert authenticator.cached(other.text) is not None
    clock.now += 1000  # long after everything was forgotten
    assert (await refusal(authenticator, new.text)).status == 401


async def test_an_older_row_in_the_cache_does_not_bring_a_revoked_key_back(
    cache: MemoryCache, clock: Clock
) -> None:
    new = mint("laptop", now=NOON)
    slow = KeyAuthenticator(Keys(new), cache, clock=clock)
    authenticator = KeyAuthenticator(Keys(new), cache, clock=clock)
    authenticator.on_changes(Changes(2, False, [revoked(new)]))
    await slow.authenticate(new.text)  # another server, a moment behind, fills the cache
    assert (await refusal(authenticator, new.text)).status == 401


async def test_a_look_up_overtaken_by_a_revocation_does_not_count(clock: Clock) -> None:
    new = mint("laptop", now=NOON)
    keys = Keys(new)
    keys.gate.clear()
    authenticator = KeyAuthenticator(keys, Forgetful(), clock=clock)
    task = asyncio.create_task(authenticator.authenticate(new.text))
    await keys.entered.wait()
    authenticator.on_changes(Changes(2, False, [revoked(new)]))
    keys.gate.set()
    await asyncio.wait([task])
    assert isinstance(task.exception(), ApiError)
    assert authenticator.cached(new.text) is None


async def test_a_store_put_back_from_a_backup_is_asked_anew(
    cache: MemoryCache, clock: Clock
) -> None:
    new, gone = mint("laptop", now=NOON), mint("gone", now=NOON)
    keys = Keys(new, gone)
    authenticator = KeyAuthenticator(keys, cache, clock=clock)
    await authenticator.authenticate(new.text)
    await authenticator.authenticate(gone.text)
    del keys.rows[gone.row.hash]
    authenticator.on_changes(Changes(1, True, [new.row]))
    assert authenticator.cached(new.text) is None
    assert (await authenticator.authenticate(new.text)).id == new.row.id
    assert (await refusal(authenticator, gone.text)).status == 401


async def test_a_look_up_begun_before_everything_changed_is_done_again(clock: Clock) -> None:
    gone = mint("gone", now=NOON)
    keys = Keys(gone)
    keys.gate.clear()
    authenticator = KeyAuthenticator(keys, Forgetful(), clock=clock)
    task = asyncio.create_task(authenticator.authenticate(gone.text))
    await keys.entered.wait()
    keys.rows.clear()
    authenticator.clear()
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
    authenticator = KeyAuthenticator(keys, cache, clock=clock)
    await authenticator.authenticate(new.text)
    keys.away = True
    clock.now += 10_000
    assert (await authenticator.authenticate(new.text)).id == new.row.id
    assert authenticator.cached(new.text) is not None  # without asking again for a while
    away = await refusal(authenticator, mint("x", now=NOON).text)
    assert (away.status, away.code, away.retry_after) == (503, "keys_unavailable", 5.0)

    keys.away = False
    keys.rows[new.row.hash] = revoked(new)
    clock.now += 31
    assert (await refusal(authenticator, new.text)).status == 401


async def test_without_the_store_an_expired_key_is_still_expired(clock: Clock) -> None:
    new = mint("brief", now=NOON, expires_at=NOON + 60)
    keys = Keys(new)
    authenticator = KeyAuthenticator(keys, Forgetful(), clock=clock)
    await authenticator.authenticate(new.text)
    keys.away = True
    clock.now += 61
    assert (await refusal(authenticator, new.text)).status in (401, 503)
    assert authenticator.cached(new.text) is None


async def test_a_store_that_does_not_answer_delays_one_request_and_no_other(clock: Clock) -> None:
    new = mint("laptop", now=NOON)
    keys = Keys(new)
    authenticator = KeyAuthenticator(
        keys,
        Forgetful(),
        clock=clock,
        settings=AuthenticatorSettings(times=replace(DEFAULT_TIMES, store_seconds=0.02)),
    )
    await authenticator.authenticate(new.text)
    clock.now += 301
    keys.gate.clear()
    keys.entered.clear()
    first = asyncio.create_task(authenticator.authenticate(new.text))
    await keys.entered.wait()
    assert authenticator.cached(new.text) is not None
    assert not first.done()
    assert (await first).id == new.row.id
    assert (await refusal(authenticator, mint("x", now=NOON).text)).status == 503


@pytest.mark.parametrize(
    "cache",
    [NoCache(), Rubbish(b""), Rubbish(b"\xc1"), Rubbish(b"\x80")],
    ids=["away", "empty", "no msgpack", "no key"],
)
async def test_without_a_usable_cache_the_store_is_asked(
    clock: Clock, cache: NoCache | Rubbish
) -> None:
    new = mint("laptop", now=NOON)
    authenticator = KeyAuthenticator(Keys(new), cache, clock=clock)
    assert (await authenticator.authenticate(new.text)).id == new.row.id
    assert (await refusal(authenticator, mint("x", now=NOON).text)).status == 401


async def test_another_key_in_the_cache_is_not_believed(clock: Clock) -> None:
    good, evil = mint("good", now=NOON), mint("evil", now=NOON)
    cache = MemoryCache(clock=clock)
    await KeyAuthenticator(Keys(good), cache, clock=clock).authenticate(good.text)
    value = await cache.get(name_of(good.row.hash))
    assert value is not None
    assert (
        await refusal(KeyAuthenticator(Keys(), Rubbish(value), clock=clock), evil.text)
    ).status == 401
