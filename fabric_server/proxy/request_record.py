"""The record of one request: what is known of it so far, and its entry in the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import time
from typing import Any, Literal, Protocol

from fabric_server.auth.keys import Key
from fabric_server.auth.leases import Leases
from fabric_server.auth.rate_limits import RateLimits
from fabric_server.dialects.errors import ApiError
from fabric_server.dialects.fields import ParsedBody
from fabric_server.edge.request import Request
from fabric_server.metering.usage import BoundedUsage, EstimatedUsage, Usage
from fabric_server.proxy.attempt import Attempt
from fabric_server.proxy.ending import Ending
from fabric_server.proxy.failure_log import FailureLog
from fabric_server.proxy.metrics import Metrics
from fabric_server.routing.choice import Choice
from ledger.records import LEDGER, LedgerEntry
from protocol.errors import Code

MAX_ROUTE = 200
"""Characters of a route that the ledger keeps."""
RequestState = Literal["waiting", "asked", "answering"]
"""``waiting`` for its body or a slot; ``asked``: sent to an engine, no response byte yet."""

_UNREAD = ParsedBody("", False, False, None)
"""Stands for the body until it has been read."""


class Bus(Protocol):
    @property
    def full(self) -> bool: ...
    def publish(self, topic: str, record: LedgerEntry) -> None: ...


@dataclass(slots=True, eq=False)
class RequestRecord:
    """One request under way, as the ledger, the operator and the retry loop see it."""

    key: Key
    request: Request
    task: asyncio.Task[Any] | None
    """The task that answers the request."""
    parsed: ParsedBody = _UNREAD
    choice: Choice | None = None
    """The engine that is asked, or was asked last, and why it was chosen."""
    attempts: int = 0
    continued: int = 0
    """How many times the answer was continued on another node."""
    queued: float = 0.0
    """Seconds waited for slots, all attempts together."""
    first_byte_at: float | None = None
    """Event-loop seconds."""
    outcome: str = "failed"
    error: str | None = None
    """The code of the error that ended the request, or its last attempt."""
    usage: Usage | None = None
    """What is charged."""
    attempt: Attempt | None = None
    """The attempt under way."""
    cancelled_with: ApiError | None = None
    """Why the request was ended from outside."""
    written: bool = False
    """The ledger has its entry."""

    @property
    def state(self) -> RequestState:
        """Return how far the request has come.

        It answers also while it waits for the node that is to continue a broken answer.
        """
        attempt = self.attempt
        if self.first_byte_at is not None:
            return "answering"
        if attempt is None:
            return "waiting"
        return "asked" if attempt.first_byte_at is None else "answering"

    def set_attempt(self, attempt: Attempt) -> None:
        """Note whose answer is waited for now."""
        self.attempt, self.choice = attempt, attempt.choice

    def end_attempt(self, attempt: Attempt, ending: Ending) -> None:
        """Note how the attempt under way ended."""
        answer = attempt.answer
        self.attempt = None
        if not answer.is_rest:
            self.first_byte_at = attempt.first_byte_at
        elif answer.started:
            self.continued += 1
        self.outcome = ending.outcome
        self.error = ending.error.code if ending.error is not None else None
        if ending.code:
            self.error = Code.name_of(ending.code)

    def cancel(self, error: ApiError) -> None:
        """End the request, wherever it is: sending its body, waiting for a slot, or answered in
        part."""
        if self.cancelled_with is not None or self.written:
            return
        self.cancelled_with = error
        if self.attempt is not None:
            self.attempt.cancel_with(error)
        elif self.task is not None:
            self.task.cancel()

    def fail(self, error: BaseException) -> BaseException:
        """Note the exception that ended the request, and return the one that the client is to get:
        another one only where ``cancel`` has cancelled the task."""
        response = self.request.response
        if isinstance(error, ApiError):
            if self.outcome == "failed" and not self.error:
                self.outcome = "refused"
            self.error = self.error or error.code
            if not response.comments_sent:  # otherwise the error is an event of a stream, 200
                response.status = error.status
        elif isinstance(error, asyncio.CancelledError):
            self.outcome = "cancelled"
            if self.cancelled_with is not None and self.task is not None:
                self.task.uncancel()
                self.error = self.cancelled_with.code
                response.status = self.cancelled_with.status
                return self.cancelled_with
            response.status = response.status or 499  # the client has disconnected
        else:
            self.outcome, self.error = "failed", "internal_error"
            response.status = response.status or 500
        return error

    def entry(self, now: float) -> LedgerEntry:
        """Return the ledger's entry, as of ``now`` in event-loop seconds."""
        request, parsed, choice = self.request, self.parsed, self.choice
        total = now - request.arrived
        first = self.first_byte_at
        usage = self.usage or Usage()
        # Empty while another server has not told which of its engines it has asked.
        engine = None if choice is None else choice.engine_name or None
        # The fields are given in their order: by name they would cost seven times as much.
        return LedgerEntry(
            request.id,
            time() - total,
            self.key.account,
            self.key.id,
            None if choice is None or engine is None else choice.node_id,
            engine,
            parsed.model,
            request.path,
            parsed.stream,
            request.response.status,
            self.outcome,
            self.error,
            self.attempts,
            usage.prompt_tokens,
            usage.completion_tokens,
            self.queued * 1000,
            None if first is None else (first - request.arrived) * 1000,
            total * 1000,
            request.body.received,
            request.response.bytes_out,
            "" if choice is None else choice.route_reason[:MAX_ROUTE],
            self.continued,
            isinstance(usage, BoundedUsage)
            or (isinstance(usage, EstimatedUsage) and usage.bounded),
            isinstance(usage, EstimatedUsage),
        )


class LedgerWriter:
    """Writes records to the ledger, charges them to their keys' limits, and counts them."""

    def __init__(
        self,
        bus: Bus,
        limits: RateLimits | Leases,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        """``clock`` returns event-loop seconds."""
        self.bus = bus
        self.limits = limits
        self._metrics = metrics
        self._clock = clock
        self._failures = FailureLog()

    def write(self, record: RequestRecord) -> None:
        """Write a record once.

        Call it before the last byte of an answer leaves: whatever ends this process then, a client
        that has a whole answer is billed for it.
        """
        if record.written:
            return
        record.written = True
        now = self._clock()
        entry = record.entry(now)
        self.bus.publish(LEDGER, entry)
        if record.key.limited:
            tokens = (entry.prompt_tokens or 0) + (entry.completion_tokens or 0)
            self.limits.charge(record.key, tokens)
        self._metrics.count(entry)
        if entry.outcome != "ok":
            self._failures.add(entry, now)
