"""What is remembered, remembered briefly, and told: one interface each, chosen by URL."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from consumer.errors import BackendError
from consumer.worker import Source
from fabric_server.backends.memory import MemoryBus, MemoryCache
from fabric_server.backends.sqlite import SqliteDatabase, path_of
from fabric_server.backends.store import SqlStore


class Cache(Protocol):
    """Remembers bytes for a while, perhaps shorter.  Raises ``BackendError`` when it can't."""

    async def get(self, name: str) -> bytes | None: ...

    async def set(self, name: str, value: bytes, seconds: float) -> None: ...

    async def close(self) -> None: ...


class Bus(Source, Protocol):
    """Takes records from whoever has no time to wait, to ``consumer.Worker``."""

    def publish(self, topic: str, record: Struct) -> None:
        """Never blocks and never raises; topics are named in ``consumer.records``."""

    async def close(self) -> None: ...


async def open_store(
    url: str, *, setting: str = "store", clock: Callable[[], float] = time.time
) -> SqlStore:
    """The store at ``url``, its schema brought up to date.

    ``sqlite:///relative/path``, ``sqlite:////absolute/path``, or ``sqlite://`` for memory.  What
    follows the third slash is the path as it is, with nothing escaped.  Raises ``BackendError``;
    its text names ``setting`` when it is the URL that is wrong.
    """
    _check(url, setting, "sqlite", "sqlite:///path/to/file.db")
    try:
        path = path_of(url)
    except ValueError as error:
        raise BackendError(f"{setting} = '{_shown(url)}': {error}") from error
    return await SqlStore.open(SqliteDatabase(path), clock)


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
        raise BackendError(f"{setting} = '{_shown(url)}': this version knows only {example}")


def _shown(url: str) -> str:
    """A URL as it may appear in a message: without a password."""
    head, at, tail = url.rpartition("@")
    if not at:
        return url
    scheme, mark, _ = head.partition("://")
    return f"{scheme}{mark}***@{tail}"
