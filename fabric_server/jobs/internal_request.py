"""A request that the server itself makes, for a user it has authenticated before: through the very
gateway that users' own requests meet, with the answer collected instead of sent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fabric_server.auth.keys import Key
from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.edge.request import Body, Request
from fabric_server.gateway.options import PRIORITY, TIMEOUT
from fabric_server.routing.criteria import Priority

MAX_ANSWER = 8 * 2**20
"""Bytes of an answer that are kept."""

Handler = Callable[[Request], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    request_id: str
    code: str = ""
    """Of the refusal, where the fabric itself has answered."""
    retry_after: float | None = None
    """Seconds."""

    @property
    def busy(self) -> bool:
        """Nothing was wrong but the time."""
        return self.status in (429, 503) and bool(self.code)


def refused(refusal: ApiError, request_id: str = "") -> Answer:
    return Answer(refusal.status, refusal.body(), request_id, refusal.code, refusal.retry_after)


class BufferedResponse:
    """What a request takes for its connection (``request.Connection``)."""

    paused = False

    def __init__(self, task: asyncio.Task[object] | None, most: int) -> None:
        self._task = task
        self._most = most
        self._headed = False
        self.data = bytearray()
        self.whole = False
        self.too_large = False

    def send(self, data: bytes) -> None:
        if not self._headed:  # a request sends its head in one piece, and first
            self._headed = True
        elif len(self.data) + len(data) <= self._most:
            self.data += data
        elif not self.too_large:
            self.too_large = True
            if self._task is not None:
                self._task.cancel()  # as a user who hangs up: the engine stops

    def response_finished(self) -> None:
        self.whole = True

    def response_aborted(self) -> None:
        """Broken in the middle: it is never whole."""

    def want_body(self) -> None:
        """It is all there."""

    def can_discard_rest(self, body: Body) -> bool:
        return True

    def date(self) -> bytes:
        return b""


class InternalClient:
    def __init__(self, handler: Handler, new_id: Callable[[], str]) -> None:
        """``handler`` answers requests, as ``Gateway.complete`` does."""
        self._handler = handler
        self._new_id = new_id

    def new_id(self) -> str:
        return self._new_id()

    async def ask(
        self,
        key: Key,
        path: str,
        body: bytes,
        *,
        request_id: str,
        priority: Priority,
        seconds: float,
        most: int = MAX_ANSWER,
    ) -> Answer:
        """As ``key``, which is authenticated.  Raises nothing of its own; cancelled, the request
        is, too, and its engine stops."""
        task = asyncio.current_task()
        collector = BufferedResponse(task, most)
        request = Request(collector, request_id, asyncio.get_running_loop().time())
        request.key = key
        request.method, request.path = "POST", path
        request.version = "1.0"  # without chunks
        request.headers = {
            b"content-type": b"application/json",
            PRIORITY: priority.name.lower().encode(),
            TIMEOUT: b"%.3f" % max(seconds, 0.001),
        }
        request.body.length = len(body)
        request.body.add(body)
        request.body.end()
        try:
            await self._handler(request)
        except ApiError as refusal:
            return refused(refusal, request_id)
        except asyncio.CancelledError:
            if not collector.too_large or task is None or task.uncancel():
                raise
        if collector.too_large:
            return refused(_too_large(most), request_id)
        if not collector.whole:
            broken = errors.upstream_error("The node was lost in the middle of the answer.")
            return refused(broken, request_id)
        return Answer(request.response.status, bytes(collector.data), request_id)


def _too_large(most: int) -> ApiError:
    return ApiError(502, "answer_too_large", f"The answer is larger than {most} bytes.")
