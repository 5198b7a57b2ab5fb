"""Deletion of outdated rows: jobs, batches, and expired or unfinished files."""

from __future__ import annotations

import time
from collections.abc import Callable

from fabric_server.storage.batches import BatchStore
from fabric_server.storage.files import FileStore
from fabric_server.storage.jobs import JobStore

EVERY_SECONDS = 60.0
MAX_ENDED_JOBS = 10_000
"""Ended jobs of one account that are kept, whatever their age."""
UPLOAD_SECONDS = 3600.0
"""Maximum duration of an upload."""
BATCH_SECONDS = 30 * 86_400.0
"""Age at which an ended batch is deleted."""


class Retention:
    """Deletes outdated rows now and then."""

    def __init__(
        self,
        jobs: JobStore,
        batches: BatchStore,
        files: FileStore,
        *,
        result_seconds: float,
        max_result_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``max_result_bytes`` limits the stored results of one account, together."""
        self._jobs = jobs
        self._batches = batches
        self._files = files
        self._result_seconds = result_seconds
        self._max_result_bytes = max_result_bytes
        self._clock = clock
        self._next_at = 0.0
        """Seconds of the monotonic clock."""

    async def run_if_due(self) -> None:
        """Delete a limited number of outdated rows; the next call goes on if any were left."""
        if time.monotonic() < self._next_at:
            return
        now = self._clock()
        for id in await self._files.expired(now, now - UPLOAD_SECONDS):
            await self._files.delete(id)
        await self._batches.delete_old(now - BATCH_SECONDS)
        if not await self._jobs.delete_old(
            now - self._result_seconds, keep=MAX_ENDED_JOBS, size=self._max_result_bytes
        ):
            self._next_at = time.monotonic() + EVERY_SECONDS
