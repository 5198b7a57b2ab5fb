"""What every cache does."""

from __future__ import annotations

import asyncio

from fabric_server.backends import Cache
from fabric_server.backends.memory import MemoryCache


async def test_what_was_set_can_be_got(cache: Cache) -> None:
    assert await cache.get("name") is None
    await cache.set("name", b"value", 60)
    assert await cache.get("name") == b"value"
    assert await cache.get("other") is None


async def test_a_value_set_again_takes_the_place_of_the_first(cache: Cache) -> None:
    await cache.set("name", b"old", 60)
    await cache.set("name", b"", 60)
    assert await cache.get("name") == b""


async def test_a_value_is_gone_after_its_time(cache: Cache) -> None:
    await cache.set("brief", b"value", 0.02)
    await cache.set("long", b"value", 60)
    async with asyncio.timeout(5):
        while await cache.get("brief") is not None:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.005)
    assert await cache.get("long") == b"value"


async def test_memory_holds_a_bounded_number_of_values() -> None:
    now = [100.0]
    cache = MemoryCache(most=3, clock=lambda: now[0])
    for name in ("a", "b", "c"):
        await cache.set(name, b"1", 10)
    await cache.set("a", b"2", 20)  # set again: now the youngest
    await cache.set("d", b"1", 10)
    assert [await cache.get(name) for name in "abcd"] == [b"2", None, b"1", b"1"]

    now[0] += 10
    assert [await cache.get(name) for name in "acd"] == [b"2", None, None]
    assert len(cache) == 1
