"""Periodic upkeep of the store: old heartbeats are deleted, silent nodes marked offline."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from runtime.errors import StoreError
from runtime.outage import Outage

log = logging.getLogger("fabric.worker")

DAY = 86_400.0
INTERVAL_SECONDS = 60.0
"""Time between two deletions of old heartbeats."""
MAX_ROWS = 5_000
"""Heartbeats deleted at once, so that no transaction is long."""


class Tables(Protocol):
    """The part of the store that is kept in order."""

    async def delete_heartbeats(self, before: float, now: float, limit: int) -> bool:
        """Delete heartbeats that arrived before that time; True if there may be more."""

    async def mark_offline(self, unseen_since: float) -> list[str]:
        """Mark nodes without a heartbeat since then offline; return their ids."""


class Housekeeper:
    """Does what is due, one small step per call.  A store that is away delays it until later."""

    def __init__(
        self,
        tables: Tables,
        *,
        keep_heartbeats_days: float = 7.0,
        offline_seconds: float = 60.0,
        max_rows: int = MAX_ROWS,
        clock: Callable[[], float] = time.time,
        outage: Outage | None = None,
    ) -> None:
        self._tables = tables
        self._outage = outage or Outage("the store")
        self._keep_seconds = keep_heartbeats_days * DAY
        self._offline_seconds = offline_seconds
        self._max_rows = max_rows
        self._clock = clock
        self._delete_at = self._mark_at = clock()

    async def delete_old_heartbeats(self) -> None:
        now = self._clock()
        if _waits(self._delete_at, now, INTERVAL_SECONDS):
            return
        try:
            more = await self._tables.delete_heartbeats(
                now - self._keep_seconds, now, self._max_rows
            )
        except StoreError as error:
            self._outage.note(log, "old heartbeats were not deleted", reason=str(error))
            more = False
        # When there is more, go on after the next batch, not before it.
        self._delete_at = now if more else now + INTERVAL_SECONDS

    async def mark_silent_nodes_offline(self) -> None:
        """Call only when no heartbeats are waiting to be written."""
        now = self._clock()
        if _waits(self._mark_at, now, self._offline_seconds):
            return
        try:
            nodes = await self._tables.mark_offline(now - self._offline_seconds)
        except StoreError as error:
            self._outage.note(log, "nodes were not marked offline", reason=str(error))
        else:
            for node_id in nodes:
                log.info("node offline", extra={"node": node_id})
        self._mark_at = now + self._offline_seconds / 4


def _waits(at: float, now: float, longest: float) -> bool:
    """Return whether ``at`` is still to come; further away than that, the clock was set back."""
    return 0 < at - now <= longest
