"""Keys and accounts that are disabled and enabled: refused with the reason, and good again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fabric_server.auth.authenticator import KeyAuthenticator
from fabric_server.auth.keys import NewKey, mint, new_account
from fabric_server.dialects.errors import ApiError
from fabric_server.storage.change_feed import ChangeFeed
from fabric_server.storage.connect import open_store
from fabric_server.storage.memory import MemoryCache
from fabric_server.storage.rows import Changes, KeyRow
from fabric_server.storage.store import SqlStore
from tests.contracts.samples import NOON, key

GOOD = (200, "")
DISABLED = (401, "invalid_api_key")
ACCOUNT_DISABLED = (401, "account_deactivated")


class Keys:
    """A store whose answers can be held back."""

    revision_at_open = 1

    def __init__(self, *rows: KeyRow) -> None:
        self.rows = {row.hash: row for row in rows}
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def key_by_hash(self, digest: bytes) -> KeyRow | None:
        self.entered.set()
        row = self.rows.get(digest)
        await self.gate.wait()
        return row


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    store = await open_store(f"sqlite:///{tmp_path / 'store.db'}")
    yield store
    await store.close()


async def told(authenticator: KeyAuthenticator, new: NewKey) -> tuple[int, str]:
    """What a user with this key hears, whether this process knows it or not."""
    known = authenticator.cached(new.text)
    try:
        found = await authenticator.authenticate(new.text)
    except ApiError as refusal:
        assert known is None
        return refusal.status, refusal.code
    assert known in (None, found)
    return GOOD


# ── rows ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "state", "usable"),
    [
        ({}, "good", True),
        ({"expires_at": NOON + 2}, "good", True),
        ({"expires_at": NOON + 1}, "expired", True),
        ({"enabled": False}, "disabled", False),
        ({"account_enabled": False}, "account_disabled", False),
        ({"account_enabled": False, "enabled": False}, "disabled", False),
        ({"account_enabled": False, "enabled": False, "expires_at": NOON}, "expired", False),
        ({"enabled": False, "expires_at": NOON, "revoked_at": NOON}, "revoked", False),
    ],
)
def test_a_state_names_what_lasts_longest(
    changes: dict[str, Any], state: str, usable: bool
) -> None:
    row = key(**changes)
    assert (row.state(NOON + 1), row.usable) == (state, usable)


@pytest.mark.parametrize(
    ("name", "note", "words"),
    [
        ("", "", "name must have 1 to 256"),
        ("  ", "", "name must have 1 to 256"),
        ("x" * 257, "", "name must have 1 to 256"),
        ("a\x00b", "", "name must have 1 to 256 printable"),
        ("a\u202eb", "", "printable"),  # turns what follows around
        ("..", "", "can't be “..”"),
        ("acme", "x" * 1001, "note may have at most 1000"),
        ("acme", "two\nlines", "note may have at most 1000 printable"),
    ],
)
def test_accounts_that_make_no_sense_are_not_made(name: str, note: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        new_account(name, now=NOON, note=note)


@pytest.mark.parametrize("name", ["acme", "Big {Co}/Lab & Söhne", "x" * 256, "...", "a%2Fb"])
def test_accounts_have_the_names_that_their_keys_may_give_them(name: str) -> None:
    assert new_account(name, now=NOON).name == name
    assert mint("laptop", account=name, now=NOON).row.account == name


def test_a_key_belongs_to_no_account_that_could_not_be_made() -> None:
    with pytest.raises(ValueError, match=r"a key's account can't be “\.”"):
        mint("laptop", account=".", now=NOON)


# ── what changes ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("flag", "refusal"), [("enabled", DISABLED), ("account_enabled", ACCOUNT_DISABLED)]
)
async def test_what_is_disabled_is_refused_when_told_and_good_when_told_again(
    clock: Clock, flag: str, refusal: tuple[int, str]
) -> None:
    new, other = mint("laptop", now=NOON), mint("other", now=NOON)
    keys, cache = Keys(new.row, other.row), MemoryCache(clock=clock)
    authenticator = KeyAuthenticator(keys, cache, clock=clock)
    assert await told(authenticator, new) == await told(authenticator, other) == GOOD

    keys.rows[new.row.hash] = off = replace(new.row, **{flag: False})
    authenticator.on_changes(Changes(2, False, [off]))
    assert await told(authenticator, new) == refusal
    assert await told(authenticator, other) == GOOD
    clock.now += 1000  # long after everything was forgotten
    assert await told(authenticator, new) == refusal

    keys.rows[new.row.hash] = new.row
    authenticator.on_changes(Changes(3, False, [new.row]))
    assert await told(authenticator, new) == GOOD
    assert authenticator.cached(new.text) is not None
    clock.now += 1000
    assert await told(authenticator, new) == GOOD


async def test_a_refusal_says_what_to_do_and_never_the_key(clock: Clock) -> None:
    new = mint("laptop", now=NOON)
    for changes in ({"enabled": False}, {"account_enabled": False}):
        row = replace(new.row, **changes)
        authenticator = KeyAuthenticator(Keys(row), MemoryCache(clock=clock), clock=clock)
        with pytest.raises(ApiError, match="Ask whoever issued") as caught:
            await authenticator.authenticate(new.text)
        assert new.text not in caught.value.message
        assert caught.value.type == "authentication_error"


async def test_one_that_was_enabled_does_not_live_longer_than_it_should(clock: Clock) -> None:
    new = mint("laptop", now=NOON, expires_at=NOON + 60)
    authenticator = KeyAuthenticator(Keys(new.row), MemoryCache(clock=clock), clock=clock)
    authenticator.on_changes(Changes(2, False, [replace(new.row, enabled=False)]))
    authenticator.on_changes(Changes(3, False, [new.row]))
    assert await told(authenticator, new) == GOOD
    clock.now += 60
    assert await told(authenticator, new) == (401, "invalid_api_key")


@pytest.mark.parametrize("enabled", [True, False])
async def test_a_look_up_overtaken_by_a_change_does_not_count(clock: Clock, enabled: bool) -> None:
    new = mint("laptop", now=NOON)
    before = replace(new.row, enabled=not enabled)
    keys = Keys(before)
    keys.gate.clear()
    authenticator = KeyAuthenticator(keys, MemoryCache(clock=clock), clock=clock)
    asking = asyncio.create_task(told(authenticator, new))
    await keys.entered.wait()
    authenticator.on_changes(Changes(2, False, [replace(before, enabled=enabled)]))
    keys.gate.set()
    assert await asking == (GOOD if enabled else DISABLED)
    assert await told(authenticator, new) == (GOOD if enabled else DISABLED)


@pytest.mark.parametrize("enabled", [True, False])
async def test_an_older_row_in_a_shared_cache_changes_nothing(clock: Clock, enabled: bool) -> None:
    new = mint("laptop", now=NOON)
    before = replace(new.row, account_enabled=not enabled)
    cache = MemoryCache(clock=clock)
    slow = KeyAuthenticator(Keys(before), cache, clock=clock)
    authenticator = KeyAuthenticator(Keys(before), cache, clock=clock)
    authenticator.on_changes(Changes(2, False, [replace(before, account_enabled=enabled)]))
    await told(slow, new)  # another server, a moment behind, fills the cache
    assert await told(authenticator, new) == (GOOD if enabled else ACCOUNT_DISABLED)


# ── what runs ─────────────────────────────────────────────────────────────────────────────────


async def test_what_runs_on_a_key_is_cut_when_it_is_taken_away(clock: Clock) -> None:
    good = mint("good", now=NOON).row
    old = mint("old", now=NOON, expires_at=NOON + 1).row
    ways: dict[str, dict[str, Any]] = {
        "revoked": {"revoked_at": NOON},
        "disabled": {"enabled": False},
        "account disabled": {"account_enabled": False},
    }
    gone = [replace(mint(name, now=NOON).row, **changes) for name, changes in ways.items()]
    clock.now += 10
    authenticator = KeyAuthenticator(Keys(), MemoryCache(clock=clock), clock=clock)
    authenticator.on_changes(Changes(2, False, gone))  # nobody listens yet
    cut: list[str] = []
    authenticator.on_withdrawn = cut.append
    authenticator.on_changes(Changes(3, False, [good, old, *gone]))
    assert cut == [row.id for row in gone]
    # A store put back from a backup: whoever is disabled there is cut, too.
    authenticator.on_changes(Changes(1, True, [good, *gone]))
    assert cut == [row.id for row in gone] * 2


async def test_who_is_told_to_cut_finds_the_key_refused_already(clock: Clock) -> None:
    rows = [mint(name, now=NOON) for name in "ab"]
    authenticator = KeyAuthenticator(
        Keys(*(new.row for new in rows)), MemoryCache(clock=clock), clock=clock
    )
    for new in rows:
        await authenticator.authenticate(new.text)
    known: list[object] = []
    authenticator.on_withdrawn = lambda id: known.extend(
        authenticator.cached(new.text) for new in rows
    )
    off = [replace(new.row, account_enabled=False) for new in rows]
    authenticator.on_changes(Changes(2, False, off))
    assert known == [None] * 4


# ── with the real store, watched ──────────────────────────────────────────────────────────────


async def test_an_account_is_disabled_and_enabled_under_servers_that_run(store: SqlStore) -> None:
    mine = [mint(name, account="acme", now=time.time()) for name in "abc"]
    other = mint("other", now=time.time())
    for new in (*mine, other):
        await store.create_key(new.row)
    await store.set_key_enabled(mine[2].row.id, False)
    cache = MemoryCache()
    servers = [KeyAuthenticator(store, cache) for _ in range(2)]
    cuts: list[str] = []
    servers[0].on_withdrawn = cuts.append
    watch = ChangeFeed(store, [one.on_changes for one in servers])
    await watch.sync()
    cuts.clear()

    async def all_told() -> list[list[tuple[int, str]]]:
        return [[await told(one, new) for new in (*mine, other)] for one in servers]

    assert await all_told() == [[GOOD, GOOD, DISABLED, GOOD]] * 2
    await store.set_account_enabled("acme", False)
    await watch.sync()
    assert await all_told() == [[ACCOUNT_DISABLED, ACCOUNT_DISABLED, DISABLED, GOOD]] * 2
    assert sorted(cuts) == sorted(new.row.id for new in mine)
    # One that begins now, and one that has never seen the key, hear the same.
    assert await told(KeyAuthenticator(store, cache), mine[0]) == ACCOUNT_DISABLED

    await store.set_key_enabled(mine[2].row.id, True)
    await watch.sync()
    assert await told(servers[1], mine[2]) == ACCOUNT_DISABLED
    await store.set_account_enabled("acme", True)
    await watch.sync()
    assert await all_told() == [[GOOD] * 4] * 2


async def test_without_the_store_a_disabled_key_stays_refused(store: SqlStore) -> None:
    new = mint("laptop", now=time.time())
    await store.create_key(new.row)
    authenticator = KeyAuthenticator(store, MemoryCache())
    watch = ChangeFeed(store, [authenticator.on_changes])
    assert await told(authenticator, new) == GOOD
    await store.set_account_enabled("default", False)
    await watch.sync()
    await store.close()
    assert await told(authenticator, new) == ACCOUNT_DISABLED
