"""What every cache does."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

import pytest

from fabric_server.storage.connect import open_cache
from fabric_server.storage.interfaces import Cache
from fabric_server.storage.memory import MemoryCache
from fabric_server.storage.redis import RedisCache


@pytest.fixture
def name() -> str:
    """Nobody else's: a cache may be shared."""
    return f"test:{uuid4().hex}"


async def told(cache: Cache) -> None:
    """Fails when nobody is heard for long."""
    async with asyncio.timeout(10):
        await cache.wait_for_notice()


async def settled(cache: Cache) -> None:
    """It listens, and what may be heard because it began to has been heard."""
    await cache.notify()
    await told(cache)
    await silent(cache)


async def silent(cache: Cache) -> None:
    try:
        while True:
            async with asyncio.timeout(0.05):
                await cache.wait_for_notice()
    except TimeoutError:
        pass


async def test_what_was_set_can_be_got(cache: Cache, name: str) -> None:
    assert await cache.get(name) is None
    await cache.set(name, b"value", 60)
    assert await cache.get(name) == b"value"
    assert await cache.get(name + "other") is None


async def test_a_value_set_again_takes_the_place_of_the_first(cache: Cache, name: str) -> None:
    await cache.set(name, b"old", 60)
    await cache.set(name, b"", 60)
    assert await cache.get(name) == b""


async def test_values_are_bytes_of_any_kind_and_many(cache: Cache, name: str) -> None:
    values = {f"{name}:{n}": bytes(range(256)) * n for n in range(100)}
    await asyncio.gather(*(cache.set(one, value, 60) for one, value in values.items()))
    found = await asyncio.gather(*map(cache.get, values))
    assert found == list(values.values())


async def test_a_value_is_gone_after_its_time(cache: Cache, name: str) -> None:
    await cache.set(name + "brief", b"value", 0.02)
    await cache.set(name + "long", b"value", 60)
    async with asyncio.timeout(5):
        while await cache.get(name + "brief") is not None:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.005)
    assert await cache.get(name + "long") == b"value"


async def test_who_tells_is_heard_once(cache: Cache) -> None:
    await settled(cache)
    hearing = asyncio.create_task(cache.wait_for_notice())
    await asyncio.sleep(0)
    assert not hearing.done()
    await cache.notify()
    async with asyncio.timeout(10):
        await hearing
    again = asyncio.create_task(cache.wait_for_notice())
    assert await asyncio.wait([again], timeout=0.05) == (set(), {again})
    again.cancel()
    await asyncio.wait([again])


async def test_what_is_told_while_nobody_hears_is_heard_afterwards(cache: Cache) -> None:
    await settled(cache)
    hearing = asyncio.create_task(cache.wait_for_notice())
    await asyncio.sleep(0)
    hearing.cancel()  # as a watch does every half second
    await asyncio.wait([hearing])
    await cache.notify()
    await told(cache)


async def test_all_who_share_a_cache_find_its_values_and_hear_each_other(
    shared_cache_url: str, name: str
) -> None:
    one, other = [await open_cache(shared_cache_url) for _ in range(2)]
    await one.set(name, b"value", 60)
    assert await other.get(name) == b"value"
    for cache in (one, other):
        await settled(cache)
    await silent(one)
    hearing = [asyncio.create_task(cache.wait_for_notice()) for cache in (one, other)]
    await other.notify()
    async with asyncio.timeout(10):
        await asyncio.gather(*hearing)
    await one.close()
    await other.close()


async def test_memory_holds_a_bounded_number_of_values() -> None:
    now = [100.0]
    cache = MemoryCache(max_values=3, clock=lambda: now[0])
    for name in ("a", "b", "c"):
        await cache.set(name, b"1", 10)
    await cache.set("a", b"2", 20)  # set again: now the youngest
    await cache.set("d", b"1", 10)
    assert [await cache.get(name) for name in "abcd"] == [b"2", None, b"1", b"1"]

    now[0] += 10
    assert [await cache.get(name) for name in "acd"] == [b"2", None, None]
    assert len(cache) == 1


async def test_revocations_are_remembered_and_added_to(cache: Cache, name: str) -> None:
    now = time.time()
    await cache.add_revoked({f"{name}:1": now - 2, f"{name}:2": now - 1.5})
    await cache.add_revoked({f"{name}:3": now, f"{name}:1": now - 2})
    found = {id: at for id, at in (await cache.revoked()).items() if id.startswith(name)}
    assert found == pytest.approx({f"{name}:1": now - 2, f"{name}:2": now - 1.5, f"{name}:3": now})


async def test_only_the_newest_revocations_are_remembered(
    cache: MemoryCache | RedisCache, name: str
) -> None:
    cache.max_revoked = 1_000  # instead of 20,000, which take seconds
    later = time.time() + 1000
    await cache.add_revoked({f"{name}:old": 1.0})
    await cache.add_revoked({f"{name}:{number}": later + number for number in range(1_300)})
    found = await cache.revoked()
    assert set(found) == {f"{name}:{number}" for number in range(300, 1_300)}
