"""Keys by their hash: from the cache, or else from the store, and then into the cache.

Why a value in a cache that several servers share can't bring a revoked key back.  A revocation has
a revision, the number of its transaction; what is read from a store that is known to be at revision
r holds every change up to r.  A value carries ``as_of``, the revision its writer knew *before* it
asked the store, ``read_at``, the writer's clock at that moment, and ``until``.

A reader that was running hears of the revocation and then goes by what it heard (``Accounts``)
for ``stale_seconds``.  Any row without the revocation was asked for before it, so its ``until``
(counted from ``read_at``, not from when the cache got round to keeping it) passes sooner, however
late the cache executed the SET.

A reader that began after the revocation hears nothing, but began at its revision or a later one:
``as_of`` of every row without it is smaller, and such values are not believed.

A store put back from a backup counts its revisions anew, so these prove nothing across it.  Who
notices believes only what was read after that moment.  Who begins later believes values ``as_of``
just the revision that it found; those with a greater one belong to a past that has been undone,
unless they were read after it began.  What is left: a row read in the half second before its reader
knew of it, then a backup put back that was made in that half second, with all servers stopped and
started again before ``until``.  Whoever does that in five minutes should flush the cache.

Servers' clocks may differ by ``skew_seconds``; only revisions count between servers whose clocks
are worse, and a value from further in the future is not believed at all.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Protocol

import msgspec
from msgspec import Struct

from fabric_server.storage.rows import KeyRow
from runtime.errors import BackendError

log = logging.getLogger("fabric.keys")


class KeyStore(Protocol):
    @property
    def revision_at_open(self) -> int:
        """All that is read through this store is as new as this revision, or newer."""

    async def key_by_hash(self, digest: bytes) -> KeyRow | None: ...


class Cache(Protocol):
    async def get(self, name: str) -> bytes | None: ...

    async def set(self, name: str, value: bytes, seconds: float) -> None: ...


class _Value(Struct, frozen=True, array_like=True):
    """What lies in the cache.  Times are Unix seconds by the writer's clock."""

    row: KeyRow | None
    """None: there is no such key."""
    as_of: int
    read_at: float
    until: float


_SHAPE = sha256(",".join(KeyRow.__struct_fields__).encode()).hexdigest()[:8]
"""What a release knows of a key.  Another one's values are not looked at: one that lacks the key's
limits would have it believed to have none."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Value).decode


def name_of(digest: bytes) -> str:
    """Of a key's value in the cache."""
    return f"key:{_SHAPE}:{digest.hex()}"


class CachedKeys:
    """A cache that fails or is slow counts as one that knows nothing.

    A look-up waits for the cache ``cache_seconds`` at most, reading and writing together.
    """

    def __init__(
        self,
        store: KeyStore,
        cache: Cache,
        *,
        revision: Callable[[], int],
        clock: Callable[[], float] = time.time,
        good_seconds: float,
        wrong_seconds: float,
        store_seconds: float,
        cache_seconds: float,
        skew_seconds: float = 30.0,
    ) -> None:
        """``revision`` tells up to where the changes of the store are known to this process."""
        self._store = store
        self._cache = cache
        self._revision = revision
        self._clock = clock
        self._good_seconds = good_seconds
        self._wrong_seconds = wrong_seconds
        self._store_seconds = store_seconds
        self._cache_seconds = cache_seconds
        self._skew_seconds = skew_seconds
        self.stale_seconds = good_seconds + store_seconds + cache_seconds + skew_seconds
        """A row read from the store now is not believed any more after so long, by anybody."""
        self._began = revision()
        self._trusted = clock() + skew_seconds
        self._warm = True
        self._era = 0
        self._problems: dict[str, str] = {}  # of reading, of writing: a full one can still read

    @property
    def problem(self) -> str | None:
        """Why the cache does not help at the moment; None when it does, as far as is known."""
        return next(iter(self._problems.values()), None)

    def forget_all(self) -> None:
        """What was put into the cache until now is not believed, nor what is being read."""
        self._era += 1
        self._began = self._revision()
        self._trusted = self._clock() + self._skew_seconds
        self._warm = False

    async def find(self, digest: bytes) -> KeyRow | None:
        """Raises ``BackendError`` or ``TimeoutError`` when the store is needed and away."""
        name = name_of(digest)
        while True:
            era, began = self._era, time.monotonic()
            found, left = None, 0.0
            try:
                found = await self._get(name, digest)
                left = self._cache_seconds - (time.monotonic() - began)
                self._well("read")
            except (BackendError, TimeoutError) as error:
                self._failing("read", error)  # and it is not waited for once more to write
            if found is not None:
                return found.row
            as_of, read_at = self._revision(), self._clock()  # before the store is asked
            async with asyncio.timeout(self._store_seconds):
                row = await self._store.key_by_hash(digest)
            if era == self._era:
                if left > 0:
                    await self._set(name, row, as_of, read_at, left)
                return row

    async def _get(self, name: str, digest: bytes) -> _Value | None:
        async with asyncio.timeout(self._cache_seconds):
            text = await self._cache.get(name)
        if text is None:
            return None
        try:
            value = _decode(text)
        except msgspec.DecodeError:  # written by another release
            return None
        if value.row is not None and not hmac.compare_digest(value.row.hash, digest):
            return None
        return value if self._believes(value) else None

    def _believes(self, value: _Value) -> bool:
        left = value.until - self._clock()
        if not 0 < left <= self._good_seconds + self._skew_seconds:
            return False
        if value.as_of < self._began or not math.isfinite(value.read_at):
            return False
        return value.read_at >= self._trusted or (self._warm and value.as_of == self._began)

    async def _set(
        self, name: str, row: KeyRow | None, as_of: int, read_at: float, within: float
    ) -> None:
        good = row is not None and row.usable
        seconds = self._good_seconds if good else self._wrong_seconds
        value = _Value(row, as_of, read_at, read_at + seconds)
        try:
            async with asyncio.timeout(within):
                await self._cache.set(name, _encode(value), seconds)
            self._well("write")
        except (BackendError, TimeoutError) as error:
            self._failing("write", error)

    def _failing(self, part: str, error: Exception) -> None:
        problem = str(error) or "it does not answer"
        if not self._problems:
            log.warning("the cache is away", extra={"reason": problem})
        self._problems[part] = problem

    def _well(self, part: str) -> None:
        if self._problems.pop(part, None) is not None and not self._problems:
            log.info("the cache is back")
