"""The JSON of jobs on ``/inference``: state, position in the queue, and result."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from fabric_server.jobs.results import answer_of, error_of
from fabric_server.jobs.runner import RunningJob
from fabric_server.routing.criteria import Priority
from fabric_server.routing.queues import QueueStats
from fabric_server.storage.jobs import JobRow


class Submitted(Struct, frozen=True):
    """Fields of a submission that are stored only to be returned."""

    metadata: dict[str, Any]
    timeout: float
    """Milliseconds."""


class Admission(Protocol):
    def queues(self) -> Sequence[QueueStats]: ...
    def position(self, request_id: str) -> int | None: ...


class JobViews:
    """Describes jobs, with what this server knows of those that run here."""

    def __init__(
        self,
        running: Callable[[str], RunningJob | None],
        admission: Admission,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``running`` finds a job that runs here by its id."""
        self._running = running
        self._admission = admission
        self._clock = clock

    def now(self) -> str:
        """Return the time as ISO 8601, as in every ``timestamp``."""
        return _time(self._clock())

    def state(self, job: JobRow) -> dict[str, Any]:
        """Describe a job without its result."""
        submitted = msgspec.json.decode(job.asked, type=Submitted)
        view: dict[str, Any] = {
            "id": job.name,
            "model": job.model,
            "status": "processing" if job.state == "running" else job.state,
            "priority": Priority(job.priority).name.lower(),
            "created_at": _time(job.created_at),
            "timeout": submitted.timeout,
            "metadata": submitted.metadata,
            "timestamp": self.now(),
        }
        if job.variant_quantization:
            view["quantization"] = job.variant_quantization
        if job.variant_digest:
            view["digest"] = job.variant_digest
        if job.state == "running" and job.started_at is not None:
            view["assignedAt"] = _time(job.started_at)
        if job.finished_at is not None:
            view["finished_at"] = _time(job.finished_at)
            if job.state != "done":
                view["error"] = error_of(job)
        return view

    def with_position(self, job: JobRow, ahead: int) -> dict[str, Any]:
        """Describe an unfinished job with its position, of which 1 is next.

        ``ahead`` counts the queued jobs before it in the store.  Requests in the model's queue on
        this server come before all of those.
        """
        view = self.state(job)
        run = self._running(job.id)
        if job.state == "queued":
            queued = sum(one.length for one in self._admission.queues() if one.model == job.model)
            view["position"] = queued + ahead + 1
        elif run is not None and (place := self._admission.position(run.request_id)) is not None:
            view["status"], view["position"] = "queued", place
        return view

    def result(self, job: JobRow) -> dict[str, Any]:
        """Describe a job that has succeeded, with its result."""
        submitted = msgspec.json.decode(job.asked, type=Submitted)
        return {
            "id": job.name,
            "model": job.model,
            "created_at": _time(job.created_at),
            **answer_of(job),
            "done": True,
            "metadata": submitted.metadata,
            "request_id": job.request_id,
            "timestamp": self.now(),
        }


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
