"""Keeps streams alive while nothing comes of their answer: clients and proxies cut silent ones.

The first thing sent before an answer has begun carries the head along, 200; a later error is then
part of the stream (``Request.respond_error``), and another node can still be tried.  In the middle
of an answer nothing is sent while the client has half an event.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from fabric_server.dialects.endpoints import Endpoint
from fabric_server.dialects.keepalives import keepalive
from fabric_server.net.deadlines import NEVER, Deadlines
from fabric_server.proxy.request_record import RequestRecord

QUEUED_SECONDS = 2.0
"""Seconds in the queue after which the client gets its position."""
LOADING_SECONDS = 10.0
"""Seconds that an engine may be silent without a comment: its answer may be an error, which should
have a status of its own."""
AGAIN_SECONDS = 10.0
"""Seconds of silence after which something is sent.  Half a minute is the shortest idle timeout
known of proxies."""
CHECK_SECONDS = 2.0
"""Seconds between two looks at what has been written: silence is noticed up to that much later, and
the chunks of an answer need not note when they pass."""
WAITING = "waiting for the model"


class StreamKeepalive:
    """Sends comments, pings or empty lines within ``with StreamKeepalive(…):``."""

    __slots__ = ("_bytes_out", "_deadlines", "_endpoint", "_position", "_quiet_since", "_record",
                 "_told_position", "deadline")  # fmt: skip

    def __init__(
        self,
        record: RequestRecord,
        endpoint: Endpoint,
        deadlines: Deadlines,
        position: Callable[[str], int | None],
        now: float,
    ) -> None:
        """``position`` returns a request's place in the queue by its id; None without one."""
        self._record = record
        self._endpoint = endpoint
        self._deadlines = deadlines
        self._position = position
        self._bytes_out = 0
        """Bytes of the body that had been written at the last look."""
        self._quiet_since = now
        self._told_position = False
        self.deadline = now + QUEUED_SECONDS

    def __enter__(self) -> None:
        self._deadlines.add(self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._deadlines.discard(self)

    def expire(self, now: float) -> None:
        request = self._record.request
        response = request.response
        if response.finished:
            self.deadline = NEVER
            return
        if response.bytes_out != self._bytes_out:
            self._note_bytes(now)
        self.deadline = now + CHECK_SECONDS
        if now < self._quiet_since + AGAIN_SECONDS < self.deadline:
            self.deadline = self._quiet_since + AGAIN_SECONDS
        if not request.body.complete or response.paused:
            return  # nothing is sent to a client that still sends, or does not read
        quiet = now - self._quiet_since
        if response.started:
            self._told_position = False
            if quiet >= AGAIN_SECONDS:
                self._send_within_answer(now)
            return
        position = self._position(request.id)
        if position is not None:
            self.deadline = now + AGAIN_SECONDS
            if not self._told_position or quiet >= AGAIN_SECONDS:
                self._told_position = True
                self._send_ahead(f"queued, position {position}", now)
        elif quiet >= LOADING_SECONDS:
            self._send_ahead(WAITING, now)

    def _send_ahead(self, text: str, now: float) -> None:
        data = keepalive(self._endpoint, self._record.parsed.model, text)
        self._record.request.send_ahead(data)
        self._note_bytes(now)

    def _send_within_answer(self, now: float) -> None:
        attempt = self._record.attempt
        if attempt is not None and attempt.answer.between_events:
            data = keepalive(self._endpoint, self._record.parsed.model, WAITING, begun=True)
            self._record.request.response.write(data)
            self._note_bytes(now)

    def _note_bytes(self, now: float) -> None:
        self._bytes_out = self._record.request.response.bytes_out
        self._quiet_since = now
