"""What is remembered, remembered briefly, and told: one interface each, chosen by URL."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from msgspec import Struct

from consumer.errors import BackendError
from consumer.store import open_database
from consumer.urls import shown
from consumer.worker import Source
from fabric_server.backends.memory import MemoryBus, MemoryCache
from fabric_server.backends.store import SqlStore


class Cache(Protocol):
    """Remembers bytes for a while, perhaps shorter.  Raises ``BackendError`` when it can't."""

    async def get(self, name: str) -> bytes | None: ...

    async def set(self, name: str, value: bytes, seconds: float) -> None: ...

    async def close(self) -> None: ...


class Bus(Source, Protocol):
    """Takes records from whoever has no time to wait, to ``consumer.Worker``."""

    @property
    def waiting(self) -> Mapping[str, int]:
        """Records published and not yet taken, by topic."""

    @property
    def dropped(self) -> Mapping[str, int]:
        """Records lost for want of room since the start, by topic."""

    @property
    def full(self) -> bool:
        """No more requests should be let in: their ledger entries could not be held."""

    def publish(self, topic: str, record: Struct) -> None:
        """Never blocks and never raises; topics are named in ``consumer.records``."""

    async def close(self) -> None: ...


async def open_store(
    url: str, *, setting: str = "store", clock: Callable[[], float] = time.time
) -> SqlStore:
    """The store at ``url``, its schema brought up to date: see ``consumer.store.open_database``."""
    return await SqlStore.open(await open_database(url, setting=setting), clock)


async def open_cache(url: str, *, setting: str = "cache") -> Cache:
    """The cache at ``url``: ``memory://``.  Raises ``BackendError``."""
    _check(url, setting, "memory", "memory://")
    return MemoryCache()


async def open_bus(url: str, *, setting: str = "bus") -> Bus:
    """The bus at ``url``: ``memory://``.  Raises ``BackendError``."""
    _check(url, setting, "memory", "memory://")
    return MemoryBus()


def _check(url: str, setting: str, known: str, example: str) -> None:
    scheme, mark, rest = url.partition("://")
    if scheme != known or not mark or (known == "memory" and rest):
        raise BackendError(f"{setting} = '{shown(url)}': this version knows only {example}")
