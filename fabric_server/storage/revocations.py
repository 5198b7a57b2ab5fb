"""Revocations, remembered outside the store, so that one put back from a backup learns them.

A revoked key or node never works again, so a store in which one works that is known as revoked is
older than the revocation.  The cache keeps the newest revocations: Redis for all servers, and
longer than any of them runs; a server's own memory as long as it runs.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping

from fabric_server.storage.interfaces import KEEP_REVOKED_SECONDS, MAX_REVOKED, Cache
from fabric_server.storage.revision import next_revision
from fabric_server.storage.rows import Changes
from runtime.errors import BackendError, StoreError
from runtime.outage import Outage, Outages, unwatched
from sql.database import Database, Many

log = logging.getLogger("fabric.revocations")

REFRESH_SECONDS = 3600.0
"""Longest time for which a cache that has lost its content lacks the revocations."""
RETRY_SECONDS = 5.0
"""Pause after the cache or the store has failed."""

_TABLES = ("keys", "nodes")


async def newest_revoked(database: Database, since: float) -> dict[str, float]:
    """Return the newest revocations in the store: when, by the id of the key or node."""
    found: dict[str, float] = {}
    for table in _TABLES:
        rows = await database.fetch(
            f"SELECT id, revoked_at FROM {table} WHERE revoked_at > $1"  # noqa: S608 - ours
            " ORDER BY revoked_at DESC LIMIT $2",
            since,
            MAX_REVOKED,
        )
        found |= {id: at for id, at in rows}
    return found


async def merge_revocations(database: Database, cache: Cache) -> list[str]:
    """Revoke in the store what the cache remembers as revoked: see ``revoke_known``."""
    return await revoke_known(database, await cache.revoked())


async def revoke_known(database: Database, revoked: Mapping[str, float]) -> list[str]:
    """Revoke what is known as revoked, by id; return the ids for which that was news.

    Raises ``BackendError``.
    """
    now = time.time()
    known = {id: at if math.isfinite(at) and 0 < at <= now else now for id, at in revoked.items()}
    if not known:
        return []
    again: list[str] = []
    async with database.transaction(durable=True) as session:
        for table in _TABLES:
            # Of the rows given, most are of the other table, or revoked here as well.
            find = Many(
                "WITH given (id, at) AS (given)"  # noqa: S608 - a table of ours
                f" SELECT {table}.id, given.at FROM {table} JOIN given ON given.id = {table}.id"
                f" WHERE {table}.revoked_at IS NULL",
                ("TEXT", "DOUBLE PRECISION"),
            )
            found = [(row[0], row[1]) for row in await session.many(find, list(known.items()))]
            if not found:
                continue
            revision = await next_revision(session)
            for id, at in found:
                await session.execute(
                    f"UPDATE {table} SET revoked_at = $1, revision = $2 WHERE id = $3",  # noqa: S608
                    at,
                    revision,
                    id,
                )
            again += [id for id, _ in found]
    return again


class Revocations:
    """Keeps store and cache at one about what is revoked.  A listener of ``ChangeFeed``."""

    def __init__(
        self,
        database: Database,
        cache: Cache,
        clock: Callable[[], float] = time.time,
        retry_seconds: float = RETRY_SECONDS,
        *,
        outages: Outages | None = None,
    ) -> None:
        self._outages = outages or unwatched()
        self._database = database
        self._cache = cache
        self._clock = clock
        self._retry_seconds = retry_seconds
        self._waiting: dict[str, float] = {}
        """Not in the cache yet."""
        self._compare = True
        """The store may be older than the cache."""
        self._wanted = asyncio.Event()
        self._problem = False
        self._told: tuple[Outage, int] | None = None
        """The back end that was told to be away, and how many of its outages were over then."""

    async def begin(self) -> None:
        """Compare once, before anything is authorised by the store."""
        await self._work()

    def on_changes(self, changes: Changes) -> None:
        self._compare |= changes.everything
        for rows in (changes.keys, changes.nodes):
            self._waiting |= {row.id: row.revoked_at for row in rows if row.revoked_at is not None}
        if self._waiting or self._compare:
            self._wanted.set()

    async def run(self) -> None:
        """Do what changes ask for, until cancelled."""
        while True:
            if self._problem:
                await asyncio.sleep(self._retry_seconds)
            else:
                try:
                    async with asyncio.timeout(REFRESH_SECONDS):
                        await self._wanted.wait()
                except TimeoutError:
                    self._compare = True
            await self._work()

    async def _work(self) -> None:
        self._wanted.clear()
        try:
            if self._compare:
                await self._compare_all()
                self._compare = False
            waiting = self._waiting
            if waiting:
                self._waiting = {}
                try:
                    await self._cache.add_revoked(waiting)
                except BaseException:
                    self._waiting = waiting | self._waiting
                    raise
        except (BackendError, TimeoutError) as error:
            store, cache = self._outages
            outage = store if isinstance(error, StoreError) else cache
            told = outage, outage.over
            if told != self._told:
                self._told = told
                reason = str(error) or "it does not answer"
                outage.note(
                    log,
                    "revocations can't be compared with the cache: a store put back from a backup "
                    "may have keys that were revoked; it is tried again",
                    reason=reason,
                )
            self._problem = True
        else:
            self._problem, self._told = False, None

    async def _compare_all(self) -> None:
        again = await merge_revocations(self._database, self._cache)
        if again:
            log.warning(
                "the store is from a backup: what was revoked since is revoked again",
                extra={"count": len(again), "ids": again[:20]},
            )
        since = self._clock() - KEEP_REVOKED_SECONDS
        self._waiting |= await newest_revoked(self._database, since)
