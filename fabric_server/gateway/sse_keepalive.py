"""Keeps streams alive whose answer has not begun: proxies and clients may cut a silent connection.

Lines of server-sent events that begin with a colon are comments, which clients skip (WHATWG HTML,
9.2.6).  The first one sends the head of the answer along, 200; a later error is then an event of
the stream (``Request.respond_error``), and another node can still be tried.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from fabric_server.edge.request import Request
from fabric_server.net.deadlines import NEVER, Deadlines

QUEUED_SECONDS = 2.0
"""Seconds in the queue after which the client gets its position."""
LOADING_SECONDS = 10.0
"""Seconds that an engine may be silent without a comment: its answer may be an error, which should
have a status of its own."""
AGAIN_SECONDS = 10.0
"""Seconds between comments.  Half a minute is the shortest idle timeout known of proxies."""


class SseKeepalive:
    """Sends comments within ``with SseKeepalive(…):``, until the answer has begun."""

    __slots__ = ("_deadlines", "_position", "_request", "_since", "deadline")

    def __init__(
        self,
        request: Request,
        deadlines: Deadlines,
        position: Callable[[str], int | None],
        now: float,
    ) -> None:
        """``position`` returns a request's place in the queue by its id; None without one."""
        self._request = request
        self._deadlines = deadlines
        self._position = position
        self._since = now
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
        request = self._request
        if request.response.finished:
            self.deadline = NEVER
            return
        self.deadline = now + AGAIN_SECONDS
        if request.response.started:  # it may be suspended, and wait once more
            return
        if not request.body.complete or request.response.paused:
            return  # a client that still sends, or does not read, gets no comments
        position = self._position(request.id)
        if position is not None:
            request.send_comment(f"queued, position {position}")
        elif request.response.comments_sent or now >= self._since + LOADING_SECONDS:
            request.send_comment("waiting for the model")
        else:
            self.deadline = self._since + LOADING_SECONDS
