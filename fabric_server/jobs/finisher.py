"""The end of a job: its result, and the webhook about it, are stored together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable

from msgspec.structs import replace

from fabric_server.jobs.internal_request import InternalResponse
from fabric_server.jobs.webhooks import Webhooks
from fabric_server.storage.jobs import JobRow, JobState, JobStore
from runtime.errors import BackendError

log = logging.getLogger("fabric.jobs")

STORE_SECONDS = 30.0
"""Time for which storing a result is retried; after it, the job runs again."""


class JobFinisher:
    """Stores how jobs end."""

    def __init__(
        self,
        store: JobStore,
        webhooks: Webhooks,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._webhooks = webhooks
        self._clock = clock
        self.ended: Counter[tuple[str, str]] = Counter()
        """Jobs ended by this server since its start, by kind (``job`` or ``line``) and state."""

    async def finish(self, job: JobRow, state: JobState, response: InternalResponse) -> bool:
        """Store the result; False if the job is no longer this server's.

        Raises ``BackendError``.
        """
        now = self._clock()
        ended = replace(
            job,
            state=state,
            status=response.status,
            answer=response.body,
            finished_at=now,
            request_id=response.request_id,
        )
        webhook = self._webhooks.of_job(ended, now) if job.webhook else None
        held = await self._store.finish(ended, webhook)
        if held:
            self.ended["line" if job.batch else "job", state] += 1
        else:
            log.info("job ended elsewhere", extra={"job": job.id})
        return held

    async def finish_persistently(
        self, job: JobRow, state: JobState, response: InternalResponse
    ) -> None:
        """Store the result, and retry for a while if the store is away.  Raises ``BackendError``.

        A result has cost GPU time, so a short outage must not lose it.
        """
        give_up = asyncio.get_running_loop().time() + STORE_SECONDS
        while True:
            try:
                await self.finish(job, state, response)
                return
            except BackendError:
                if asyncio.get_running_loop().time() >= give_up:
                    raise
                await asyncio.sleep(1.0)
