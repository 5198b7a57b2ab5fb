"""Open a store, a cache or a bus by its URL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from fabric_server.storage.interfaces import Bus, Cache
from fabric_server.storage.memory import MemoryBus, MemoryCache
from fabric_server.storage.spool.spool import Spool, SpoolInUse
from fabric_server.storage.store import SqlStore
from ledger.batch_writer import Sink
from runtime.errors import BackendError
from runtime.extras import MissingExtra, needed_by
from runtime.shown import without_password
from sql.connect import open_database

BUSES = "memory://, spool:// and kafka://host:port,…"
MAX_SPOOLS = 256
"""Spools of one directory: each worker has one, and so has each server that still drains."""


async def open_store(
    url: str,
    *,
    setting: str = "store",
    clock: Callable[[], float] = time.time,
    create: bool = True,
) -> SqlStore:
    """Open the store at ``url`` and bring its schema up to date: see ``sql.connect``.

    Without ``create``, a store that no server has made is ``NoStore``.
    """
    return await SqlStore.open(await open_database(url, setting=setting, create=create), clock)


async def open_cache(url: str, *, setting: str = "cache") -> Cache:
    """Open the cache at ``url``: ``memory://``, or a Redis URL (see ``storage.redis.parse``).

    Raises ``BackendError``, ``Unreachable`` when nothing answers there, ``MissingExtra`` without
    Redis's client; the text names ``setting``.
    """
    if url == "memory://":
        return MemoryCache()
    if not url.startswith(("redis:", "rediss:", "redis+", "rediss+")):
        raise _unknown(url, setting, "memory:// and redis://host")
    try:
        with needed_by("Redis"):  # imported here also because it costs 0.1 s
            from fabric_server.storage.redis import RedisCache

        return await RedisCache.open(url)
    except ValueError as error:
        raise BackendError(f"{setting} = '{without_password(url)}': {error}") from error
    except BackendError as error:
        raise type(error)(f"{setting}: {error}") from error


class OpenBus(NamedTuple):
    """A bus, and what follows from its kind."""

    bus: Bus
    """Where records are published, and from where the server's own batch writer takes them."""
    sink: Sink | None
    """Where that batch writer writes them; None is the store."""
    close: Callable[[], Awaitable[None]]
    spool: Path | None = None
    """The directory where records wait meanwhile."""


async def open_bus(
    url: str, *, directory: Path, limit: int, setting: str = "bus", beside_others: bool = False
) -> OpenBus:
    """Open the bus at ``url``: ``memory://``, ``spool://`` or ``kafka://host:port,…``.

    With the latter two, records wait in files in ``directory``, up to ``limit`` bytes, until the
    store or Kafka has them.  With ``beside_others`` other processes may use that directory; then
    its name gets a number, ``-2`` and so on.  Raises ``BackendError``, ``Unreachable`` when
    nothing answers there, ``MissingExtra`` without Kafka's client; the text names ``setting``.
    """
    if url == "memory://":
        memory = MemoryBus()
        return OpenBus(memory, None, memory.close)
    max_spools = MAX_SPOOLS if beside_others else 1
    if url == "spool://":
        spool, directory = await _open_spool(directory, limit, max_spools)
        return OpenBus(spool, None, spool.close, directory)
    if not url.startswith("kafka://"):
        raise _unknown(url, setting, BUSES)
    try:
        with needed_by("Kafka"):
            from fabric_server.storage.kafka import KafkaSink
    except MissingExtra as error:
        raise MissingExtra(f"{setting}: {error}") from error
    kafka = await KafkaSink.open(url, setting=setting)
    try:
        spool, directory = await _open_spool(directory, limit, max_spools)
    except BaseException:
        await kafka.close()
        raise

    async def close() -> None:
        await spool.close()
        await kafka.close()

    return OpenBus(spool, kafka, close, directory)


async def _open_spool(directory: Path, limit: int, max_spools: int) -> tuple[Spool, Path]:
    for number in range(1, max_spools + 1):
        path = directory if number == 1 else directory.with_name(f"{directory.name}-{number}")
        try:
            return await asyncio.to_thread(Spool.open, path, limit=limit), path
        except SpoolInUse:
            if number == max_spools:
                raise
    raise AssertionError("the last attempt returns or raises")


def _unknown(url: str, setting: str, known: str) -> BackendError:
    return BackendError(f"{setting} = '{without_password(url)}': this version knows only {known}")
