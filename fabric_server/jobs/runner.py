"""Runs jobs: claims them from the store, sends their requests, and stores the results.

A job that found no capacity goes back into the queue, and so does one that is interrupted by the
end of the server.  If the server is killed, its leases expire, and another server, or its own next
start, runs the job again.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from msgspec.structs import replace

from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.jobs.executor import JobExecutor, job_timeout
from fabric_server.jobs.finisher import STORE_SECONDS, JobFinisher
from fabric_server.jobs.internal_request import error_response
from fabric_server.jobs.lease_clock import LeaseClock
from fabric_server.jobs.outage import OutageLog
from fabric_server.jobs.results import is_answer
from fabric_server.jobs.scheduler import Scheduler
from fabric_server.storage.jobs import JobFilter, JobRow, JobStore
from runtime.errors import BackendError
from runtime.outage import Outage

log = logging.getLogger("fabric.jobs")

LEASE_SECONDS = 12.0
RENEW_SECONDS = 3.0
POLL_SECONDS = 1.0
"""Interval at which the store is polled for new jobs and jobs whose servers were lost."""


class Models(Protocol):
    def names(self) -> Collection[str]: ...


@dataclass(slots=True, eq=False)
class RunningJob:
    """A job that runs on this server."""

    job: JobRow
    request_id: str
    claimed: bool
    """Claimed from the queue, to which it returns when it finds no capacity."""
    task: asyncio.Task[None] | None = None
    cancelled: bool = False
    """Cancelled by its account."""
    released: bool = False
    """Put back for other servers, because this one drains."""
    retry_after: float | None = None
    """Seconds, when it found no capacity."""
    finishing: bool = False
    """Storing its result: it can be neither cancelled nor released any more."""


class Runner:
    """Runs this server's share of the queue, and the jobs that clients wait for."""

    def __init__(
        self,
        store: JobStore,
        executor: JobExecutor,
        finisher: JobFinisher,
        scheduler: Scheduler,
        models: Models,
        *,
        outage: Outage | None = None,
    ) -> None:
        self.owner = f"server_{secrets.token_hex(8)}"
        """The name under which this server holds leases."""
        self.lease_clock = LeaseClock(store.now)
        """The time by which leases begin and end."""
        self._store = store
        self._executor = executor
        self._finisher = finisher
        self._scheduler = scheduler
        self._models = models
        self._running: dict[str, RunningJob] = {}
        self._wake = asyncio.Event()
        self._draining = False
        self._outage = OutageLog(log, "jobs wait for the store", outage)
        self.on_line_end: Callable[[], None] = lambda: None
        """Called when a batch line has ended: it may be the last of its batch."""

    def __repr__(self) -> str:
        return f"<Runner {self.owner} running={len(self._running)}>"

    @property
    def under_way(self) -> dict[str, int]:
        """Jobs that run here, by kind: ``job`` or ``line``."""
        return _count(self._running.values())

    def running(self, id: str) -> RunningJob | None:
        """Return a job that runs here."""
        return self._running.get(id)

    def wake(self) -> None:
        """Look for jobs now: something was added to the queue."""
        self._wake.set()

    def drain(self) -> None:
        """Claim no more jobs, and put back those that only wait for a slot."""
        self._draining = True
        for run in self._running.values():
            waits = run.claimed and not run.cancelled and self._executor.is_queued(run.request_id)
            if waits and run.task is not None:
                run.released = True
                run.task.cancel()

    async def run(self) -> None:
        """Run jobs until cancelled; those that run then are put back into the queue."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._renew_leases())
                group.create_task(self._claim_jobs())
        finally:
            await self._put_all_back()

    # ── claiming ──────────────────────────────────────────────────────────────────────────────

    async def _claim_jobs(self) -> None:
        while True:
            self._wake.clear()
            if not self._draining:
                try:
                    await self._claim_once()
                    self._outage.recovered()
                except BackendError as error:
                    self._outage.failed(error)
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._wake.wait()

    async def _claim_once(self) -> None:
        store, now = self._store, time.time()
        moved = await self.lease_clock.refresh()
        if moved or self._outage.ongoing:
            # Before `requeue_expired`: jobs that ran on through the outage must keep their leases,
            # and so must all that run while the clock is set.
            await self._renew()
        for job in await store.requeue_expired(self.lease_clock.now()):
            if job.cancel:
                await self._finisher.finish(job, "cancelled", error_response(_cancelled()))
            else:
                reason = "each server that ran it was lost"
                log.warning("job failed", extra={"job": job.id, "reason": reason})
                await self._finisher.finish(job, "failed", error_response(_given_up()))
        for job in await store.overdue(now):
            await self._finisher.finish(job, "failed", error_response(job_timeout()))
        running = self._claimed()
        if not self._scheduler.has_room(running):
            return
        models = self._models.names()
        if not models:
            return
        runnable = JobFilter(models, self._scheduler.backed_off(now))
        lanes = await store.lanes(runnable, now)
        for lane, limit in self._scheduler.share(lanes, self._claimed()):
            if self._draining:
                return
            for job in await store.claim(
                lane,
                self.owner,
                limit,
                runnable,
                now=now,
                lease_until=self._lease_end(),
            ):
                self._begin(job, claimed=True)

    def _claimed(self) -> dict[str, int]:
        """Count the running jobs that take room from the queue, by kind."""
        return _count(run for run in self._running.values() if run.claimed)

    # ── running ───────────────────────────────────────────────────────────────────────────────

    def lease(self, job: JobRow) -> JobRow:
        """Return a new job as leased by this server from the beginning, for ``start``."""
        now = time.time()
        return replace(
            job,
            state="running",
            owner=self.owner,
            lease_until=self._lease_end(),
            starts=1,
            started_at=now,
        )

    def start(self, job: JobRow) -> RunningJob:
        """Run a job now that was stored with this server's lease; without capacity, it fails."""
        return self._begin(job, claimed=False)

    def _begin(self, job: JobRow, *, claimed: bool) -> RunningJob:
        run = RunningJob(job, self._executor.new_request_id(), claimed)
        self._running[job.id] = run
        run.task = asyncio.get_running_loop().create_task(self._run(run))
        return run

    async def _run(self, run: RunningJob) -> None:
        job = run.job
        try:
            await self._execute(run)
        except asyncio.CancelledError:
            if not run.cancelled and not run.released:
                raise  # the server ends, or the lease is lost
            assert run.task is not None
            run.task.uncancel()
            if run.released:
                await self._put_back(job)
                return
            run.finishing = True
            response = error_response(_cancelled(), run.request_id)
            await self._finisher.finish_persistently(job, "cancelled", response)
        except BackendError as error:
            self._outage.failed(error)  # the lease expires
        except Exception:
            log.exception("job failed", extra={"job": job.id})
            response = error_response(_internal_error(), run.request_id)
            await self._finisher.finish_persistently(job, "failed", response)
        finally:
            if self._running.get(job.id) is run:
                del self._running[job.id]
            self.wake()
            if job.batch:
                self.on_line_end()

    async def _execute(self, run: RunningJob) -> None:
        """Send the job's request, and store the result or put the job back."""
        job = run.job
        response = await self._executor.execute(job, run.request_id, respect_limits=run.claimed)
        run.retry_after = response.retry_after
        now = time.time()
        if run.claimed and response.busy and now < job.expires_at:
            await self._store.requeue(job, self._scheduler.retry_at(job.key_id, response, now))
            return
        good = 200 <= response.status < 300
        if good and not job.batch and not is_answer(response.body):
            response, good = error_response(_unreadable(), run.request_id), False
        run.finishing = True
        await self._finisher.finish_persistently(job, "done" if good else "failed", response)

    async def _put_back(self, job: JobRow) -> None:
        try:
            await self._store.requeue(job, 0.0)
        except BackendError as error:
            self._outage.failed(error)  # the lease expires

    # ── cancelling ────────────────────────────────────────────────────────────────────────────

    async def cancel(self, job: JobRow) -> None:
        """Cancel a job, queued or running, here or on another server.  Raises ``BackendError``.

        A job that has ended stays as it is.
        """
        if job.state == "queued":
            response = error_response(_cancelled())
            if await self._finisher.finish(job, "cancelled", response):
                return
        run = self._running.get(job.id)
        if run is None or run.task is None:
            await self._store.cancel(job)
        else:
            self.cancel_running(run)
            await asyncio.wait([run.task], timeout=STORE_SECONDS)

    def cancel_running(self, run: RunningJob) -> None:
        """Cancel a job that runs here, unless it ends already."""
        if run.task is not None and not (run.cancelled or run.released or run.finishing):
            run.cancelled = True
            run.task.cancel()

    # ── leases ────────────────────────────────────────────────────────────────────────────────

    def _lease_end(self) -> float:
        return self.lease_clock.now() + LEASE_SECONDS

    async def _renew_leases(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                await self._renew()
            except BackendError as error:
                self._outage.failed(error)

    async def _renew(self) -> None:
        if not self._running:
            return
        before = dict(self._running)
        held = await self._store.renew(self.owner, before, self._lease_end())
        for id, run in before.items():
            starts, cancel = held.get(id, (0, False))
            if self._running.get(id) is not run or run.task is None or run.finishing:
                continue
            if starts != run.job.starts:
                log.warning("job lost to another server", extra={"job": id})
                run.task.cancel()
            elif cancel:
                self.cancel_running(run)

    async def _put_all_back(self) -> None:
        """Put all running jobs back, for other servers or the next start of this one."""
        finishing = [
            run.task for run in self._running.values() if run.finishing and run.task is not None
        ]
        if finishing:  # their results only have to be stored
            await asyncio.wait(finishing, timeout=LEASE_SECONDS)
        runs = [run for run in self._running.values() if run.task is not None]
        for run in runs:
            assert run.task is not None
            run.task.cancel()
        await asyncio.gather(*(run.task for run in runs if run.task), return_exceptions=True)
        for run in runs:
            try:
                await self._store.requeue(run.job, 0.0)
            except BackendError as error:
                self._outage.failed(error)
                return  # their leases expire


def _count(runs: Iterable[RunningJob]) -> dict[str, int]:
    counts = {"job": 0, "line": 0}
    for run in runs:
        counts["line" if run.job.batch else "job"] += 1
    return counts


def _cancelled() -> ApiError:
    return ApiError(499, "cancelled", "The job was cancelled.")


def _given_up() -> ApiError:
    text = "The job was started several times, and each time its server was lost."
    return ApiError(500, "job_given_up", text, type="server_error")


def _unreadable() -> ApiError:
    return errors.upstream_error("The engine's response is not a chat completion.")


def _internal_error() -> ApiError:
    return ApiError(500, "internal_error", "The server failed.", type="server_error")
