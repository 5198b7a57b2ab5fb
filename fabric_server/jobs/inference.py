"""``/inference``: requests that have a name, can be left alone, looked up later, and cancelled."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from urllib.parse import unquote

import msgspec
from msgspec import Struct

from fabric_server.auth.keys import Accounts, Key
from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.edge.request import Headers, Request
from fabric_server.gateway.authenticate import authenticate
from fabric_server.gateway.options import refuse_regions
from fabric_server.jobs.results import answer_of, error_of
from fabric_server.jobs.runner import Run, Runner
from fabric_server.jobs.store_errors import StoreErrors
from fabric_server.jobs.submission import MAX_BODY, PATH, Submission, read_body, read_submission
from fabric_server.jobs.webhooks import Webhooks
from fabric_server.routing.admission import Admission
from fabric_server.routing.criteria import Priority
from fabric_server.storage.jobs import JobRow, JobStore

MAX_LISTED = 100
LOOK_SECONDS = 0.5
"""How often the end of a job is looked for that runs on another server."""
_json = msgspec.json.Encoder().encode


class Asked(Struct, frozen=True):
    """What a job's user is told back."""

    metadata: dict[str, Any]
    timeout: float
    """Milliseconds."""


class Inference:
    def __init__(
        self,
        store: JobStore,
        accounts: Accounts,
        admission: Admission,
        runner: Runner,
        webhooks: Webhooks,
        *,
        models: Callable[[], Mapping[str, bool]],
        known: Callable[[str], Awaitable[bool]],
        most: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``models`` tells the models there are, and whether each has a free slot; ``known``
        whether there is one of a name, though perhaps not now; ``most`` is how many unfinished
        jobs an account may have."""
        self._store = store
        self._accounts = accounts
        self._admission = admission
        self._runner = runner
        self._webhooks = webhooks
        self._models = models
        self._known = known
        self._most = most
        self._clock = clock

    def add_to(self, public: StoreErrors) -> None:
        public.add("POST", "/inference", self.submit)
        public.add("GET", "/inference/models", self.list_models)
        public.add("GET", "/inference/queue", self.show_queue)
        public.add("GET", "/inference/*", self.show)
        public.add("DELETE", "/inference/*", self.cancel)

    # ── submitting ────────────────────────────────────────────────────────────────────────────

    async def submit(self, request: Request) -> None:
        key = await authenticate(self._accounts, request)
        refuse_regions(request.headers)
        data = await read_body(request.body, MAX_BODY)
        asked = read_submission(data)
        if not key.allows(asked.model):
            raise errors.model_not_allowed(asked.model)
        if not await self._known(asked.model):
            raise errors.model_not_found(asked.model)
        secret = ""
        job = self._job(key, asked, data)
        if asked.webhook is not None:
            job, secret = await self._webhooks.wanted(job, asked.webhook)
        if not asked.asynchronous:
            job = self._runner.mine(job)
        stored = await self._store.add(job, max_unfinished=self._most)
        if stored is None:
            raise _too_many(self._most)
        if stored.digest != job.digest:
            raise _name_taken(job.name)
        fresh = stored.id == job.id
        if asked.asynchronous:
            self._runner.wake()
            view = self._state(stored)
            if fresh and secret:
                view["webhook"] = {"secret": secret}
            request.respond(202, _json(view))
            return
        run = self._runner.start(stored) if fresh else self._runner.running(stored.id)
        ended = await self._await(stored, run, mine=fresh, seconds=asked.seconds)
        if ended.state == "done":
            request.respond(200, _json(self._result(ended)))
            return
        headers: Headers = []
        if run is not None and run.retry_after is not None:
            headers.append((b"retry-after", b"%d" % max(1, round(run.retry_after))))
        request.respond(ended.status, ended.answer, headers)

    def _job(self, key: Key, asked: Submission, data: bytes) -> JobRow:
        now = self._clock()
        id = f"job_{int(now * 1000):011x}{secrets.token_hex(6)}"
        told = Asked(asked.metadata, asked.seconds * 1000)
        return JobRow(
            id=id,
            account=key.account,
            key_id=key.id,
            name=asked.id or id,
            path=PATH,
            model=asked.model,
            body=asked.question(),
            digest=sha256(_json(msgspec.json.decode(data))).digest(),
            asked=_json(told).decode(),
            priority=asked.rank,
            created_at=now,
            expires_at=now + asked.seconds,
        )

    async def _await(self, job: JobRow, run: Run | None, *, mine: bool, seconds: float) -> JobRow:
        """The job once it has ended.  The user who hangs up on what is ``mine`` alone ends it."""
        try:
            if run is not None and run.task is not None:
                await asyncio.wait([run.task])
            give_up = self._clock() + seconds
            while True:
                found = await self._store.find(job.account, job.name)
                if found is None or (not found.finished and self._clock() >= give_up):
                    raise ApiError(504, "job_timeout", "The job was not done in its time.")
                if found.finished:
                    return found
                await asyncio.sleep(LOOK_SECONDS)
        except asyncio.CancelledError:
            if mine and run is not None:
                self._runner.stop(run)
            raise

    # ── looking and cancelling ────────────────────────────────────────────────────────────────

    async def show(self, request: Request) -> None:
        job, state_only = await self._find(request)
        if state_only or not job.finished:
            request.respond(200, _json(await self._with_position(job)))
        elif job.state == "done":
            request.respond(200, _json(self._result(job)))
        else:
            request.respond(200, _json(self._state(job)))

    async def cancel(self, request: Request) -> None:
        job, state_only = await self._find(request)
        if state_only:
            raise errors.wrong_method("DELETE", request.path, "GET")
        if not job.finished:
            await self._runner.cancel(job)
            job = await self._store.find(job.account, job.name) or job
        if job.state == "running":  # at another server, which hears of it in a moment
            view = {"id": job.name, "status": "cancelling", "timestamp": self._now()}
            request.respond(202, _json(view))
        elif job.state == "cancelled":
            view = {"id": job.name, "status": "cancelled", "timestamp": self._now()}
            request.respond(200, _json(view))
        else:
            raise ApiError(409, "job_ended", f"The job '{job.name}' has ended: it is {job.state}.")

    async def _find(self, request: Request) -> tuple[JobRow, bool]:
        """The job that a path names, and whether only its state is asked for."""
        key = await authenticate(self._accounts, request)
        name = unquote(request.path.removeprefix("/inference/"))
        rest = name.removesuffix("/status")
        job = await self._store.find(key.account, rest)
        if job is None:
            raise ApiError(404, "job_not_found", f"There is no job '{rest}'.", param="id")
        return job, rest != name

    async def list_models(self, request: Request) -> None:
        key = await authenticate(self._accounts, request)
        models = [
            {"name": name, "available": free}
            for name, free in sorted(self._models().items())
            if key.allows(name)
        ]
        view = {"models": models, "count": len(models), "timestamp": self._now()}
        request.respond(200, _json(view))

    async def show_queue(self, request: Request) -> None:
        key = await authenticate(self._accounts, request)
        jobs = await self._store.unfinished(key.account, limit=MAX_LISTED)
        ahead = await self._store.queue_positions(key.account, limit=MAX_LISTED)
        queued, running = await self._store.count()
        waiting = [self._placed(job, ahead.get(job.id, 0)) for job in jobs if job.state == "queued"]
        active = [self._placed(job, 0) for job in jobs if job.state == "running"]
        waiting += [view for view in active if view["status"] == "queued"]
        active = [view for view in active if view["status"] != "queued"]
        view = {
            "queue": {"count": len(waiting), "jobs": waiting},
            "active": {"count": len(active), "jobs": active},
            "total": {"queued": queued, "running": running},
            "timestamp": self._now(),
        }
        request.respond(200, _json(view))

    # ── how they are told ─────────────────────────────────────────────────────────────────────

    async def _with_position(self, job: JobRow) -> dict[str, Any]:
        ahead = await self._store.queue_position(job) if job.state == "queued" else 0
        return self._placed(job, ahead)

    def _placed(self, job: JobRow, ahead: int) -> dict[str, Any]:
        """1 is next.  Who is in the model's line comes before all that are only in the store,
        ``ahead`` of this one or not."""
        view = self._state(job)
        run = self._runner.running(job.id)
        if job.state == "queued":
            line = sum(one.length for one in self._admission.queues() if one.model == job.model)
            view["position"] = line + ahead + 1
        elif run is not None and (place := self._admission.position(run.request_id)) is not None:
            view["status"], view["position"] = "queued", place
        return view

    def _state(self, job: JobRow) -> dict[str, Any]:
        asked = msgspec.json.decode(job.asked, type=Asked)
        view: dict[str, Any] = {
            "id": job.name,
            "model": job.model,
            "status": "processing" if job.state == "running" else job.state,
            "priority": Priority(job.priority).name.lower(),
            "created_at": _time(job.created_at),
            "timeout": asked.timeout,
            "metadata": asked.metadata,
            "timestamp": self._now(),
        }
        if job.state == "running" and job.started_at is not None:
            view["assignedAt"] = _time(job.started_at)
        if job.finished_at is not None:
            view["finished_at"] = _time(job.finished_at)
            if job.state != "done":
                view["error"] = error_of(job)
        return view

    def _result(self, job: JobRow) -> dict[str, Any]:
        asked = msgspec.json.decode(job.asked, type=Asked)
        return {
            "id": job.name,
            "model": job.model,
            "created_at": _time(job.created_at),
            **answer_of(job),
            "done": True,
            "metadata": asked.metadata,
            "request_id": job.request_id,
            "timestamp": self._now(),
        }

    def _now(self) -> str:
        return _time(self._clock())


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _too_many(most: int) -> ApiError:
    words = f"This account has {most} unfinished jobs already. Wait for some, or cancel them."
    return ApiError(429, "too_many_jobs", words, type="rate_limit_error", retry_after=30.0)


def _name_taken(name: str) -> ApiError:
    words = f"There is another job with the id '{name}': what was submitted then is not the same."
    return ApiError(409, "job_exists", words, param="id")
