"""What is remembered, remembered briefly, and told: one interface each, chosen by URL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from msgspec import Struct

from fabric_server.storage.kafka import KafkaSink
from fabric_server.storage.memory import MemoryBus, MemoryCache
from fabric_server.storage.spool import Spool, SpoolInUse
from fabric_server.storage.store import SqlStore
from ledger.batch_writer import Sink, Source
from runtime.errors import BackendError
from runtime.shown import without_password
from sql.connect import open_database


class Cache(Protocol):
    """Remembers bytes for a while, perhaps shorter, and brings notices to those who share it.

    Raises ``BackendError`` when it can't.
    """

    async def get(self, name: str) -> bytes | None: ...

    async def set(self, name: str, value: bytes, seconds: float) -> None: ...

    async def tell(self) -> None:
        """All processes that share this cache: look at the store now.  May be lost."""

    async def heard(self) -> None:
        """Returns when somebody has told since the last call, or may have.  Raises nothing, and
        waits while the cache is away.  For one caller at a time; may be cancelled."""

    async def close(self) -> None: ...


class Bus(Source, Protocol):
    """Takes records from whoever has no time to wait, to ``consumer.BatchWriter``."""

    @property
    def waiting(self) -> Mapping[str, int]:
        """Records published and not yet taken, by topic."""

    @property
    def dropped(self) -> Mapping[str, int]:
        """Records lost for want of room since the start, by topic."""

    @property
    def full(self) -> bool:
        """No more requests should be let in: their ledger entries could not be held."""

    @property
    def problem(self) -> str | None:
        """Why records can't be held as they should be, in one line."""

    def publish(self, topic: str, record: Struct) -> None:
        """Never blocks and never raises; topics are named in ``ledger.records``."""

    async def close(self) -> None: ...


BUSES = "memory://, spool:// and kafka://host:port,…"


async def open_store(
    url: str, *, setting: str = "store", clock: Callable[[], float] = time.time
) -> SqlStore:
    """The store at ``url``, its schema brought up to date: see ``sql.connect.open_database``."""
    return await SqlStore.open(await open_database(url, setting=setting), clock)


async def open_cache(url: str, *, setting: str = "cache") -> Cache:
    """The cache at ``url``: ``memory://``, or a Redis, by ``backends.redis.parse``.

    Raises ``BackendError``, ``Unreachable`` when nobody answers there; the text names ``setting``.
    """
    if url == "memory://":
        return MemoryCache()
    if not url.startswith(("redis:", "rediss:", "redis+", "rediss+")):
        raise _unknown(url, setting, "memory:// and redis://host")
    from fabric_server.storage.redis import RedisCache  # costs 0.1 s, which most commands can save

    try:
        return await RedisCache.open(url)
    except ValueError as error:
        raise BackendError(f"{setting} = '{without_password(url)}': {error}") from error
    except BackendError as error:
        raise type(error)(f"{setting}: {error}") from error


class Way(NamedTuple):
    """How records leave the server."""

    bus: Bus
    """Where they are published, and taken from again by the server's own worker."""
    onward: Sink | None
    """Where that worker takes them; None is the store."""
    close: Callable[[], Awaitable[None]]
    directory: Path | None = None
    """Where they wait meanwhile."""


MAX_SPOOLS = 8
"""Of servers that have been taken over, each from the one before, and are still draining."""


async def open_bus(
    url: str, *, directory: Path, limit: int, setting: str = "bus", beside: bool = False
) -> Way:
    """The bus at ``url``: ``memory://``, ``spool://`` or ``kafka://host:port,…``.

    With the latter two, records wait in files in ``directory``, up to ``limit`` bytes, until the
    store or Kafka has them; with ``beside``, in one of the same name with a number when another
    process has that.  Raises ``BackendError``, ``Unreachable`` when nobody answers there.
    """
    most = MAX_SPOOLS if beside else 1
    if url == "memory://":
        memory = MemoryBus()
        return Way(memory, None, memory.close)
    if url == "spool://":
        spool, directory = await _open_spool(directory, limit, most)
        return Way(spool, None, spool.close, directory)
    if not url.startswith("kafka://"):
        raise _unknown(url, setting, BUSES)
    kafka = await KafkaSink.open(url, setting=setting)
    try:
        spool, directory = await _open_spool(directory, limit, most)
    except BaseException:
        await kafka.close()
        raise

    async def close() -> None:
        await spool.close()
        await kafka.close()

    return Way(spool, kafka, close, directory)


async def _open_spool(directory: Path, limit: int, most: int) -> tuple[Spool, Path]:
    for number in range(1, most + 1):
        path = directory if number == 1 else directory.with_name(f"{directory.name}-{number}")
        try:
            return await asyncio.to_thread(Spool.open, path, limit=limit), path
        except SpoolInUse:
            if number == most:
                raise
    raise AssertionError("the last attempt returns or raises")


def _unknown(url: str, setting: str, known: str) -> BackendError:
    return BackendError(f"{setting} = '{without_password(url)}': this version knows only {known}")
