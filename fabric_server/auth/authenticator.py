"""Authentication: from the key in a request to its row, through memory, cache and store.

    cached        this process's memory; the whole cost of a warm request: one hash, no waiting
    authenticate  memory -> cache -> store; concurrent look-ups of one key share a single query

Revocations and other changes arrive as ``on_changes`` from ``storage.change_feed.ChangeFeed``.  A
key's text is never stored, logged or compared: only its SHA-256 is, which can't be guessed byte by
byte.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from fabric_server.auth.keys import KEY_LENGTH, KEY_PATTERN, Key, key_of
from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.storage.cached_keys import Cache, CachedKeys, CacheTimes, Check, KeyStore
from fabric_server.storage.rows import Changes, KeyRow
from runtime.errors import BackendError
from runtime.outage import Outage

DEFAULT_TIMES = CacheTimes(
    valid_seconds=300.0, invalid_seconds=30.0, store_seconds=2.0, cache_seconds=0.25
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticatorSettings:
    """Bounds of the memory of a ``KeyAuthenticator``, and its times in seconds."""

    max_keys: int = 10_000
    max_lookups: int = 1_000
    """Look-ups of different keys at once; others wait for their turn."""
    grace_seconds: float = 30.0
    """How long a stale key is used while it is looked up again."""
    times: CacheTimes = DEFAULT_TIMES


def digest_of(token: str) -> bytes:
    """Return a key's SHA-256; empty for a text of another length, perhaps too long to be hashed."""
    if len(token) != KEY_LENGTH:
        return b""
    return sha256(token.encode("utf-8", "replace")).digest()


class _Entry:
    """A key in memory; ``key`` is None when it is unusable, and ``error`` makes the reason."""

    __slots__ = ("error", "expires_at", "fresh_until", "key")

    def __init__(self, row: KeyRow | None, fresh_until: float) -> None:
        self.key = key_of(row) if row is not None and row.usable else None
        self.error = _error(row)
        self.expires_at = math.inf if row is None or row.expires_at is None else row.expires_at
        self.fresh_until = min(fresh_until, self.expires_at)


class KeyAuthenticator:
    """Looks up the key of a request.

    A looked-up key is valid for ``times.valid_seconds``, unless a change notice comes before.
    While the store is away, keys in memory remain valid and other keys get a 503.  All memory is
    bounded; unknown keys are remembered only in the cache, which has bounds of its own.
    """

    def __init__(
        self,
        store: KeyStore,
        cache: Cache,
        *,
        clock: Callable[[], float] = time.time,
        settings: AuthenticatorSettings | None = None,
        cache_outage: Outage | None = None,
    ) -> None:
        self._settings = settings = settings or AuthenticatorSettings()
        self._revision = store.revision_at_open
        self._keys = CachedKeys(
            store,
            cache,
            times=settings.times,
            revision=lambda: self._revision,
            clock=clock,
            outage=cache_outage,
        )
        self._clock = clock
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        """Usable keys, the most recently used last."""
        self._notices: OrderedDict[bytes, _Entry] = OrderedDict()
        """Keys from recent change notices."""
        self._lookups: dict[bytes, asyncio.Future[_Entry | None]] = {}
        self._turns = asyncio.Semaphore(settings.max_lookups)
        self.on_withdrawn: Callable[[str], None] = lambda key_id: None
        """Called with the id of a key that was revoked or disabled, perhaps repeatedly: its
        requests are to end.  Must not raise.  Not called for keys that expire."""

    def __repr__(self) -> str:
        return f"<KeyAuthenticator keys={len(self._entries)} lookups={len(self._lookups)}>"

    @property
    def cache_problem(self) -> str | None:
        """Return why the cache is out of use now; keys are then looked up in the store."""
        return self._keys.problem

    async def watch_cache(self, check: Check) -> None:
        """Check the cache until cancelled, so that ``cache_problem`` is right without look-ups."""
        await self._keys.watch(check)

    def cached(self, token: str) -> Key | None:
        """Return the key if it is in memory; on None call ``authenticate``."""
        return self.find(digest_of(token))

    def find(self, digest: bytes) -> Key | None:
        """Return the key with this digest if it is in memory, as ``cached`` does."""
        entry = self._entries.get(digest)
        if entry is None or self._clock() >= entry.fresh_until:
            return None
        self._entries.move_to_end(digest)
        return entry.key

    async def authenticate(self, token: str) -> Key:
        """Return the key, of either kind.  Raises only ``ApiError``."""
        if not token:
            raise errors.no_key()
        if KEY_PATTERN.fullmatch(token) is None:  # malformed keys cost no look-up
            raise errors.wrong_key()
        entry = await self._entry(sha256(token.encode()).digest())
        if entry is None:
            raise _store_is_away()
        if self._clock() >= entry.expires_at:
            raise errors.wrong_key()
        if entry.key is None:
            raise entry.error()
        return entry.key

    def on_changes(self, changes: Changes) -> None:
        """Take in what any process created, revoked, disabled or enabled."""
        self._revision = changes.revision
        if changes.everything:
            self.clear()
        now = self._clock()
        # As long as an older row may be in the cache, the notice goes before it.
        until = now + self._keys.stale_seconds
        while self._notices and next(iter(self._notices.values())).fresh_until <= now:
            self._notices.popitem(last=False)
        for row in changes.keys:
            if changes.everything and row.usable:
                continue
            entry = _Entry(row, until)
            self._notices[row.hash] = entry
            self._notices.move_to_end(row.hash)
            if len(self._notices) > self._settings.max_keys:
                self._notices.popitem(last=False)
                self._keys.forget_all()  # an older row in the cache has no notice before it now
            self._keep(row.hash, entry)
        for row in changes.keys:
            if not row.usable:
                self.on_withdrawn(row.id)

    def clear(self) -> None:
        """Forget everything: each key is looked up in the store when it is next used."""
        self._keys.forget_all()
        self._entries.clear()
        self._notices.clear()

    async def _entry(self, digest: bytes) -> _Entry | None:
        """Return the key's entry; None when the store is away and the key is not in memory."""
        while True:
            now = self._clock()
            for remembered in (self._entries, self._notices):
                entry = remembered.get(digest)
                if entry is not None and now < entry.fresh_until:
                    self._keep(digest, entry)
                    return entry
            running = self._lookups.get(digest)
            if running is None:
                return await self._look_up(digest)
            await asyncio.wait([running])
            if not running.cancelled():
                return self._newest(digest, running.result())
            # The request that did the shared look-up is gone; one of the others does it now.

    async def _look_up(self, digest: bytes) -> _Entry | None:
        stale = self._entries.get(digest)
        if stale is not None:
            # Others use it meanwhile, and so does this request when the look-up fails.
            grace = self._clock() + self._settings.grace_seconds
            stale.fresh_until = min(grace, stale.expires_at)
            if self._turns.locked():
                return stale
        running: asyncio.Future[_Entry | None] = asyncio.get_running_loop().create_future()
        self._lookups[digest] = running
        try:
            async with self._turns:
                entry = await self._find(digest, stale)
            running.set_result(entry)
            return entry
        finally:
            del self._lookups[digest]
            running.cancel()  # does nothing when there is a result

    async def _find(self, digest: bytes, stale: _Entry | None) -> _Entry | None:
        try:
            row = await self._keys.find(digest)
        except (BackendError, TimeoutError):
            # The key may have been revoked, or forgotten, during the look-up.
            lasting = stale if self._entries.get(digest) is stale else None
            return self._newest(digest, lasting)
        found = _Entry(row, self._clock() + self._settings.times.valid_seconds)
        entry = self._newest(digest, found) or found
        self._keep(digest, entry)
        return entry

    def _newest(self, digest: bytes, entry: _Entry | None) -> _Entry | None:
        """Prefer a change notice that arrived during the look-up."""
        notice = self._notices.get(digest)
        return entry if notice is None or self._clock() >= notice.fresh_until else notice

    def _keep(self, digest: bytes, entry: _Entry) -> None:
        if entry.key is None:
            self._entries.pop(digest, None)
            return
        self._entries[digest] = entry
        self._entries.move_to_end(digest)
        if len(self._entries) > self._settings.max_keys:
            self._entries.popitem(last=False)


def _error(row: KeyRow | None) -> Callable[[], ApiError]:
    """Return what makes the error for an unusable key."""
    if row is None or row.revoked_at is not None:
        return errors.wrong_key
    return errors.account_disabled if row.enabled else errors.key_disabled


def _store_is_away() -> ApiError:
    return ApiError(
        503,
        "keys_unavailable",
        "API keys can't be checked at the moment: the store is unavailable. Retry in 5 s.",
        type="server_error",
        retry_after=5.0,
    )
