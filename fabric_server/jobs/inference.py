"""``/inference``: submits jobs, shows their state and results, and cancels them."""

from __future__ import annotations

import asyncio
import secrets
import time
from urllib.parse import unquote

import msgspec

from fabric_server.auth.keys import Key
from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.edge.request import Headers, Request
from fabric_server.gateway.options import allowed_priority, read_variant, refuse_regions
from fabric_server.jobs.job_views import JobViews, Submitted
from fabric_server.jobs.models import ServedModels
from fabric_server.jobs.routes import JobRoutes
from fabric_server.jobs.runner import Runner, RunningJob
from fabric_server.jobs.submission import (
    MAX_BODY,
    PATH,
    Submission,
    digest,
    read_body,
    read_submission,
)
from fabric_server.jobs.webhooks import Webhooks
from fabric_server.routing.variants import WantedVariant
from fabric_server.storage.jobs import JobRow, JobStore

MAX_LISTED = 100
POLL_SECONDS = 0.5
"""Interval at which a job that runs on another server is polled for its end."""
_json = msgspec.json.Encoder().encode


class Inference:
    """Handlers of ``/inference…``."""

    def __init__(
        self,
        store: JobStore,
        runner: Runner,
        webhooks: Webhooks,
        models: ServedModels,
        views: JobViews,
        *,
        max_unfinished: int,
    ) -> None:
        """``max_unfinished`` limits the unfinished jobs of one account."""
        self._store = store
        self._runner = runner
        self._webhooks = webhooks
        self._models = models
        self._views = views
        self._max_unfinished = max_unfinished

    def add_to(self, routes: JobRoutes) -> None:
        """Add the handlers to the public port."""
        routes.add("POST", "/inference", self.submit)
        routes.add("GET", "/inference/models", self.list_models)
        routes.add("GET", "/inference/queue", self.show_queue)
        routes.add("GET", "/inference/*", self.show)
        routes.add("DELETE", "/inference/*", self.cancel)

    # ── submitting ────────────────────────────────────────────────────────────────────────────

    async def submit(self, request: Request, key: Key) -> None:
        """Store a job; queue it if it is asynchronous, otherwise run it and wait for its end."""
        refuse_regions(request.headers)
        variant = read_variant(request.headers)
        data = await read_body(request.body, MAX_BODY)
        submission = read_submission(data)
        if not key.allows(submission.model):
            raise errors.model_not_allowed(submission.model)
        if not await self._models.is_known(submission.model):
            raise errors.model_not_found(submission.model)
        self._models.check_variant(submission.model, variant)
        secret = ""
        job = _new_job(key, submission, data, variant or WantedVariant())
        if submission.webhook is not None:
            job, secret = await self._webhooks.attach(job, submission.webhook)
        if not submission.asynchronous:
            job = self._runner.lease(job)
        stored = await self._store.add(job, max_unfinished=self._max_unfinished)
        if stored is None:
            raise _too_many(self._max_unfinished)
        if stored.digest != job.digest:
            raise _job_exists(job.name)
        created = stored.id == job.id
        if submission.asynchronous:
            self._runner.wake()
            view = self._views.state(stored)
            if created and secret:
                view["webhook"] = {"secret": secret}
            request.respond(202, _json(view))
            return
        run = self._runner.start(stored) if created else self._runner.running(stored.id)
        ended = await self._wait(stored, run, cancel=created, seconds=submission.seconds)
        if ended.state == "done":
            request.respond(200, _json(self._views.result(ended)))
            return
        headers: Headers = []
        if run is not None and run.retry_after is not None:
            headers.append((b"retry-after", b"%d" % max(1, round(run.retry_after))))
        request.respond(ended.status, ended.answer, headers)

    async def _wait(
        self, job: JobRow, run: RunningJob | None, *, cancel: bool, seconds: float
    ) -> JobRow:
        """Return the job once it has ended.

        With ``cancel``, it is cancelled when this call is, because its client disconnects.
        """
        try:
            if run is not None and run.task is not None:
                await asyncio.wait([run.task])
            give_up = time.monotonic() + seconds
            while True:
                found = await self._store.find(job.account, job.name)
                if found is None or (not found.finished and time.monotonic() >= give_up):
                    raise ApiError(504, "job_timeout", "The job did not finish in time.")
                if found.finished:
                    return found
                await asyncio.sleep(POLL_SECONDS)
        except asyncio.CancelledError:
            if cancel and run is not None:
                self._runner.cancel_running(run)
            raise

    # ── showing and cancelling ────────────────────────────────────────────────────────────────

    async def show(self, request: Request, key: Key) -> None:
        """Show a job's result, or its state while it is unfinished or at ``…/status``."""
        job, state_only = await self._find(request, key)
        if state_only or not job.finished:
            ahead = await self._store.queue_position(job) if job.state == "queued" else 0
            request.respond(200, _json(self._views.with_position(job, ahead)))
        elif job.state == "done":
            request.respond(200, _json(self._views.result(job)))
        else:
            request.respond(200, _json(self._views.state(job)))

    async def cancel(self, request: Request, key: Key) -> None:
        """Cancel a job; 202 while another server that runs it has still to be notified."""
        job, state_only = await self._find(request, key)
        if state_only:
            raise errors.wrong_method("DELETE", request.path, "GET")
        if not job.finished:
            await self._runner.cancel(job)
            job = await self._store.find(job.account, job.name) or job
        if job.state not in ("running", "cancelled"):
            text = f"The job '{job.name}' has ended already: it is {job.state}."
            raise ApiError(409, "job_ended", text)
        status, state = (202, "cancelling") if job.state == "running" else (200, "cancelled")
        view = {"id": job.name, "status": state, "timestamp": self._views.now()}
        request.respond(status, _json(view))

    async def _find(self, request: Request, key: Key) -> tuple[JobRow, bool]:
        """Return the job that the path names, and whether the path is that of its state."""
        path = unquote(request.path.removeprefix("/inference/"))
        name = path.removesuffix("/status")
        job = await self._store.find(key.account, name)
        if job is None:
            raise ApiError(404, "job_not_found", f"There is no job '{name}'.", param="id")
        return job, name != path

    async def list_models(self, request: Request, key: Key) -> None:
        """List the models that the key may call, and whether each has a free slot."""
        models = [
            {"name": name, "available": free}
            for name, free in sorted(self._models.availability().items())
            if key.allows(name)
        ]
        view = {"models": models, "count": len(models), "timestamp": self._views.now()}
        request.respond(200, _json(view))

    async def show_queue(self, request: Request, key: Key) -> None:
        """List the account's queued and running jobs, and count everybody's."""
        jobs = await self._store.unfinished(key.account, limit=MAX_LISTED)
        ahead = await self._store.queue_positions(key.account, limit=MAX_LISTED)
        queued, running = await self._store.count()
        waiting = [
            self._views.with_position(job, ahead.get(job.id, 0))
            for job in jobs
            if job.state == "queued"
        ]
        active = [self._views.with_position(job, 0) for job in jobs if job.state == "running"]
        waiting += [view for view in active if view["status"] == "queued"]
        active = [view for view in active if view["status"] != "queued"]
        view = {
            "queue": {"count": len(waiting), "jobs": waiting},
            "active": {"count": len(active), "jobs": active},
            "total": {"queued": queued, "running": running},
            "timestamp": self._views.now(),
        }
        request.respond(200, _json(view))


def _new_job(key: Key, submission: Submission, data: bytes, variant: WantedVariant) -> JobRow:
    now = time.time()
    id = f"job_{int(now * 1000):011x}{secrets.token_hex(6)}"
    submitted = Submitted(submission.metadata, submission.seconds * 1000)
    return JobRow(
        id=id,
        account=key.account,
        key_id=key.id,
        name=submission.id or id,
        path=PATH,
        model=submission.model,
        body=submission.chat_request(),
        digest=digest(data, b"" if variant == WantedVariant() else _json(variant)),
        asked=_json(submitted).decode(),
        priority=allowed_priority(submission.rank, key.priority),
        created_at=now,
        expires_at=now + submission.seconds,
        variant_quantization=variant.quantization,
        variant_digest=variant.digest,
    )


def _too_many(most: int) -> ApiError:
    text = f"This account has {most} unfinished jobs already. Wait for some, or cancel them."
    return ApiError(429, "too_many_jobs", text, type="rate_limit_error", retry_after=30.0)


def _job_exists(name: str) -> ApiError:
    text = f"The id '{name}' is taken by a job with other contents. Choose another id."
    return ApiError(409, "job_exists", text, param="id")
