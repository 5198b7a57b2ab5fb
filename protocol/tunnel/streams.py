"""One stream's share of a tunnel: what it may still receive, and what waits to be sent."""

from __future__ import annotations

from typing import Any

STREAM_WINDOW = 256 * 1024
TUNNEL_WINDOW = 4 * 1024 * 1024
HIGH_WATER = 256 * 1024
"""Bytes queued on one stream above which its writer is asked to wait."""
LOW_WATER = 64 * 1024
"""Bytes queued below which it may go on."""


class Inbound:
    """Receiver's side of credit, in absolute offsets, so that a repeated grant does no harm."""

    __slots__ = ("consumed", "elsewhere", "granted", "received", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.received = 0
        self.consumed = 0
        self.elsewhere = 0
        """Bytes to be consumed that came over another tunnel: that one's credit is gone with it."""
        self.granted = window

    def receive(self, count: int) -> bool:
        """False when the peer has sent more than it was granted."""
        self.received += count
        return self.received <= self.granted

    def ignore(self, count: int) -> None:
        """Bytes that nobody waits for: they have come, and that is all."""
        self.received += count
        self.consumed += count

    @property
    def left(self) -> int:
        """Bytes of the present tunnel that have not gone on."""
        return self.received - self.consumed - self.elsewhere

    def moved(self) -> None:
        """From here on over another tunnel."""
        self.elsewhere = self.received - self.consumed

    def consume(self, count: int) -> int | None:
        """The new grant to announce; None while at least half of the last one is unused."""
        self.consumed += count
        if self.granted - self.consumed > self.window // 2:
            return None
        self.granted = self.consumed + self.window
        return self.granted


class Outbound:
    """Sender's side: bytes that wait for credit and for their turn.

    ``keeps`` those it has sent, too, until credit tells that they have gone on at the receiver:
    ``rewind`` sends them again.  They are what two windows hold, and the rest of a chunk::

        kept_from      sent                    sent + queued
            │ kept      │ queued                     │
        ────┴───────────┴────────────────────────────┴──> offset
    """

    __slots__ = (
        "_at",
        "_chunks",
        "_dropped",
        "_first_offset",
        "_marks",
        "allowed",
        "ended",
        "keeps",
        "kept_from",
        "queued",
        "sent",
        "trailer",
    )

    def __init__(self, window: int, *, keeps: bool = False) -> None:
        self.keeps = keeps
        self._chunks: list[bytes] = []
        self._at = 0
        """The first chunk that was not sent whole; those before it are kept."""
        self._first_offset = 0
        """So much of that one was sent."""
        self.kept_from = 0
        """The offset at which ``_chunks`` begin."""
        self._dropped = 0
        """Chunks that were there before those."""
        self._marks: list[tuple[int, int]] | None = None
        """Where chunks begin that were to be sent next: offset, and how many were before."""
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
        chunks, at = self._chunks, self._at
        first = chunks[at]
        if self._first_offset or len(first) > most:
            start = self._first_offset
            stop = min(start + most, len(first))
            if stop == len(first):
                at += 1
                self._first_offset = 0
            else:
                self._first_offset = stop
            payload: bytes | memoryview = memoryview(first)[start:stop]
        elif len(chunks) == at + 1:
            at += 1
            payload = first
        else:
            begin, end = at, len(chunks)
            at += 1
            room = most - len(first)
            while at < end and len(chunks[at]) <= room:
                room -= len(chunks[at])
                at += 1
            payload = b"".join(chunks[begin:at])
        if self.keeps:
            self._at = at
        elif at:
            del chunks[:at]
        count = len(payload)
        self.queued -= count
        self.sent += count
        return payload

    def release(self, offset: int) -> None:
        """What lies before ``offset`` has gone on at the receiver: nobody will ask for it again.

        Dropped up to where this was called before, since looking for the very chunk would cost
        more than sending it did: at most two windows are kept.
        """
        marks, at = self._marks, 0
        if marks is None:
            marks = self._marks = []
        while marks and marks[0][0] <= offset:
            self.kept_from, at = marks.pop(0)
        if at:
            at -= self._dropped
            del self._chunks[:at]
            self._at -= at
            self._dropped += at
        marks.append((self.sent - self._first_offset, self._dropped + self._at))

    def rewind(self, offset: int) -> bool:
        """Send again from ``offset`` on.  False when that is not kept, or was never sent."""
        if not self.kept_from <= offset <= self.sent:
            return False
        at, position = 0, self.kept_from
        while at < len(self._chunks) and position + len(self._chunks[at]) <= offset:
            position += len(self._chunks[at])
            at += 1
        self._at, self._first_offset = at, offset - position
        self.queued += self.sent - offset
        self.sent = offset
        return True

    def clear(self) -> None:
        self._chunks.clear()
        self._marks = None
        self._at = 0
        self._first_offset = 0
        self.kept_from = self.sent
        self.queued = 0
        self.trailer = None


class Stream:
    __slots__ = (
        "answered",
        "attempt",
        "given_up",
        "head",
        "id",
        "inbound",
        "listed",
        "opened",
        "origin",
        "outbound",
        "owes_end",
        "owner",
        "resetting",
        "waiting",
        "weight",
    )

    def __init__(self, id: int, *, keeps: bool = False) -> None:
        self.id = id
        self.inbound = Inbound(STREAM_WINDOW)
        self.outbound = Outbound(STREAM_WINDOW, keeps=keeps)
        self.opened = True
        """The peer may still send body bytes."""
        self.answered = False
        """HEAD has passed."""
        self.resetting = False
        """A RESET was sent or received, and its confirmation is awaited."""
        self.given_up = False
        """Node side: resetting, and by its own RESET, which ends it for the server."""
        self.listed = False
        """Stands in the connection's round-robin."""
        self.waiting = False
        """The writer was told to wait."""
        self.origin: tuple[int, int] | None = None
        """The tunnel's number and the id it was opened with; None while that is where it is."""
        self.attempt = 0
        """How often it was claimed."""
        self.head: bytes | None = None
        """HEAD's payload, kept by the node for as long as it might be asked for it again."""
        self.owes_end = False
        """The empty DATA that ends the question waits for another tunnel."""
        self.owner: Any = None
        """What ``Connection.own`` was told: goes along from tunnel to tunnel."""
        self.weight: int
        """What ``kept`` was when END was sent; not before."""

    @property
    def kept(self) -> int:
        """Bytes of what was sent that could be asked for again."""
        outbound = self.outbound
        if not outbound.keeps:
            return 0
        return outbound.sent - outbound.kept_from + (len(self.head) if self.head else 0)

    def __repr__(self) -> str:
        state = "resetting" if self.resetting else "answered" if self.answered else "open"
        out, in_ = self.outbound, self.inbound
        return f"<Stream {self.id} {state} in={in_.received} out={out.sent}+{out.queued}>"
