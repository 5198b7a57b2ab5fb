"""Requests that the server itself makes with a client's key, through the same gateway as clients'
own requests; the response is buffered instead of sent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from fabric_server.auth.keys import Key
from fabric_server.dialects import errors
from fabric_server.dialects.errors import VARIANT_NOT_FOUND, ApiError
from fabric_server.edge.request import Body, Request
from fabric_server.gateway.options import DIGEST, PRIORITY, QUANT, TIMEOUT
from fabric_server.net.memory_budget import UNCOUNTED, MemoryBudget
from fabric_server.routing.criteria import Priority

MAX_RESPONSE = 8 * 2**20
"""Largest response body that is buffered, in bytes."""

Handler = Callable[[Request], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class InternalRequest:
    """A POST of JSON, with a key that is authenticated already."""

    id: str
    key: Key
    path: str
    body: bytes
    priority: Priority
    timeout: float
    """Seconds."""
    quantization: str = ""
    digest: str = ""
    """The weights that are asked for, as in ``WantedVariant``."""


@dataclass(frozen=True, slots=True)
class InternalResponse:
    """A whole response."""

    status: int
    body: bytes
    request_id: str
    code: str = ""
    """The error code, if the fabric itself refused the request."""
    retry_after: float | None = None
    """Seconds."""

    @property
    def busy(self) -> bool:
        """True if the request may succeed later: there was no capacity, or a rate limit, or the
        nodes that have the weights asked for were away."""
        return (self.status in (429, 503) and bool(self.code)) or self.code == VARIANT_NOT_FOUND


def error_response(error: ApiError, request_id: str = "") -> InternalResponse:
    """Make the response of an error."""
    return InternalResponse(error.status, error.body(), request_id, error.code, error.retry_after)


class BufferedResponse:
    """The ``request.Connection`` of an internal request; collects the response body."""

    paused = False

    def __init__(
        self, task: asyncio.Task[object] | None, max_bytes: int, memory: MemoryBudget, key: str
    ) -> None:
        """``memory`` counts what is collected, for the key with the id ``key``."""
        self._task = task
        self._max_bytes = max_bytes
        self._head_sent = False
        self.memory = memory
        self.holding = memory.open(key)
        self.data = bytearray()
        self.complete = False
        self.error: ApiError | None = None
        """Why no more is collected."""

    def client_address(self, headers: Mapping[bytes, bytes]) -> str:
        return ""

    def recognise(self) -> None:
        """Do nothing: there is no network connection."""

    def suspect(self) -> None:
        """Do nothing: there is no network connection."""

    def cors(self, origin: bytes) -> bytes:
        return b""

    def send(self, data: bytes) -> None:
        """Collect a piece; the first is the response's head, whole and alone."""
        if not self._head_sent:
            self._head_sent = True
            return
        if self.error is not None:
            return
        size = len(self.data) + len(data)
        try:
            if size > self._max_bytes:
                raise _too_large(self._max_bytes)
            if size > UNCOUNTED:
                self.holding.reach(size)
            self.data += data
        except ApiError as error:
            self.error = error
            if self._task is not None:
                self._task.cancel()  # as when a client disconnects: the engine stops

    def response_finished(self) -> None:
        self.complete = True

    def response_aborted(self) -> None:
        """Leave the response incomplete."""

    def want_body(self) -> None:
        """Do nothing: the whole body is there."""

    def can_discard_rest(self, body: Body) -> bool:
        return True

    def time(self) -> float:
        return asyncio.get_running_loop().time()

    def date(self) -> bytes:
        return b""


class InternalClient:
    """Sends internal requests to ``handler``, which responds as ``Gateway.complete`` does."""

    def __init__(
        self, handler: Handler, new_id: Callable[[], str], memory: MemoryBudget | None = None
    ) -> None:
        """``memory`` counts what requests and responses hold."""
        self._handler = handler
        self._new_id = new_id
        self._memory = memory or MemoryBudget()

    def new_id(self) -> str:
        """Make the id of a request."""
        return self._new_id()

    async def send(
        self, internal: InternalRequest, *, max_bytes: int = MAX_RESPONSE
    ) -> InternalResponse:
        """Return the response, or the error as one; raises nothing else.

        Cancelling this call cancels the request, and stops its engine.
        """
        task = asyncio.current_task()
        buffer = BufferedResponse(task, max_bytes, self._memory, internal.key.id)
        request = _to_request(internal, buffer)
        try:
            request.body.owned_by(internal.key.id)
            request.body.hold(0)
            await self._handler(request)
        except ApiError as error:
            return error_response(error, internal.id)
        except asyncio.CancelledError:
            if buffer.error is None or task is None or task.uncancel():
                raise
        finally:
            request.body.drop()
            buffer.holding.release()
        if buffer.error is not None:
            return error_response(buffer.error, internal.id)
        if not buffer.complete:
            text = "The node disconnected before the response was complete."
            return error_response(errors.upstream_error(text), internal.id)
        return InternalResponse(request.response.status, bytes(buffer.data), internal.id)


def _to_request(internal: InternalRequest, buffer: BufferedResponse) -> Request:
    request = Request(buffer, internal.id, asyncio.get_running_loop().time())
    request.key = internal.key
    request.method, request.path = "POST", internal.path
    request.version = "1.0"  # no chunked encoding
    request.headers = {
        b"content-type": b"application/json",
        PRIORITY: internal.priority.name.lower().encode(),
        TIMEOUT: b"%.3f" % max(internal.timeout, 0.001),
    }
    if internal.quantization:
        request.headers[QUANT] = internal.quantization.encode()
    if internal.digest:
        request.headers[DIGEST] = internal.digest.encode()
    request.body.length = len(internal.body)
    request.body.add(internal.body)
    request.body.end()
    return request


def _too_large(max_bytes: int) -> ApiError:
    text = f"The response is larger than {max_bytes} bytes."
    return ApiError(502, "answer_too_large", text)
