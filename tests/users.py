"""Users who speak HTTP by hand: what goes out is what the test wrote, to the byte.

``SocketUser`` comes over loopback, ``MemoryUser`` over nothing at all: it hands its bytes to a
connection of the edge, and can stop reading or hang up in the very turn in which a test says so.
Answers are read strictly: a byte too many shows in the next one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from fabric_server.edge.connection import Connection
from fabric_server.edge.edge import Edge

PATIENCE = 5.0


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    interim: list[int] = field(default_factory=list)
    """Statuses of the 1xx answers before this one."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """The error in OpenAI's shape, which every error must have."""
        assert self.headers["content-type"] == "application/json"
        assert list(self.json) == ["error"]
        error = self.json["error"]
        assert list(error) == ["message", "type", "param", "code"]
        assert all(isinstance(error[name], str) for name in ("message", "type", "code"))
        return error

    @property
    def code(self) -> str:
        assert self.status >= 400
        code: str = self.error["code"]
        return code


class Incomplete(Exception):
    """The bytes so far are the beginning of an answer."""


def parse_answer(data: bytes, *, method: str = "POST", at_end: bool = False) -> tuple[Answer, int]:
    """The first answer in ``data`` and its length.  Raises Incomplete, or AssertionError."""
    interim: list[int] = []
    start = 0
    while True:
        head, mark, _ = data[start:].partition(b"\r\n\r\n")
        if not mark:
            raise Incomplete
        start += len(head) + 4
        status_line, *lines = head.decode("latin-1").split("\r\n")
        version, status, _ = status_line.split(" ", 2)
        assert version == "HTTP/1.1", status_line
        if status[0] != "1":
            break
        assert not lines
        interim.append(int(status))
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(": ")
        assert colon, line
        assert name not in headers, f"{name} twice"
        assert name == name.lower()
        headers[name] = value
    answer = Answer(int(status), headers, interim=interim)
    assert headers["x-request-id"].startswith("req_")
    assert "date" in headers
    if answer.status in (204, 304):
        assert not {"content-length", "transfer-encoding"} & headers.keys()
    elif method == "HEAD":
        pass
    elif "content-length" in headers:
        assert "transfer-encoding" not in headers
        length = int(headers["content-length"])
        answer.body = data[start : start + length]
        if len(answer.body) < length:
            raise Incomplete
        start += length
    elif headers.get("transfer-encoding") == "chunked":
        answer.body, start = _chunks(data, start)
    else:
        assert headers["connection"] == "close"
        if not at_end:
            raise Incomplete
        answer.body, start = data[start:], len(data)
    return answer, start


def _chunks(data: bytes, at: int) -> tuple[bytes, int]:
    body = b""
    while True:
        line, mark, _ = data[at:].partition(b"\r\n")
        if not mark:
            raise Incomplete
        at += len(line) + 2
        length = int(line, 16)
        if len(data) < at + length + 2:
            raise Incomplete
        assert data[at + length : at + length + 2] == b"\r\n"
        body += data[at : at + length]
        at += length + 2
        if not length:
            return body, at


class User:
    """What both kinds have in common."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.closed = False
        """The server has closed its side."""
        self._news = asyncio.Event()

    def send(self, data: bytes) -> None:
        raise NotImplementedError

    def _hear(self, data: bytes) -> None:
        self.received += data
        self._news.set()

    def _hear_end(self) -> None:
        self.closed = True
        self._news.set()

    async def _more(self) -> None:
        self._news.clear()
        async with asyncio.timeout(PATIENCE):
            await self._news.wait()

    async def answer(self, *, method: str = "POST") -> Answer:
        """The next whole answer."""
        while True:
            try:
                answer, length = parse_answer(
                    bytes(self.received), method=method, at_end=self.closed
                )
            except Incomplete:
                assert not self.closed, f"closed after {bytes(self.received)!r}"
                await self._more()
            else:
                del self.received[:length]
                return answer

    async def until(self, part: bytes) -> bytes:
        """What was received so far, once ``part`` is in it."""
        while part not in self.received:
            assert not self.closed, f"closed after {bytes(self.received)!r}"
            await self._more()
        return bytes(self.received)

    async def end(self) -> bytes:
        """What came until the server closed."""
        while not self.closed:
            await self._more()
        return bytes(self.received)

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        self.send(request(method, path, body, **headers))
        return await self.answer(method=method)


def request(method: str, path: str, body: Any = None, **headers: str) -> bytes:
    """As text; ``body`` is bytes, or becomes JSON.  ``_`` in a header's name becomes ``-``."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    given = {"host": "test", **{name.replace("_", "-"): value for name, value in headers.items()}}
    if (data or method == "POST") and "transfer-encoding" not in given:
        given.setdefault("content-length", str(len(data)))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + data


class SocketUser(User, asyncio.Protocol):
    """``async with SocketUser(port) as user``"""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port
        self._lost = asyncio.Event()
        self.transport: asyncio.Transport

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_connection(lambda: self, "127.0.0.1", self._port)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.transport.abort()
        await self._lost.wait()

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._hear(data)

    def eof_received(self) -> bool:
        self._hear_end()
        return True  # may go on sending

    def connection_lost(self, exc: Exception | None) -> None:
        self._hear_end()
        self._lost.set()


class MemoryUser(User, asyncio.Transport):
    """One who is connected at once, and in whose hands the connection's flow control is."""

    def __init__(self, edge: Edge) -> None:
        User.__init__(self)
        asyncio.Transport.__init__(self)
        self.reading = True
        """The server takes bytes from this connection."""
        self.aborted = False
        self.lingers = False
        """The server has said its last word, and still reads."""
        self._unread = bytearray()
        self._all_read = asyncio.Event()
        self._closing = self._lost = False
        self.connection: Connection = edge()
        self.connection.connection_made(self)

    # ── what a test does ──────────────────────────────────────────────────────────────────────

    def send(self, data: bytes) -> None:
        """What the server does not read now stays in the kernel's buffer, as it were."""
        self._unread += data
        self._all_read.clear()
        while self.reading and self._unread and not self._lost:
            piece = bytes(self._unread[: 64 * 1024])
            del self._unread[: 64 * 1024]
            self.connection.data_received(piece)
        if not self._unread:
            self._all_read.set()

    async def read_out(self) -> None:
        """Wait until the server has read all that was sent."""
        await self._all_read.wait()

    @property
    def pending(self) -> int:
        """Bytes sent that the server has not read."""
        return len(self._unread)

    def stop_reading(self) -> None:
        self.connection.pause_writing()

    def read_on(self) -> None:
        self.connection.resume_writing()

    def hang_up(self) -> None:
        if not self._lost:
            self._lost = True
            self._hear_end()
            self.connection.connection_lost(None)

    # ── what the connection does ──────────────────────────────────────────────────────────────

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        assert not self.closed
        self._hear(bytes(data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.lingers = True
        self._hear_end()

    def close(self) -> None:
        self.lingers = False
        self._hear_end()
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._finish)

    def abort(self) -> None:
        self.aborted = True
        self.close()

    def _finish(self) -> None:
        if not self._lost:
            self._lost = True
            self.connection.connection_lost(None)

    def is_closing(self) -> bool:
        return self._closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.7", 50_000) if name == "peername" else default

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
        asyncio.get_running_loop().call_soon(self.send, b"")
