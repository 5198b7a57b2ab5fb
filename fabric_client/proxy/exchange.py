"""One request at its engine: the question there, the answer back, by callback."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

from fabric_client.engines.discovery import Engine
from fabric_client.proxy.slots import RegistrationSlots
from fabric_client.proxy.throughput import tokens_in
from fabric_client.proxy.upload_limit import PIECE, UploadLimit
from fabric_client.proxy.upstream import EngineConnection, Pool
from fabric_client.translation import ResponseFilter
from protocol.aio.tunnel import Stream
from protocol.errors import Code
from protocol.messages import Figures, RequestHead, ResponseHead

if TYPE_CHECKING:
    from fabric_client.proxy.forwarder import Forwarder

log = logging.getLogger("fabric.forward")

_REQUEST_HEADERS = frozenset(
    {"content-type", "accept", "openai-beta", "anthropic-version", "anthropic-beta"}
)
_RESPONSE_HEADERS = frozenset({"content-type", "content-length", "content-language", "retry-after"})
_REPLAY_BYTES = 256 * 1024
"""A body up to this size is kept until the engine answers, should a warm connection prove dead."""


class EngineRequest:
    """One request at its engine: ``StreamHandler`` on one side, ``Reader`` on the other."""

    __slots__ = (
        "_answer",
        "_answered",
        "_asked",
        "_bytes",
        "_chunked",
        "_connection",
        "_ended",
        "_figures",
        "_first_byte_at",
        "_forwarder",
        "_full",
        "_head",
        "_held",
        "_last",
        "_loop",
        "_over",
        "_owed",
        "_pool",
        "_replay",
        "_sent",
        "_started_at",
        "_stream",
        "_task",
        "begun",
        "engine",
        "share",
    )

    def __init__(
        self,
        forwarder: Forwarder,
        stream: Stream,
        head: RequestHead,
        engine: Engine,
        pool: Pool,
        ended: bool,
        share: RegistrationSlots,
    ) -> None:
        self.engine = engine
        self.share = share
        self.begun = False
        """It holds a slot, or has."""
        self._forwarder = forwarder
        self._stream = stream
        self._head = head
        self._pool = pool
        self._ended = ended
        """The request's body is complete."""
        self._chunked = head.body_size is None and not ended
        self._loop = forwarder.loop
        self._started_at = self._loop.time()
        self._first_byte_at = 0.0
        self._connection: EngineConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._replay: list[bytes] | None = []
        """What was written of the body; None once it can't be written again."""
        self._sent = 0
        self._owed = 0
        self._asked = False
        self._answer: ResponseFilter | None = None
        """What becomes of the engine's answer on its way; None: it passes as it is."""
        self._answered = False
        self._over = False
        self._bytes = 0
        self._last = (b"", b"")
        """The answer's last two pieces, in which the engine says how many tokens it had."""
        # Only when there is a limit to what this node sends:
        self._held: deque[bytes] = deque()
        """What was read and not yet sent: at most what is read at once."""
        self._full = False
        """The stream takes no more; ``on_writable`` tells when it does."""
        self._figures: Figures | None = None
        """Set when the engine has ended, and what is held has not been sent."""

    def begin(self) -> None:
        """Ask the engine, which has a slot for it."""
        self.begun = True
        self.engine.active += 1
        self.share.began(self.engine)
        self._forwarder.began()
        self._reach()

    def _reach(self) -> None:
        """The engine, over a connection that is warm or new."""
        connection = self._pool.take(self._loop.time())
        if connection is not None:
            self._use(connection)
        else:
            self._task = self._loop.create_task(self._connect())

    # ── what the stream tells ─────────────────────────────────────────────────────────────────

    def on_data(self, data: bytes, ended: bool) -> None:
        self._ended = ended
        self._sent += len(data)
        if self._head.body_size is not None and self._sent > self._head.body_size:
            self.fail(Code.PROTOCOL, "the body is longer than announced")
            return
        if self._replay is not None:
            self._replay.append(data)
            if self._sent > _REPLAY_BYTES and self._connection is not None:
                self._replay = None
        if self._connection is None:
            # Held until there is a connection: the stream's credit bounds it.
            self._owed += len(data)
            return
        if self._asked:
            self._connection.write(self._coded(data))
        else:
            self._ask()
        if self._connection.paused:
            self._owed += len(data)
        else:
            self._stream.consumed(len(data))

    def on_writable(self) -> None:
        if self._forwarder.uploads is not None:
            self._full = False
            self._send_held(self._forwarder.uploads)
        elif self._connection is not None:
            self._connection.resume()

    def on_reset(self, code: int, reason: str) -> None:
        log.debug("cancelled", extra={"request": self._head.request_id, "reason": reason})
        self._stop()
        self._stream.confirm_reset()

    # ── what the engine tells ─────────────────────────────────────────────────────────────────

    def on_answer_head(self, status: int, headers: list[tuple[str, str]]) -> None:
        self._answered = True
        self._replay = None
        passed = [(name, value) for name, value in headers if name in _RESPONSE_HEADERS]
        self._stream.send_head(ResponseHead(status, passed))

    def on_answer_data(self, data: bytes) -> None:
        if not self._first_byte_at:
            self._first_byte_at = self._loop.time()
        if self._answer is not None:
            data = self._answer.feed(data)
            if not data:
                return
        self._bytes += len(data)
        self._last = (self._last[1], data)
        if self._forwarder.uploads is not None:
            self._held.append(data)
            self._send_held(self._forwarder.uploads)
        elif not self._stream.send(data) and self._connection is not None:
            self._connection.pause()

    def on_answer_end(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and (rest := answer.end()):
            self.on_answer_data(rest)
        now = self._loop.time()
        first = self._first_byte_at or now
        start = self._started_at
        figures = Figures((first - start) * 1000, (now - start) * 1000, self._bytes)
        self._forwarder.speed.add(tokens_in(b"".join(self._last)), start, now)
        connection, self._connection = self._connection, None
        if not self._held:
            self._finish()
        if connection is not None:
            connection.release(connection.reusable and self._ended)
        if self._held:
            self._figures = figures
        else:
            self._forwarder.served += 1
            self._stream.end(figures)

    def may_send(self) -> None:
        assert self._forwarder.uploads is not None
        self._send_held(self._forwarder.uploads)

    def _send_held(self, uploads: UploadLimit) -> None:
        while self._held and not self._full and uploads.allows(self):
            piece = self._held.popleft()
            if len(piece) > PIECE:
                self._held.appendleft(piece[PIECE:])
                piece = piece[:PIECE]
            uploads.sent(len(piece))
            self._full = not self._stream.send(piece)
        if self._figures is not None:
            if not self._held:
                self._finish()
                self._forwarder.served += 1
                self._stream.end(self._figures)
        elif self._connection is not None:
            if self._held or self._full:
                self._connection.pause()
            else:
                self._connection.resume()

    def on_answer_lost(self, reason: str) -> None:
        connection = self._connection
        if self._answered:
            self.fail(Code.ENGINE_FAILED, reason)
        elif connection is not None and connection.used and self._replay is not None:
            # A warm connection that the engine had closed: only a new one can tell.
            self._connection = None
            self._task = self._loop.create_task(self._connect())
        else:
            self.fail(Code.ENGINE_DOWN, reason)

    def on_upstream_writable(self) -> None:
        owed, self._owed = self._owed, 0
        if owed:
            self._stream.consumed(owed)

    # ── small parts ───────────────────────────────────────────────────────────────────────────

    async def _connect(self) -> None:
        try:
            connection = await self._pool.connect()
        except (OSError, TimeoutError) as error:
            reason = str(error) or "it did not answer in time"
            self.fail(Code.ENGINE_DOWN, f"engine '{self.engine.name}' is down: {reason}")
            return
        if self._over:
            connection.abort()
        else:
            self._use(connection)

    def _use(self, connection: EngineConnection) -> None:
        self._connection = connection
        self._asked = False
        connection.attach(self)
        if self._ended or self._replay:
            self._ask()
            self.on_upstream_writable()

    def _ask(self) -> None:
        """Head and what there is of the body in one write: mostly the body comes with the head."""
        assert self._connection is not None
        self._asked = True
        body = self._coded(b"".join(self._replay or ()))
        self._connection.write(self._request() + body)

    def _request(self) -> bytes:
        size = None if self._chunked else self._head.body_size or 0
        return self._request_head(self._head.path, self._passed(), size)

    def _passed(self) -> list[tuple[str, str]]:
        """The user's headers that are the engine's business."""
        return [
            (name, value)
            for name, value in self._head.headers
            if name in _REQUEST_HEADERS and value.isprintable()
        ]

    def _request_head(self, path: str, passed: list[tuple[str, str]], size: int | None) -> bytes:
        """``size`` is the body's; None when nobody knows it yet."""
        lines = [
            f"{self._head.method} {self._pool.prefix}{path} HTTP/1.1",
            f"host: {self._pool.address.host}",
            *(f"{name}: {value}" for name, value in passed),
        ]
        if self._head.request_id.isidentifier():
            lines.append(f"x-request-id: {self._head.request_id}")
        if size is None:
            lines.append("transfer-encoding: chunked")
        else:
            lines.append(f"content-length: {size}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")

    def _coded(self, data: bytes) -> bytes:
        if not self._chunked:
            return data
        chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        return chunk + b"0\r\n\r\n" if self._ended else chunk

    def fail(self, code: Code, reason: str) -> None:
        """Break off and tell the server why."""
        if self._over:
            return
        log.info(
            "request failed",
            extra={
                "request": self._head.request_id,
                "engine": self.engine.name,
                "code": Code.name_of(code),
                "reason": reason,
            },
        )
        self._stop()
        self._stream.reset(code, reason)
        if code in (Code.ENGINE_DOWN, Code.ENGINE_FAILED):
            self._forwarder.on_trouble()

    def _stop(self) -> None:
        if not self._over:
            self._finish()
            if self._connection is not None:
                self._connection.abort()

    def _finish(self) -> None:
        self._over = True
        if self.begun:
            self.engine.active -= 1
            self.share.ended(self.engine)
        self._forwarder.ended(self)
        if self._forwarder.uploads is not None:
            self._forwarder.uploads.forget(self)
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
