"""Keys by their hash: from the cache, or else from the store, and then into the cache.

Why a value in a cache that several servers share can't make a revoked key valid again.  A
revocation has a revision, the number of its transaction; what is read from a store that is known
to be at revision r holds every change up to r.  A value carries ``as_of``, the revision its writer
knew *before* it queried the store, ``read_at``, the writer's clock at that moment, and ``until``.

A reader that was running is notified of the revocation, and then prefers the notice (in
``KeyAuthenticator``) for ``stale_seconds``.  Any row without the revocation was queried before it,
so its ``until`` (counted from ``read_at``, not from when the cache executed the SET) passes sooner,
however late that was.

A reader that began after the revocation gets no notice, but began at its revision or a later one:
``as_of`` of every row without it is smaller, and such values are rejected.

A store put back from a backup counts its revisions anew, so these prove nothing across it.  A
reader that notices accepts only what was read after that moment.  A reader that begins later
accepts values ``as_of`` exactly the revision that it found; those with a greater one belong to a
past that has been undone, unless they were read after it began.  One case is left: a row read in
the half second before its reader knew of it, then a backup put back that was made in that half
second, with all servers stopped and started again before ``until``.  An operator who does that
within five minutes should flush the cache.

Servers' clocks may differ by ``skew_seconds``; only revisions count between servers whose clocks
are worse, and a value from further in the future is rejected.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

import msgspec
from msgspec import Struct

from fabric_server.storage.rows import KeyRow
from runtime.errors import BackendError
from runtime.outage import Outage

_PARTS = ("read", "write", "check")
"""Uses of the cache that fail apart: a full one can still be read."""

Check = Callable[[], Awaitable[None]]

CHECK_SECONDS = 1.0
"""Time between two checks of the cache: keys that are in memory cause no look-ups that would tell
whether it answers."""


class KeyStore(Protocol):
    @property
    def revision_at_open(self) -> int:
        """The revision that all that is read through this store has, or a later one."""

    async def key_by_hash(self, digest: bytes) -> KeyRow | None: ...


class Cache(Protocol):
    async def get(self, name: str) -> bytes | None: ...

    async def set(self, name: str, value: bytes, seconds: float) -> None: ...


class _Value(Struct, frozen=True, array_like=True):
    """A value in the cache.  Times are Unix seconds by the writer's clock."""

    row: KeyRow | None
    """None: there is no such key."""
    as_of: int
    read_at: float
    until: float


_SHAPE = sha256(",".join(KeyRow.__struct_fields__).encode()).hexdigest()[:8]
"""The columns that this release knows of a key.

Values of another release are not read: if it lacked a limit, the key would seem to have none.
"""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Value).decode


def name_of(digest: bytes) -> str:
    """Return the name of a key's value in the cache."""
    return f"key:{_SHAPE}:{digest.hex()}"


@dataclass(frozen=True, kw_only=True)
class CacheTimes:
    valid_seconds: float
    """How long a usable key is cached."""
    invalid_seconds: float
    """How long an unknown, revoked or disabled key is cached."""
    store_seconds: float
    """Longest wait for the store."""
    cache_seconds: float
    """Longest wait for the cache in one look-up, reading and writing together."""
    skew_seconds: float = 30.0
    """Largest difference between servers' clocks."""


class CachedKeys:
    """Looks keys up.  A cache that fails or is slow counts as an empty one."""

    def __init__(
        self,
        store: KeyStore,
        cache: Cache,
        *,
        times: CacheTimes,
        revision: Callable[[], int],
        clock: Callable[[], float] = time.time,
        outage: Outage | None = None,
    ) -> None:
        """``revision`` returns the revision up to which this process knows all changes."""
        self._store = store
        self._cache = cache
        self._revision = revision
        self._clock = clock
        self._times = times
        self.stale_seconds = (
            times.valid_seconds + times.store_seconds + times.cache_seconds + times.skew_seconds
        )
        """Time after which no server accepts a row any more that is read from the store now."""
        self._began = revision()
        self._trusted = clock() + times.skew_seconds  # what was read later is of our store
        self._warm = True  # nothing was forgotten yet: values as of _began are of our store, too
        self._generation = 0
        self._outage = outage or Outage("the cache")

    @property
    def problem(self) -> str | None:
        """The reason if the cache is of no use at the moment."""
        return self._outage.problem

    async def watch(self, check: Check, every: float = CHECK_SECONDS) -> None:
        """Check the cache again and again, until cancelled; ``check`` raises ``BackendError``."""
        while True:
            try:
                await check()
            except (BackendError, TimeoutError) as error:
                self._on_failure("check", error)
            else:
                for part in _PARTS:
                    self._outage.worked(part)
            await asyncio.sleep(every)

    def forget_all(self) -> None:
        """Reject what was put into the cache until now, and what is being read from the store."""
        self._generation += 1
        self._began = self._revision()
        self._trusted = self._clock() + self._times.skew_seconds
        self._warm = False

    async def find(self, digest: bytes) -> KeyRow | None:
        """Return the key.

        Raises ``BackendError`` or ``TimeoutError`` when the store is needed and away.
        """
        name = name_of(digest)
        while True:
            generation, began = self._generation, time.monotonic()
            found, left = None, 0.0
            try:
                found = await self._get(name, digest)
                left = self._times.cache_seconds - (time.monotonic() - began)
                self._outage.worked("read")
            except (BackendError, TimeoutError) as error:
                self._on_failure("read", error)  # do not wait for it again to write
            if found is not None:
                return found.row
            as_of, read_at = self._revision(), self._clock()  # before the store is queried
            async with asyncio.timeout(self._times.store_seconds):
                row = await self._store.key_by_hash(digest)
            if generation == self._generation:
                if left > 0:
                    await self._set(name, row, as_of, read_at, left)
                return row

    async def _get(self, name: str, digest: bytes) -> _Value | None:
        async with asyncio.timeout(self._times.cache_seconds):
            text = await self._cache.get(name)
        if text is None:
            return None
        try:
            value = _decode(text)
        except (ValueError, RecursionError):  # damaged, or written by another release
            return None
        if value.row is not None and not hmac.compare_digest(value.row.hash, digest):
            return None
        return value if self._accepts(value) else None

    def _accepts(self, value: _Value) -> bool:
        left = value.until - self._clock()
        if not 0 < left <= self._times.valid_seconds + self._times.skew_seconds:
            return False
        if value.as_of < self._began or not math.isfinite(value.read_at):
            return False
        return value.read_at >= self._trusted or (self._warm and value.as_of == self._began)

    async def _set(
        self, name: str, row: KeyRow | None, as_of: int, read_at: float, within: float
    ) -> None:
        valid = row is not None and row.usable
        seconds = self._times.valid_seconds if valid else self._times.invalid_seconds
        value = _Value(row, as_of, read_at, read_at + seconds)
        try:
            async with asyncio.timeout(within):
                await self._cache.set(name, _encode(value), seconds)
            self._outage.worked("write")
        except (BackendError, TimeoutError) as error:
            self._on_failure("write", error)

    def _on_failure(self, part: str, error: Exception) -> None:
        self._outage.failed(part, str(error) or "it does not answer")
