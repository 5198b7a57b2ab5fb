"""One stream of a tunnel: its credit, and the bytes that wait to be sent or may be sent again."""

from __future__ import annotations

from typing import Any, NamedTuple

STREAM_WINDOW = 256 * 1024
TUNNEL_WINDOW = 4 * 1024 * 1024
HIGH_WATER = 256 * 1024
"""Bytes queued on one stream above which ``send_data`` asks its writer to wait."""
LOW_WATER = 64 * 1024
"""Bytes queued on one stream below which a waiting writer may continue."""


MAX_STREAMS = 256
MAX_STREAM_ID = 2**32 - 1


class Limits(NamedTuple):
    """Limits of one tunnel, the same on both sides."""

    streams: int = MAX_STREAMS
    """Streams at once."""
    stream_id: int = MAX_STREAM_ID
    window: int = TUNNEL_WINDOW
    """Bytes of all streams together by which a sender may be ahead."""


NODE_LIMITS = Limits()
"""Limits of a node's tunnel."""


class Inbound:
    """Receiver's side of a stream's or tunnel's credit.

    Offsets are absolute, so that repeating a grant does no harm.
    """

    __slots__ = ("consumed", "expects_data", "granted", "received", "uncounted", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.expects_data = False
        """DATA is allowed now: the server has HEAD, or the node has not all of the request."""
        self.received = 0
        """Bytes received; more than ``granted`` is an error of the peer."""
        self.consumed = 0
        self.uncounted = 0
        """Bytes to be consumed that a former tunnel carried: its credit went with it."""
        self.granted = window

    def consume(self, count: int) -> int | None:
        """Return the offset to grant, or None while at least half a window of credit is left."""
        self.consumed += count
        return self.grant() if self.granted - self.consumed <= self.window // 2 else None

    def grant(self) -> int:
        """Grant a whole window beyond what is consumed, and return the offset."""
        self.granted = self.consumed + self.window
        return self.granted

    def discard(self, count: int) -> None:
        """Count bytes of a stream that is being reset: received, and consumed at once."""
        self.received += count
        self.consumed += count

    def unconsumed(self) -> int:
        """Bytes received over the present tunnel and not consumed yet."""
        return self.received - self.consumed - self.uncounted

    def move(self) -> None:
        """Continue over another tunnel, which has not carried the bytes still to be consumed."""
        self.uncounted = self.received - self.consumed


class Outbound:
    """Sender's side: bytes that wait for credit and for their turn.

    With ``replayable``, sent bytes stay in a replay buffer until credit shows that the receiver
    has consumed them; ``rewind`` sends them again.  The buffer holds at most two windows and the
    rest of a chunk::

        replay_from    sent                    sent + queued
            │ replay    │ queued                     │
        ────┴───────────┴────────────────────────────┴──> offset
    """

    __slots__ = (
        "_chunks",
        "_dropped",
        "_first_offset",
        "_marks",
        "_next",
        "accepts_data",
        "allowed",
        "ended",
        "queued",
        "replay_from",
        "replayable",
        "scheduled",
        "sent",
        "trailer",
        "writer_waits",
    )

    def __init__(self, window: int, *, replayable: bool = False) -> None:
        self.replayable = replayable
        self._chunks: list[bytes] = []
        self._next = 0
        """Index of the first chunk not sent whole; the chunks before it are the replay buffer."""
        self._first_offset = 0
        """Bytes of that chunk that were sent."""
        self.replay_from = 0
        """The offset at which ``_chunks`` begin."""
        self._dropped = 0
        """Number of chunks that were dropped from the front of ``_chunks`` so far."""
        self._marks: list[tuple[int, int]] | None = None
        """Boundaries of chunks: (offset, number of chunks before it), one per ``release``."""
        self.queued = 0
        self.sent = 0
        self.allowed = window
        self.accepts_data = False
        """``send_data`` is allowed: the server has not ended the body, the node is answering."""
        self.ended = False
        """No more bytes will be added."""
        self.trailer: bytes | None = None
        """An encoded END frame that follows the last byte."""
        self.scheduled = False
        """The stream stands in the round-robin of its ``SendQueue``."""
        self.writer_waits = False
        """``send_data`` has returned False, and ``StreamWritable`` is due."""

    def add(self, data: bytes) -> None:
        self._chunks.append(data)
        self.queued += len(data)

    def keep(self, data: bytes) -> None:
        """Put what was sent at once, as the first of the stream's bytes, into the replay buffer."""
        if self.replayable:
            self._chunks.append(data)
            self._next = 1

    def take(self, limit: int) -> bytes | memoryview:
        """Return the next payload of at most ``limit`` bytes; join small chunks that wait."""
        chunks, at = self._chunks, self._next
        first = chunks[at]
        if self._first_offset or len(first) > limit:
            start = self._first_offset
            stop = min(start + limit, len(first))
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
            room = limit - len(first)
            while at < end and len(chunks[at]) <= room:
                room -= len(chunks[at])
                at += 1
            payload = b"".join(chunks[begin:at])
        if self.replayable:
            self._next = at
        elif at:
            del chunks[:at]
        count = len(payload)
        self.queued -= count
        self.sent += count
        return payload

    def release(self, offset: int) -> None:
        """Drop bytes before ``offset`` from the replay buffer: the receiver has consumed them.

        Chunks are dropped up to where an earlier call stood, because finding the exact chunk would
        cost more than sending it did; so at most two windows are held.
        """
        marks, at = self._marks, 0
        if marks is None:
            marks = self._marks = []
        while marks and marks[0][0] <= offset:
            self.replay_from, at = marks.pop(0)
        if at:
            at -= self._dropped
            del self._chunks[:at]
            self._next -= at
            self._dropped += at
        marks.append((self.sent - self._first_offset, self._dropped + self._next))

    def rewind(self, offset: int) -> bool:
        """Send again from ``offset`` on; return False when the replay buffer does not reach it."""
        if not self.replay_from <= offset <= self.sent:
            return False
        at, position = 0, self.replay_from
        while at < len(self._chunks) and position + len(self._chunks[at]) <= offset:
            position += len(self._chunks[at])
            at += 1
        self._next, self._first_offset = at, offset - position
        self.queued += self.sent - offset
        self.sent = offset
        return True

    def clear(self) -> None:
        self._chunks.clear()
        self._marks = None
        self._next = 0
        self._first_offset = 0
        self.replay_from = self.sent
        self.queued = 0
        self.trailer = None


class Stream:
    """State of one stream; with ``replayable``, what a later tunnel needs to continue it."""

    __slots__ = (
        "answered",
        "attempt",
        "end_unsent",
        "given_up",
        "head",
        "id",
        "inbound",
        "opened",
        "origin",
        "outbound",
        "owner",
        "resetting",
    )

    def __init__(self, id: int, *, replayable: bool = False) -> None:
        self.id = id
        self.inbound = Inbound(STREAM_WINDOW)
        self.outbound = Outbound(STREAM_WINDOW, replayable=replayable)
        self.opened = True
        """The peer may still send body bytes."""
        self.answered = False
        """HEAD has passed."""
        self.resetting = False
        """A RESET was sent or received, and its confirmation is awaited."""
        self.given_up = False
        """Node side: resetting because of its own RESET, which ends the stream for the server."""
        self.origin: tuple[int, int] | None = None
        """Number of the tunnel that opened the stream, and its id there; None until it moves."""
        self.attempt = 0
        """Number of RESUME frames for this stream so far."""
        self.head: bytes | None = None
        """Payload of HEAD, stored by the node as part of the replay buffer."""
        self.end_unsent = False
        """The empty DATA frame that ends the request is to be sent on the next tunnel."""
        self.owner: Any = None
        """The object given to ``Connection.set_owner``; it follows the stream between tunnels."""

    def is_from(self, origin: tuple[int, int], tunnel: int) -> bool:
        """Return whether ``origin`` names this stream, now on tunnel number ``tunnel``."""
        return (self.origin or (tunnel, self.id)) == origin

    def replay_size(self) -> int:
        """Return the bytes in the replay buffer, HEAD included."""
        outbound = self.outbound
        if not outbound.replayable:
            return 0
        return outbound.sent - outbound.replay_from + (len(self.head) if self.head else 0)

    def __repr__(self) -> str:
        state = "resetting" if self.resetting else "answered" if self.answered else "open"
        out, in_ = self.outbound, self.inbound
        return f"<Stream {self.id} {state} in={in_.received} out={out.sent}+{out.queued}>"


class StreamTable(dict[int, Stream]):
    """The streams of one tunnel by id, and the ids that are left."""

    __slots__ = ("flow_errors", "last_id", "max_id", "max_streams")

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.max_streams = limits.streams
        self.max_id = limits.stream_id
        self.last_id = -1
        """The highest id opened so far; ids are odd."""
        self.flow_errors = 0
        """How often a stream has exceeded its credit."""

    def is_full(self) -> bool:
        return len(self) >= self.max_streams
