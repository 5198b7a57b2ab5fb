"""A store that was put back from a backup learns what was revoked since."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fabric_server.storage.connect import open_store
from fabric_server.storage.memory import MemoryCache
from fabric_server.storage.revocations import Revocations, merge_revocations
from fabric_server.storage.rows import Changes
from fabric_server.storage.store import SqlStore
from runtime.errors import BackendError
from tests.keys import mint_with


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    store = await open_store(f"sqlite:///{tmp_path / 'store.db'}")
    yield store
    await store.close()


async def a_key(store: SqlStore) -> str:
    new = mint_with("user", now=time.time(), account="tests")
    await store.create_key(new.row)
    return new.row.id


async def a_node(store: SqlStore, id: str) -> None:
    async with store.database.transaction() as session:
        await session.execute(
            "INSERT INTO nodes (id, name, public_key_sha256, created_at, epoch, platform, version,"
            " revision) VALUES ($1, '', $2, 1.0, 0, '', '', 1)",
            id,
            bytes(32),
        )


async def test_what_the_cache_remembers_is_revoked_again_and_nothing_else(store: SqlStore) -> None:
    revoked, other = await a_key(store), await a_key(store)
    await a_node(store, "node_1")
    await a_node(store, "node_2")
    cache, at = MemoryCache(), time.time() - 100
    await cache.add_revoked({revoked: at, "node_1": at, "key_of_another_store": at})
    before = await store.revision()
    assert sorted(await merge_revocations(store.database, cache)) == sorted([revoked, "node_1"])
    keys = {key.id: key for key in await store.keys()}
    assert keys[revoked].revoked_at == at
    assert keys[other].usable
    assert {node.id: node.state for node in await store.nodes()} == {
        "node_1": "revoked",
        "node_2": "good",
    }
    # Running servers see it.
    changes = await store.changes(before)
    assert [key.id for key in changes.keys] == [revoked]
    after = await store.revision()
    assert await merge_revocations(store.database, cache) == []
    assert await store.revision() == after


@pytest.mark.parametrize("at", [float("inf"), float("-inf"), float("nan"), -1.0, 1e300])
async def test_an_odd_time_is_taken_for_now(store: SqlStore, at: float) -> None:
    id, cache = await a_key(store), MemoryCache()
    await cache.add_revoked({id: at})
    before = time.time()
    assert await merge_revocations(store.database, cache) == [id]
    (row,) = await store.keys()
    assert row.revoked_at is not None
    assert before <= row.revoked_at <= time.time()


async def test_a_start_tells_the_cache_what_the_store_knows(store: SqlStore) -> None:
    id, cache = await a_key(store), MemoryCache()
    await store.revoke_key(id, 1.0)  # longer ago than anybody would restore
    other = await a_key(store)
    await store.revoke_key(other, time.time() - 5)
    await Revocations(store.database, cache).begin()
    assert set(await cache.revoked()) == {other}


async def test_a_store_that_is_put_back_under_a_running_server_is_mended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    path = tmp_path / "store.db"
    store = await open_store(f"sqlite:///{path}")
    id = await a_key(store)
    await store.close()
    shutil.copy(path, tmp_path / "backup")
    store, cache = await open_store(f"sqlite:///{path}"), MemoryCache()
    revocations = Revocations(store.database, cache)
    await revocations.begin()
    row = await store.revoke_key(id, time.time())
    assert row is not None
    revocations.on_changes(Changes(2, False, [row]))
    running = asyncio.get_running_loop().create_task(revocations.run())
    async with asyncio.timeout(10):
        while id not in await cache.revoked():  # noqa: ASYNC110 - the cache has no event
            await asyncio.sleep(0.01)
    running.cancel()
    await store.close()

    shutil.copy(tmp_path / "backup", path)
    store = await open_store(f"sqlite:///{path}")
    try:
        assert (await store.keys())[0].usable
        later = Revocations(store.database, cache)
        await later.begin()
        assert not (await store.keys())[0].usable
        assert "revoked again" in caplog.text
    finally:
        await store.close()


class Away(MemoryCache):
    """A cache that is away for a while; a real one can't be stopped between two calls."""

    away = True

    async def revoked(self) -> dict[str, float]:
        if self.away:
            raise BackendError("Redis does not answer")
        return await super().revoked()


async def test_a_cache_that_is_away_is_said_once_and_asked_again(
    store: SqlStore, caplog: pytest.LogCaptureFixture
) -> None:
    id, cache = await a_key(store), Away()
    await cache.add_revoked({id: time.time()})
    revocations = Revocations(store.database, cache, retry_seconds=0.01)
    await revocations.begin()
    assert (await store.keys())[0].usable
    running = asyncio.get_running_loop().create_task(revocations.run())
    try:
        async with asyncio.timeout(10):
            await asyncio.sleep(0.05)
            cache.away = False
            while (await store.keys())[0].usable:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
    assert caplog.text.count("can't be compared") == 1
