"""The answer to one request: its state, and the bytes of its body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fabric_server.dialects.error_formats import Dialect, error_event
from fabric_server.dialects.errors import ApiError

_MAX_ERROR = 64 * 1024
"""Bytes of an error's body that are put into a stream."""


class Connection(Protocol):
    """Methods that a response needs of its connection."""

    @property
    def paused(self) -> bool: ...
    def send(self, data: bytes) -> None: ...
    def response_finished(self) -> None: ...
    def response_aborted(self) -> None: ...


class BufferedError:
    """The body of an error that is held back to be sent as an event of a stream."""

    __slots__ = ("_body", "_dialect", "_request_id")

    def __init__(self, dialect: Dialect, request_id: str) -> None:
        self._dialect = dialect
        self._request_id = request_id
        self._body = bytearray()

    def add(self, data: bytes) -> None:
        self._body += data[: _MAX_ERROR - len(self._body)]

    def event(self) -> bytes:
        event = error_event(self._dialect, bytes(self._body))
        if event is None:
            text = "The engine answered with an error that can't be shown here."
            unknown = ApiError(502, "upstream_error", text, type="server_error")
            event = unknown.event(self._dialect, self._request_id)
        return event


class Response:
    """The writing half of a request: ``Request.start_response``, ``write`` …, ``finish``."""

    __slots__ = ("_chunked", "_connection", "_discards", "_error", "_send", "bytes_out",
                 "comments_sent", "finished", "headers", "on_drained", "started",
                 "status")  # fmt: skip

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._send = connection.send
        self.comments_sent = False
        """A head with status 200 and comments have been sent; the answer itself has not begun."""
        self.started = False
        """The answer has begun; comments do not count."""
        self.finished = False
        self.status = 0
        """The HTTP status that was sent, or will be."""
        self.headers: list[tuple[bytes, bytes]] = []
        """Headers of the answer, whichever that will be."""
        self.bytes_out = 0
        """Bytes of the body that were written."""
        self.on_drained: Callable[[], None] | None = None
        """Called when ``paused`` has become False again."""
        self._chunked = False
        self._discards = False
        """The body is not sent: HEAD, a status without a body, or an error that is buffered."""
        self._error: BufferedError | None = None

    @property
    def paused(self) -> bool:
        """The client reads more slowly than the answer comes: stop writing until ``on_drained``."""
        return self._connection.paused

    # ── what a request calls ──────────────────────────────────────────────────────────────────

    def send_head(self, status: int, head: bytes, *, chunked: bool, no_body: bool) -> None:
        self.status = status
        self._chunked = chunked
        self._discards = no_body
        self._send(head)

    def buffer_error(self, error: BufferedError) -> None:
        """Collect the answer's body in ``error``, and send it as an event at the end."""
        self._error = error
        self._discards = True

    # ── what a handler calls ──────────────────────────────────────────────────────────────────

    def write(self, data: bytes) -> None:
        if self._discards or self.finished or not data:
            if self._error is not None:
                self._error.add(data)
            return
        self.bytes_out += len(data)
        if self._chunked:
            self._send(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._send(data)

    def suspend(self) -> None:
        """Return to the state of a stream that waits, until ``start_response`` is called once more.

        Call it between two events of an answer that broke off and that another engine continues.
        """
        assert self.started
        self.started, self.comments_sent = False, True

    def finish(self) -> None:
        """End the answer: it is complete.  Does nothing when it has ended already."""
        if self.finished:
            return
        if self._error is not None:
            error, self._error, self._discards = self._error, None, False
            self.write(error.event())
        if self._chunked and not self._discards:
            self._send(b"0\r\n\r\n")
        self.finished = True
        self.on_drained = None
        self._connection.response_finished()

    def abort(self) -> None:
        """Cut the connection, so that the client can tell that the answer is not complete."""
        self.finished = True
        self.on_drained = None
        self._connection.response_aborted()
