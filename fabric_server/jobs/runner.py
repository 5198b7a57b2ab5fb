"""Runs jobs: claims them from the store, asks the gateway as their user would, stores what came.

A job that nobody had room for goes back into the queue, and so does one that is broken off by the
server's end.  When the server is killed its leases run out, and another one, or its next start,
runs the job again.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from msgspec.structs import replace

from fabric_server.auth.keys import Key, key_of
from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.jobs.internal_request import Answer, InternalClient, refused
from fabric_server.jobs.results import is_answer
from fabric_server.routing.criteria import Priority
from fabric_server.storage.jobs import JobFilter, JobRow, JobState, JobStore, Lane
from fabric_server.storage.rows import KeyRow
from fabric_server.storage.webhooks import WebhookRow
from runtime.errors import BackendError

log = logging.getLogger("fabric.jobs")

LEASE_SECONDS = 12.0
RENEW_SECONDS = 3.0
POLL_SECONDS = 1.0
"""How often the store is looked at for what other servers have taken or left."""
MIN_WAIT, MAX_WAIT = 1.0, 30.0
"""Seconds until a job is tried again that nobody had room for."""
MAX_RESTING = 1024
STORE_SECONDS = 30.0
"""So long a result is offered to a store that is away; the job is run again later."""


class Keys(Protocol):
    async def key_by_id(self, id: str) -> KeyRow | None: ...


@dataclass(slots=True, eq=False)
class Run:
    """A job that runs here."""

    job: JobRow
    request_id: str
    patient: bool
    """Whether it goes back into the queue when nobody has room for it."""
    task: asyncio.Task[None] | None = None
    cancelled: bool = False
    """By its user."""
    released: bool = False
    """For another server, which has more time."""
    retry_after: float | None = None
    """Seconds, when nobody had room for it."""
    ending: bool = False
    """Its result is being stored: too late for anything else."""


class Runner:
    def __init__(
        self,
        store: JobStore,
        keys: Keys,
        inside: InternalClient,
        *,
        rng: Random,
        jobs_at_once: int,
        lines_at_once: int,
        models: Callable[[], Collection[str]],
        must_wait: Callable[[Key], float],
        in_line: Callable[[str], bool],
        webhook: Callable[[JobRow, JobState, float, Answer], WebhookRow | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``models`` tells which are served here now, ``must_wait`` for how many seconds a key's
        limits let it ask nothing, ``in_line`` whether a request waits for a slot, ``webhook``
        makes what is to be told of a job's end.  ``clock`` is Unix seconds."""
        self.owner = f"server_{secrets.token_hex(8)}"
        self._store = store
        self._keys = keys
        self._inside = inside
        self._rng = rng
        self._jobs_at_once = jobs_at_once
        self._lines_at_once = lines_at_once
        self._models = models
        self._must_wait = must_wait
        self._in_line = in_line
        self._webhook = webhook
        self._clock = clock
        self._runs: dict[str, Run] = {}
        self._resting: dict[str, float] = {}
        """Keys for which nothing is taken up until then: it would be refused, and put back."""
        self.ended: Counter[tuple[str, str]] = Counter()
        """By kind, ``job`` or ``line``, and how; by this server since its start."""
        self._wake = asyncio.Event()
        self._draining = False
        self._problem = ""
        self._turn = 0
        self.on_line_end: Callable[[], None] = lambda: None
        """Called when a line has ended: it may have been its batch's last."""

    def __repr__(self) -> str:
        return f"<Runner {self.owner} running={len(self._runs)}>"

    @property
    def under_way(self) -> dict[str, int]:
        """By kind."""
        lines = sum(bool(run.job.batch) for run in self._runs.values())
        return {"job": len(self._runs) - lines, "line": lines}

    def running(self, id: str) -> Run | None:
        return self._runs.get(id)

    def wake(self) -> None:
        """There is something new in the queue."""
        self._wake.set()

    def drain(self) -> None:
        """Begin nothing new; what only waits for a slot goes back into the queue, to others."""
        self._draining = True
        for run in self._runs.values():
            idle = run.patient and not run.cancelled and self._in_line(run.request_id)
            if idle and run.task is not None:
                run.released = True
                run.task.cancel()

    async def run(self) -> None:
        """Until cancelled; what runs then goes back into the queue."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._renew_leases())
                group.create_task(self._take())
        finally:
            await self._break_off()

    # ── taking ────────────────────────────────────────────────────────────────────────────────

    async def _take(self) -> None:
        while True:
            self._wake.clear()
            if not self._draining:
                try:
                    await self._take_up()
                    self._well()
                except BackendError as error:
                    self._trouble(error)
            try:
                async with asyncio.timeout(POLL_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _take_up(self) -> None:
        store, now = self._store, self._clock()
        if self._problem:  # what runs here has outlasted the store's absence, and goes on
            await self._renew()
        for job in await store.requeue_expired(now):
            if job.cancel:
                await self._end(job, "cancelled", refused(cancelled()))
            else:
                log.warning("job failed", extra={"job": job.id, "reason": "servers died of it"})
                await self._end(job, "failed", refused(_given_up()))
        for job in await store.overdue(now):
            await self._end(job, "failed", refused(_overdue()))
        if not (self._room("") or self._room("batch")):
            return
        models = self._models()  # others' nodes are not ours
        if not models:
            return
        resting = self._resting = {k: until for k, until in self._resting.items() if until > now}
        runnable = JobFilter(models, resting)
        for lane, limit in self._shares(await store.lanes(runnable, now)):
            if self._draining:
                return
            for job in await store.claim(
                lane,
                self.owner,
                limit,
                runnable,
                now=now,
                lease_until=now + LEASE_SECONDS,
            ):
                self._begin(job, patient=True)

    def _room(self, batch: str) -> int:
        runs = (run for run in self._runs.values() if run.patient)
        taken = sum(bool(run.job.batch) == bool(batch) for run in runs)
        return (self._lines_at_once if batch else self._jobs_at_once) - taken

    def _shares(self, lanes: Sequence[Lane]) -> list[tuple[Lane, int]]:
        """How many of each lane are taken, so that none keeps others waiting."""
        shares = []
        self._turn += 1
        for kind in ("", "batch"):
            mine = [lane for lane in lanes if bool(lane.batch) == bool(kind)]
            room = self._room(kind)
            if not mine or room <= 0:
                continue
            at = self._turn % len(mine)
            mine = (mine[at:] + mine[:at])[:room]
            shares += [(lane, max(1, room // len(mine))) for lane in mine]
        return shares

    # ── running ───────────────────────────────────────────────────────────────────────────────

    def start(self, job: JobRow) -> Run:
        """Run a job now that was stored as this server's; it fails when nobody has room for it."""
        return self._begin(job, patient=False)

    def mine(self, job: JobRow) -> JobRow:
        """A new job as this server's own from the beginning, to be given to ``start``."""
        now = self._clock()
        return replace(
            job,
            state="running",
            owner=self.owner,
            lease_until=now + LEASE_SECONDS,
            starts=1,
            started_at=now,
        )

    def _begin(self, job: JobRow, *, patient: bool) -> Run:
        run = Run(job, self._inside.new_id(), patient)
        self._runs[job.id] = run
        run.task = asyncio.get_running_loop().create_task(self._run(run))
        return run

    async def _run(self, run: Run) -> None:
        job = run.job
        try:
            answer = await self._ask(run)
            run.retry_after = answer.retry_after
            now = self._clock()
            if run.patient and answer.busy and now < job.expires_at:
                wait = min(max(answer.retry_after or MIN_WAIT, MIN_WAIT), MAX_WAIT)
                limited = answer.code == errors.RATE_LIMITED
                self._rest(job.key_id, now + (wait if limited else MIN_WAIT))
                if not limited:
                    wait *= 0.75 + self._rng.random() / 2  # not all of them at once
                await self._store.requeue(job, now + wait)
            else:
                good = 200 <= answer.status < 300
                if good and not job.batch and not is_answer(answer.body):
                    answer, good = refused(_unreadable(), run.request_id), False
                run.ending = True
                await self._end_surely(job, "done" if good else "failed", answer)
        except asyncio.CancelledError:
            if not run.cancelled and not run.released:
                raise  # the server ends, or another one has the job
            assert run.task is not None
            run.task.uncancel()
            if run.released:
                await self._release(job)
                return
            run.ending = True
            await self._end_surely(job, "cancelled", refused(cancelled(), run.request_id))
        except BackendError as error:
            self._trouble(error)  # its lease runs out
        except Exception:
            log.exception("job failed", extra={"job": job.id})
            await self._end_surely(job, "failed", refused(_defect(), run.request_id))
        finally:
            if self._runs.get(job.id) is run:
                del self._runs[job.id]
            self.wake()
            if job.batch:
                self.on_line_end()

    async def _release(self, job: JobRow) -> None:
        try:
            await self._store.requeue(job, 0.0)
        except BackendError as error:
            self._trouble(error)  # its lease runs out

    def _rest(self, key_id: str, until: float) -> None:
        """Or its jobs are taken up, refused and put back as fast as the store can, all of them."""
        if key_id in self._resting or len(self._resting) < MAX_RESTING:
            self._resting[key_id] = max(until, self._resting.get(key_id, 0.0))

    async def _ask(self, run: Run) -> Answer:
        job = run.job
        row = await self._keys.key_by_id(job.key_id)
        state = "revoked" if row is None else row.state(self._clock())
        if row is None or state != "good" or row.management:
            return refused(_no_key(state), run.request_id)
        left = job.expires_at - self._clock()
        if left <= 0:
            return refused(_overdue(), run.request_id)
        key = key_of(row)
        if run.patient and (seconds := self._must_wait(key)):  # no request yet: none in the ledger
            return refused(_not_yet(seconds), run.request_id)
        return await self._inside.ask(
            key,
            job.path,
            job.body,
            request_id=run.request_id,
            priority=Priority(job.priority),
            seconds=left,
        )

    async def _end_surely(self, job: JobRow, state: JobState, answer: Answer) -> None:
        """A result has cost somebody's GPU: it is not thrown away because the store is away."""
        give_up = asyncio.get_running_loop().time() + STORE_SECONDS
        while True:
            try:
                await self._end(job, state, answer)
                return
            except BackendError:
                if asyncio.get_running_loop().time() >= give_up:
                    raise
                await asyncio.sleep(1.0)

    async def _end(self, job: JobRow, state: JobState, answer: Answer) -> bool:
        now = self._clock()
        ended = replace(
            job,
            state=state,
            status=answer.status,
            answer=answer.body,
            finished_at=now,
            request_id=answer.request_id,
        )
        webhook = self._webhook(job, state, now, answer) if job.webhook else None
        held = await self._store.finish(ended, webhook)
        if held:
            self.ended["line" if job.batch else "job", state] += 1
        else:
            log.info("job ended elsewhere", extra={"job": job.id})
        return held

    async def cancel(self, job: JobRow) -> None:
        """Whatever state it is in; one that has ended stays as it is."""
        if job.state == "queued" and await self._end(job, "cancelled", refused(cancelled())):
            return
        run = self._runs.get(job.id)
        if run is None or run.task is None:
            await self._store.cancel(job)
        else:
            self.stop(run)
            await asyncio.wait([run.task], timeout=STORE_SECONDS)

    def stop(self, run: Run) -> None:
        """Its user does not want it any more."""
        if run.task is not None and not (run.cancelled or run.released or run.ending):
            run.cancelled = True
            run.task.cancel()

    # ── leases ────────────────────────────────────────────────────────────────────────────────

    async def _renew_leases(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                await self._renew()
            except BackendError as error:
                self._trouble(error)

    async def _renew(self) -> None:
        if not self._runs:
            return
        before = dict(self._runs)
        held = await self._store.renew(self.owner, before, self._clock() + LEASE_SECONDS)
        for id, run in before.items():
            starts, cancel = held.get(id, (0, False))
            if self._runs.get(id) is not run or run.task is None or run.ending:
                continue
            if starts != run.job.starts:
                log.warning("job lost to another server", extra={"job": id})
                run.task.cancel()
            elif cancel:
                self.stop(run)

    async def _break_off(self) -> None:
        """The server ends: others, or its next start, take up what runs."""
        ending = [run.task for run in self._runs.values() if run.ending and run.task is not None]
        if ending:  # they are done but for the store's word
            await asyncio.wait(ending, timeout=LEASE_SECONDS)
        runs = [run for run in self._runs.values() if run.task is not None]
        for run in runs:
            assert run.task is not None
            run.task.cancel()
        await asyncio.gather(*(run.task for run in runs if run.task), return_exceptions=True)
        for run in runs:
            try:
                await self._store.requeue(run.job, 0.0)
            except BackendError as error:
                self._trouble(error)
                return  # their leases run out

    def _trouble(self, error: BackendError) -> None:
        if str(error) != self._problem:
            self._problem = str(error)
            log.warning("jobs wait for the store", extra={"reason": self._problem})

    def _well(self) -> None:
        if self._problem:
            self._problem = ""
            log.info("jobs go on")


def cancelled() -> ApiError:
    return ApiError(499, "cancelled", "The job was cancelled.")


def _given_up() -> ApiError:
    words = "The job was begun several times, and each time its server ended before it."
    return ApiError(500, "job_given_up", words, type="server_error")


def _not_yet(seconds: float) -> ApiError:
    words = f"The key's limits let it ask nothing for {seconds:.3g} s."
    return ApiError(429, errors.RATE_LIMITED, words, retry_after=seconds)


def _unreadable() -> ApiError:
    return errors.upstream_error("The engine's answer is no chat completion.")


def _overdue() -> ApiError:
    return ApiError(504, "job_timeout", "The job was not done in its time.", type="server_error")


def _defect() -> ApiError:
    return ApiError(500, "internal_error", "The server failed.", type="server_error")


def _no_key(state: str) -> ApiError:
    words = f"The API key that the job was submitted with is {state.replace('_', ' ')}."
    if state == "account_disabled":
        return errors.account_disabled()
    return ApiError(401, "key_withdrawn", words, type="authentication_error")
