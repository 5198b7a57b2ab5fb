"""The change feed: every change once, in order, and after failures."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fabric_server.auth.keys import mint
from fabric_server.storage.change_feed import ChangeFeed
from fabric_server.storage.connect import open_store
from fabric_server.storage.memory import MemoryCache
from fabric_server.storage.rows import Changes
from fabric_server.storage.store import SqlStore
from runtime.errors import BackendError, StoreError
from tests.contracts.samples import NOON


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    store = await open_store(f"sqlite:///{tmp_path / 'store.db'}")
    yield store
    await store.close()


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
        "the store is away",
        "the store is back",
    ]


async def test_a_store_that_can_only_be_read_is_an_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    class Replica:
        revision_at_open = 1
        primary = False

        async def changes(self, since: int) -> Changes:
            return Changes(1, False)

        async def writable(self) -> bool:
            return self.primary

    replica = Replica()
    watch = ChangeFeed(replica, [])
    for primary in (False, False, True, True):
        replica.primary = primary
        await watch.sync()
        assert watch.read_only is not primary
    assert [r.message for r in caplog.records] == ["the store is read-only", "the store is back"]
    assert "read-only" in caplog.records[0].__dict__["reason"]


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
