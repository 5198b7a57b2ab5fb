"""Who asks: API keys, from the text in a request to the account behind it.

    known         this process's own memory; what a warm request costs: one hash, no waiting
    authenticate  memory -> cache -> store, one look-up per key however many wait for it

What others revoke, disable and enable comes from ``backends.watch.Watch``, which calls ``changed``.
A key's text is never kept, logged or compared: only its SHA-256 is, which cannot be guessed byte by
byte.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from typing import NamedTuple, get_args

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import asdict, replace

from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.storage.cached_keys import Cache, CachedKeys, CacheTimes, KeyStore
from fabric_server.storage.rows import AccountRow, Changes, Failover, KeyRow, Reasoning
from runtime.errors import BackendError

_SHAPE = re.compile(r"[sm]k-fab-[A-Za-z0-9_-]{43}")
_PREFIX = len("sk-fab-") + 6
_LONGEST_NAME = 256
_LONGEST_NOTE = 1000
_HIGHEST_LIMIT = 10**12


class Key(Struct, frozen=True):
    """A key that was good a moment ago."""

    id: str
    account: str
    name: str
    prefix: str
    management: bool
    """May manage the fabric, and may not call models."""
    models: frozenset[str] | None
    """Without ``:latest``; None is all models."""
    requests_per_minute: int | None = None
    """None is any number; so for tokens."""
    tokens_per_minute: int | None = None
    failover: str = ""
    """As in ``KeyRow``."""
    reasoning: str = ""

    @property
    def limited(self) -> bool:
        return self.requests_per_minute is not None or self.tokens_per_minute is not None

    def allows(self, model: str) -> bool:
        """Whether it may use this model; ``name`` and ``name:latest`` are the same."""
        return self.models is None or _plain(model) in self.models


def new_account(name: str, *, now: float, note: str = "") -> AccountRow:
    """To be stored with ``store.create_account``.  ``ValueError`` says what is wrong with it."""
    _check_account(name, "an account's name")
    if len(note) > _LONGEST_NOTE or (note and not note.isprintable()):
        raise ValueError(f"an account's note is at most {_LONGEST_NOTE} printable characters")
    return AccountRow(name, note, now)


class NewKey(NamedTuple):
    text: str
    """To be shown once; it can't be had again."""
    row: KeyRow


def mint(
    name: str,
    *,
    now: float,
    account: str = "default",
    management: bool = False,
    models: list[str] | None = None,
    expires_at: float | None = None,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    failover: Failover = "",
    reasoning: Reasoning = "",
) -> NewKey:
    """A new key with 256 random bits, to be stored with ``store.create_key(new.row)``.

    ``ValueError`` says what is wrong with its properties.
    """
    _check_name(name, "a key's name")
    _check_account(account, "a key's account")
    if expires_at is not None and expires_at <= now:
        raise ValueError("the key would have expired already")
    if models is not None and (management or not models or not all(models)):
        raise ValueError("a list of models has at least one name, and is not for management keys")
    text = ("mk-fab-" if management else "sk-fab-") + secrets.token_urlsafe(32)
    row = KeyRow(
        id=f"key_{secrets.token_hex(8)}",
        account=account,
        name=name,
        prefix=text[:_PREFIX],
        hash=sha256(text.encode()).digest(),
        management=management,
        created_at=now,
        expires_at=expires_at,
        models=models,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        failover=failover,
        reasoning=reasoning,
    )
    _check_terms(row)
    return NewKey(text, row)


class KeyPolicyUpdate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of a key can be changed; what is not set stays as it is."""

    requests_per_minute: int | UnsetType | None = UNSET
    tokens_per_minute: int | UnsetType | None = UNSET
    failover: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET

    def of(self, row: KeyRow) -> KeyRow:
        """The key with these terms.  ``ValueError`` says what is wrong with them."""
        given = {name: value for name, value in asdict(self).items() if value is not UNSET}
        if not given:
            raise ValueError("nothing is to be changed")
        changed = replace(row, **given)
        _check_terms(changed)
        return changed


def _check_terms(row: KeyRow) -> None:
    for limit in (row.requests_per_minute, row.tokens_per_minute):
        if limit is not None and (row.management or not 0 < limit <= _HIGHEST_LIMIT):
            raise ValueError(
                f"a limit for each minute is 1 to {_HIGHEST_LIMIT}, and not for management keys"
            )
    if row.failover not in get_args(Failover):
        raise ValueError(f"a key's failover is 'continue', or nothing; not '{row.failover}'")
    if row.reasoning not in get_args(Reasoning):
        raise ValueError(f"a key's reasoning is 'raw', or nothing; not '{row.reasoning}'")
    if row.management and (row.failover or row.reasoning):
        raise ValueError("management keys call no models: failover and reasoning are not for them")


def _check_account(name: str, what: str) -> None:
    _check_name(name, what)
    if name in (".", ".."):  # in the path of a URL these are something else, even when quoted
        raise ValueError(f"{what} can't be “{name}”")


def _check_name(name: str, what: str) -> None:
    if not name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
        raise ValueError(f"{what} is 1 to {_LONGEST_NAME} printable characters")


class _Entry:
    """What this process remembers of one key; ``key`` is None when it is of no use, and ``reason``
    makes the refusal that tells why."""

    __slots__ = ("expires_at", "fresh_until", "key", "reason")

    def __init__(self, row: KeyRow | None, fresh_until: float) -> None:
        self.key = key_of(row) if row is not None and row.usable else None
        self.reason = _reason(row)
        self.expires_at = math.inf if row is None or row.expires_at is None else row.expires_at
        self.fresh_until = min(fresh_until, self.expires_at)


class Accounts:
    """Says whose key a text is.

    What was looked up stays good for ``fresh_seconds``, unless ``changed`` tells of it before.
    While the store is away, known keys are used on and others get a 503.  All memory is bounded:
    ``most`` keys, ``most_lookups`` at once, and wrong keys only in the cache, which has its own.
    """

    def __init__(
        self,
        store: KeyStore,
        cache: Cache,
        *,
        clock: Callable[[], float] = time.time,
        most: int = 10_000,
        most_lookups: int = 1_000,
        fresh_seconds: float = 300.0,
        wrong_seconds: float = 30.0,
        store_seconds: float = 2.0,
        cache_seconds: float = 0.25,
        grace_seconds: float = 30.0,
    ) -> None:
        self._revision = store.revision_at_open
        times = CacheTimes(
            valid_seconds=fresh_seconds,
            invalid_seconds=wrong_seconds,
            store_seconds=store_seconds,
            cache_seconds=cache_seconds,
        )
        self._keys = CachedKeys(
            store,
            cache,
            times=times,
            revision=lambda: self._revision,
            clock=clock,
        )
        self._clock = clock
        self._most = most
        self._most_lookups = most_lookups
        self._fresh_seconds = fresh_seconds
        self._grace_seconds = grace_seconds
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()  # good keys, the last used last
        self._told: OrderedDict[bytes, _Entry] = OrderedDict()  # what ``changed`` brought
        self._lookups: dict[bytes, asyncio.Future[_Entry | None]] = {}
        self.on_cut: Callable[[str], None] = lambda key_id: None
        """Told the id of a key that was revoked or disabled, perhaps not for the first time: what
        runs on it is to end.  Must not raise.  Keys that expire are not told."""

    def __repr__(self) -> str:
        return f"<Accounts keys={len(self._entries)} lookups={len(self._lookups)}>"

    @property
    def cache_problem(self) -> str | None:
        """Why the cache does not help at the moment; keys are then asked of the store."""
        return self._keys.problem

    def known(self, token: str) -> Key | None:
        """The key when this process knows it; None means: ask ``authenticate``."""
        digest = sha256(token.encode("utf-8", "replace")).digest()
        entry = self._entries.get(digest)
        if entry is None or self._clock() >= entry.fresh_until:
            return None
        self._entries.move_to_end(digest)
        return entry.key

    async def authenticate(self, token: str) -> Key:
        """The key, of either kind.  Raises nothing but ``ApiError``."""
        if not token:
            raise errors.no_key()
        if _SHAPE.fullmatch(token) is None:  # what can't be a key costs no look-up
            raise errors.wrong_key()
        entry = await self._entry(sha256(token.encode()).digest())
        if entry is None:
            raise _store_is_away()
        if self._clock() >= entry.expires_at:
            raise errors.wrong_key()
        if entry.key is None:
            raise entry.reason()
        return entry.key

    def changed(self, changes: Changes) -> None:
        """For ``ChangeFeed``: what was made, revoked, disabled and enabled, by whatever process."""
        self._revision = changes.revision
        if changes.everything:
            self.forget_all()
        now = self._clock()
        # As long as an older row may still lie in the cache, what was told here goes before it.
        until = now + self._keys.stale_seconds
        while self._told and next(iter(self._told.values())).fresh_until <= now:
            self._told.popitem(last=False)
        for row in changes.keys:
            if changes.everything and row.usable:
                continue
            entry = _Entry(row, until)
            self._told[row.hash] = entry
            self._told.move_to_end(row.hash)
            if len(self._told) > self._most:
                self._told.popitem(last=False)
                self._keys.forget_all()  # nothing goes before an older row in the cache any more
            self._keep(row.hash, entry)
        for row in changes.keys:
            if not row.usable:
                self.on_cut(row.id)

    def forget_all(self) -> None:
        """Every key is asked of the store again when it is next used."""
        self._keys.forget_all()
        self._entries.clear()
        self._told.clear()

    async def _entry(self, digest: bytes) -> _Entry | None:
        """None: the store is away and nothing is known of this key."""
        while True:
            now = self._clock()
            for remembered in (self._entries, self._told):
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
            # Whoever looked it up for all of us has gone; one of us is next.

    async def _look_up(self, digest: bytes) -> _Entry | None:
        stale = self._entries.get(digest)
        if stale is not None:  # others go on with it meanwhile, and we too when there is no answer
            stale.fresh_until = min(self._clock() + self._grace_seconds, stale.expires_at)
        if len(self._lookups) >= self._most_lookups:
            if stale is None:
                raise errors.overloaded("Too many new API keys are being checked.", 1.0)
            return stale
        running: asyncio.Future[_Entry | None] = asyncio.get_running_loop().create_future()
        self._lookups[digest] = running
        try:
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
            # It may have been revoked, or forgotten, while we asked.
            lasting = stale if self._entries.get(digest) is stale else None
            return self._newest(digest, lasting)
        found = _Entry(row, self._clock() + self._fresh_seconds)
        entry = self._newest(digest, found) or found
        self._keep(digest, entry)
        return entry

    def _newest(self, digest: bytes, entry: _Entry | None) -> _Entry | None:
        """What was told of the key while somebody asked goes before what he found."""
        told = self._told.get(digest)
        return entry if told is None or self._clock() >= told.fresh_until else told

    def _keep(self, digest: bytes, entry: _Entry) -> None:
        if entry.key is None:
            self._entries.pop(digest, None)
            return
        self._entries[digest] = entry
        self._entries.move_to_end(digest)
        if len(self._entries) > self._most:
            self._entries.popitem(last=False)


def key_of(row: KeyRow) -> Key:
    """Whether it may be used is for the caller to know: see ``KeyRow.state``."""
    models = None if row.models is None else frozenset(map(_plain, row.models))
    return Key(
        id=row.id,
        account=row.account,
        name=row.name,
        prefix=row.prefix,
        management=row.management,
        models=models,
        failover=row.failover,
        reasoning=row.reasoning,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
    )


def _reason(row: KeyRow | None) -> Callable[[], ApiError]:
    """What to say when the key is of no use."""
    if row is None or row.revoked_at is not None:
        return errors.wrong_key
    return errors.account_disabled if row.enabled else errors.key_disabled


def _plain(model: str) -> str:
    return model.removesuffix(":latest")


def _store_is_away() -> ApiError:
    return ApiError(
        503,
        "keys_unavailable",
        "API keys can't be checked at the moment. Try again shortly.",
        type="server_error",
        retry_after=5.0,
    )
