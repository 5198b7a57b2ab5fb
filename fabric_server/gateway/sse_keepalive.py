"""Keeps a stream alive whose answer has not begun: a proxy or a client in between may cut what is
silent for long.

Lines of server-sent events that begin with a colon are comments, which clients skip (WHATWG HTML,
9.2.6).  The first one sends the head of the answer along, 200; what goes wrong later is then told
within the stream (``Request.respond_error``), and another node can still be tried.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from fabric_server.edge.request import Request
from fabric_server.net.deadlines import NEVER, Deadlines

QUEUED_SECONDS = 2.0
"""After so long in line a user is told so, and where."""
LOADING_SECONDS = 10.0
"""An engine that has the request may be silent for so long: it may be about to answer with an
error, which should have a status of its own."""
AGAIN_SECONDS = 10.0
"""Half a minute is the shortest that proxies are known to take silence for death."""


class SseKeepalive:
    """``with Comments(…):`` around getting an answer; does nothing once that has begun."""

    __slots__ = ("_deadlines", "_position", "_request", "_since", "deadline")

    def __init__(
        self,
        request: Request,
        deadlines: Deadlines,
        position: Callable[[str], int | None],
        now: float,
    ) -> None:
        """``position`` tells by a request's id where in line it is, None when it is not."""
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
        if request.response.started:  # it may be interrupted, and wait once more
            return
        if not request.body.complete or request.response.paused:
            return  # who is still asking, or does not read, is not talked to
        position = self._position(request.id)
        if position is not None:
            request.send_comment(f"queued, position {position}")
        elif request.response.comments_sent or now >= self._since + LOADING_SECONDS:
            request.send_comment("waiting for the model")
        else:
            self.deadline = self._since + LOADING_SECONDS
