"""One stream's share of a tunnel: what it may still receive, and what waits to be sent."""

from __future__ import annotations

from collections import deque

STREAM_WINDOW = 256 * 1024
TUNNEL_WINDOW = 4 * 1024 * 1024
HIGH_WATER = 256 * 1024
"""Bytes queued on one stream above which its writer is asked to wait."""
LOW_WATER = 64 * 1024
"""Bytes queued below which it may go on."""


class Inbound:
    """Receiver's side of credit, in absolute offsets, so that a repeated grant does no harm."""

    __slots__ = ("consumed", "granted", "received", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.received = 0
        self.consumed = 0
        self.granted = window

    def receive(self, count: int) -> bool:
        """False when the peer has sent more than it was granted."""
        self.received += count
        return self.received <= self.granted

    def consume(self, count: int) -> int | None:
        """The new grant to announce; None while at least half of the last one is unused."""
        self.consumed += count
        if self.granted - self.consumed > self.window // 2:
            return None
        self.granted = self.consumed + self.window
        return self.granted


class Outbound:
    """Sender's side: bytes that wait for credit and for their turn."""

    __slots__ = ("_chunks", "_first_offset", "allowed", "ended", "queued", "sent", "trailer")

    def __init__(self, window: int) -> None:
        self._chunks: deque[bytes] = deque()
        self._first_offset = 0
        self.queued = 0
        self.sent = 0
        self.allowed = window
        self.ended = False
        """Nothing more will be added."""
        self.trailer: bytes | None = None
        """A ready-made END frame that goes out behind the last byte."""

    def add(self, data: bytes) -> None:
        self._chunks.append(data)
        self.queued += len(data)

    def take(self, most: int) -> bytes | memoryview:
        """The next payload of at most ``most`` bytes; small chunks that wait are joined."""
        chunks = self._chunks
        first = chunks[0]
        if self._first_offset or len(first) > most:
            start = self._first_offset
            stop = min(start + most, len(first))
            if stop == len(first):
                chunks.popleft()
                self._first_offset = 0
            else:
                self._first_offset = stop
            payload: bytes | memoryview = memoryview(first)[start:stop]
        elif len(chunks) == 1:
            chunks.clear()
            payload = first
        else:
            batch = [chunks.popleft()]
            room = most - len(first)
            while chunks and len(chunks[0]) <= room:
                room -= len(chunks[0])
                batch.append(chunks.popleft())
            payload = b"".join(batch)
        count = len(payload)
        self.queued -= count
        self.sent += count
        return payload

    def clear(self) -> None:
        self._chunks.clear()
        self._first_offset = 0
        self.queued = 0
        self.trailer = None


class Stream:
    __slots__ = (
        "answered",
        "id",
        "inbound",
        "listed",
        "opened",
        "outbound",
        "resetting",
        "waiting",
    )

    def __init__(self, id: int) -> None:
        self.id = id
        self.inbound = Inbound(STREAM_WINDOW)
        self.outbound = Outbound(STREAM_WINDOW)
        self.opened = True
        """The peer may still send body bytes."""
        self.answered = False
        """HEAD has passed."""
        self.resetting = False
        """A RESET was sent or received, and its confirmation is awaited."""
        self.listed = False
        """Stands in the connection's round-robin."""
        self.waiting = False
        """The writer was told to wait."""

    def __repr__(self) -> str:
        state = "resetting" if self.resetting else "answered" if self.answered else "open"
        out, in_ = self.outbound, self.inbound
        return f"<Stream {self.id} {state} in={in_.received} out={out.sent}+{out.queued}>"
