"""The backlog in the store, counted for metrics, at most every ``COUNT_SECONDS``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from fabric_server.storage.jobs import JobStore
from fabric_server.storage.webhooks import WebhookStore
from runtime.errors import BackendError

COUNT_SECONDS = 10.0
STORE_SECONDS = 2.0


class Backlog:
    """The backlog of all servers; empty while the store is away."""

    def __init__(self, jobs: JobStore, webhooks: WebhookStore, clock: Callable[[], float]) -> None:
        self._jobs = jobs
        self._webhooks = webhooks
        self._clock = clock
        self._next = 0.0
        self.queued: Mapping[str, int] = {}
        """Queued jobs by kind: ``job`` or ``line``."""
        self.webhooks: int | None = None
        """Webhook deliveries that are still to be made."""

    async def count(self) -> None:
        """Count the backlog, unless the last count is recent.  Raises nothing."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + COUNT_SECONDS
        try:
            async with asyncio.timeout(STORE_SECONDS):
                jobs, lines = await self._jobs.count_queued()
                self.webhooks = await self._webhooks.count()
                self.queued = {"job": jobs, "line": lines}
        except (BackendError, TimeoutError):  # reported by the store's own metrics
            self.queued, self.webhooks = {}, None
