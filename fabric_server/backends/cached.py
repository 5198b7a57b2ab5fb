"""Keys by their hash: from the cache, or else from the store, and then into the cache."""

from __future__ import annotations

import asyncio
import hmac
import logging
from typing import NamedTuple, Protocol

import msgspec

from consumer.errors import BackendError
from fabric_server.backends.rows import KeyRow

log = logging.getLogger("fabric.keys")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(KeyRow | None).decode


class KeyStore(Protocol):
    async def key_by_hash(self, digest: bytes) -> KeyRow | None: ...


class Cache(Protocol):
    async def get(self, name: str) -> bytes | None: ...

    async def set(self, name: str, value: bytes, seconds: float) -> None: ...


class CachedKeys:
    """A cache that fails or is slow counts as one that knows nothing."""

    def __init__(
        self,
        store: KeyStore,
        cache: Cache,
        *,
        good_seconds: float,
        wrong_seconds: float,
        store_seconds: float,
        cache_seconds: float,
    ) -> None:
        self._store = store
        self._cache = cache
        self._good_seconds = good_seconds
        self._wrong_seconds = wrong_seconds
        self._store_seconds = store_seconds
        self._cache_seconds = cache_seconds
        self.stale_seconds = good_seconds + store_seconds + cache_seconds
        """A row read from the store now is gone from the cache after so long, at the latest."""
        self._era = 0
        self._problem: str | None = None

    def forget_all(self) -> None:
        """What is in the cache is not believed from now on."""
        self._era += 1

    async def find(self, digest: bytes) -> KeyRow | None:
        """Raises ``BackendError`` or ``TimeoutError`` when the store is needed and away."""
        while True:
            era = self._era
            name = f"key:{era}:{digest.hex()}"
            found = await self._get(name, digest)
            if found is not None:
                return found.row
            async with asyncio.timeout(self._store_seconds):
                row = await self._store.key_by_hash(digest)
            if era == self._era:
                await self._set(name, row)
                return row

    async def _get(self, name: str, digest: bytes) -> _Found | None:
        try:
            async with asyncio.timeout(self._cache_seconds):
                value = await self._cache.get(name)
        except (BackendError, TimeoutError) as error:
            self._failing(error)
            return None
        self._well()
        if value is None:
            return None
        try:
            row = _decode(value)
        except msgspec.DecodeError:  # written by another release
            return None
        if row is not None and not hmac.compare_digest(row.hash, digest):
            return None
        return _Found(row)

    async def _set(self, name: str, row: KeyRow | None) -> None:
        good = row is not None and row.revoked_at is None
        seconds = self._good_seconds if good else self._wrong_seconds
        try:
            async with asyncio.timeout(self._cache_seconds):
                await self._cache.set(name, _encode(row), seconds)
        except (BackendError, TimeoutError) as error:
            self._failing(error)

    def _failing(self, error: Exception) -> None:
        problem = str(error) or "it does not answer"
        if self._problem is None:
            log.warning("the cache is away", extra={"reason": problem})
        self._problem = problem

    def _well(self) -> None:
        if self._problem is not None:
            log.info("the cache is back")
        self._problem = None


class _Found(NamedTuple):
    row: KeyRow | None
    """None: the cache knows that there is no such key."""
