"""A limit on the bytes of answers that a node sends: one token bucket that all answers share."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from protocol.aio.node import NodeStream
from protocol.token_bucket import TokenBucket

PIECE = 16 * 1024
"""Bytes that are sent at once when there is a limit."""


class Sender(Protocol):
    def may_send(self) -> None:
        """Try again: ``allows`` may be True now."""


class UploadLimit:
    """The bucket, and the senders that wait for it.  One timer serves all of them.

    A sender that waits reads no more from its engine, which feels a slow reader.  Senders go on in
    turn, one piece each.
    """

    def __init__(
        self,
        rate: float,
        *,
        clock: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], asyncio.TimerHandle],
    ) -> None:
        """``rate`` is in bytes a second."""
        self._clock = clock
        self._call_later = call_later
        self._bucket = TokenBucket(rate, rate, clock())
        self._waiting: dict[Sender, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def change(self, rate: float) -> None:
        """Allow another rate from now on, also to those that wait."""
        self._bucket.level(self._clock())  # what has come back so far did so at the rate before
        self._bucket.capacity = self._bucket.per_second = rate
        if self._timer is not None:
            self._timer.cancel()
            self._on_time()

    def allows(self, sender: Sender) -> bool:
        """Return True if ``sender`` may send a piece now; else its ``may_send`` is called later."""
        wait = self._bucket.seconds_until(0, self._clock())
        if not wait:
            return True
        self._waiting[sender] = None
        self._start_timer(wait)
        return False

    def sent(self, count: int) -> None:
        self._bucket.take(count, self._clock())

    def forget(self, sender: Sender) -> None:
        self._waiting.pop(sender, None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _start_timer(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self._call_later(seconds, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        while self._waiting:
            wait = self._bucket.seconds_until(0, self._clock())
            if wait:
                self._start_timer(wait)
                return
            sender = next(iter(self._waiting))
            del self._waiting[sender]
            sender.may_send()


class LimitedStream:
    """The sending side of one stream, held to an ``UploadLimit``.

    ``send`` buffers what may not be sent yet.  The caller stops at a False, so that this is at most
    what an engine's connection reads at once.
    """

    __slots__ = ("_full", "_limit", "_on_sent", "_on_writable", "_pending", "_stream")

    def __init__(
        self, stream: NodeStream, limit: UploadLimit, on_writable: Callable[[], None]
    ) -> None:
        """``on_writable`` is called whenever everything was sent and the stream takes more."""
        self._stream = stream
        self._limit = limit
        self._on_writable = on_writable
        self._on_sent: Callable[[], None] | None = None
        self._pending: deque[bytes] = deque()
        self._full = False
        """The stream takes no more until ``resume`` is called."""

    @property
    def pending(self) -> bool:
        return bool(self._pending)

    def send(self, data: bytes) -> bool:
        """Return False if nothing more should be sent until ``on_writable`` is called."""
        self._pending.append(data)
        self._flush()
        return not (self._pending or self._full)

    def end(self, on_sent: Callable[[], None]) -> None:
        """Call ``on_sent`` instead of ``on_writable`` when what is pending has been sent."""
        self._on_sent = on_sent

    def resume(self) -> None:
        """Go on: the stream takes more again."""
        self._full = False
        self._flush()

    def may_send(self) -> None:
        self._flush()

    def close(self) -> None:
        self._limit.forget(self)

    def _flush(self) -> None:
        pending = self._pending
        while pending and not self._full and self._limit.allows(self):
            piece = pending.popleft()
            if len(piece) > PIECE:
                pending.appendleft(piece[PIECE:])
                piece = piece[:PIECE]
            self._limit.sent(len(piece))
            self._full = not self._stream.send(piece)
        if pending:
            return
        if self._on_sent is not None:
            self._on_sent()
        elif not self._full:
            self._on_writable()
