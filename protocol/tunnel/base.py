"""The part of a tunnel's connection that knows no streams: state, keepalive, floods, closing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from random import Random
from typing import ClassVar

from protocol import messages
from protocol.errors import Code
from protocol.messages import UNREADABLE, Drain
from protocol.token_bucket import TokenBucket
from protocol.tunnel import frames
from protocol.tunnel.events import (
    ConnectionClosed,
    DrainReceived,
    Event,
    PongReceived,
    SilenceNoticed,
)
from protocol.tunnel.frame_reader import FrameReader
from protocol.tunnel.frames import OFFSET, FrameType
from protocol.tunnel.keepalive import KeepAlive, Verdict
from protocol.tunnel.send_queue import SendQueue
from protocol.tunnel.streams import Stream

MAX_CONTROL = 4096
"""Control frames that may wait to be sent; a peer that provokes more is flooding this side."""
FLOOD_BURST, FLOOD_PER_SECOND = 100.0, 20.0
"""Frames that do no work (PING, a WINDOW that grants little, empty DATA): a token bucket."""

_decode_drain = messages.decoder(Drain).decode


class Role(Enum):
    SERVER = "server"
    NODE = "node"


class State(Enum):
    GREETING = "greeting"
    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


class BaseConnection(ABC):
    """Reads and queues frames, watches the peer, and ends the connection with a reason."""

    # An instance with a __dict__ is slower from 30 attributes on (Python 3.11).
    __slots__ = (
        "_draining",
        "_events",
        "_flood_budget",
        "_max_control",
        "_queue",
        "_reader",
        "closed",
        "deadline",
        "keepalive",
        "state",
    )

    role: ClassVar[Role]

    def __init__(self, now: float, rng: Random, max_control: int = MAX_CONTROL) -> None:
        self.state = State.OPEN
        self.closed = False
        self.keepalive = KeepAlive(now, rng)
        self.deadline = self.keepalive.deadline()
        self._events: list[Event] = []
        self._queue = SendQueue()
        self._max_control = max_control
        self._draining = False
        """``drain`` was called: the tunnel closes behind its last stream."""
        self._flood_budget = TokenBucket(FLOOD_BURST, FLOOD_PER_SECOND, now)
        self._reader = FrameReader(self._refuse_type)

    # ── observers ─────────────────────────────────────────────────────────────────────────────

    @property
    @abstractmethod
    def active(self) -> int:
        """Number of streams not gone yet, resetting ones included; once closed, suspended ones."""

    @property
    def suspected(self) -> bool:
        """``probe`` was not answered in time, and nothing has answered since."""
        return self.keepalive.suspected

    @property
    def bytes_received(self) -> int:
        return self._reader.bytes_received

    @property
    def bytes_sent(self) -> int:
        return self._queue.bytes_sent

    @property
    def frames_received(self) -> int:
        return self._reader.frames_received

    def has_output(self) -> bool:
        """Return False when ``data_to_send`` has nothing."""
        queue = self._queue
        return bool(
            queue.control or queue.ready or queue.ack or (self._draining and self._has_drained)
        )

    @property
    def _has_drained(self) -> bool:
        """The last stream is gone and everything is sent."""
        return not (self.active or self._queue.control or self._queue.ready or self.closed)

    def events(self) -> list[Event]:
        """Return what has happened since the last call."""
        events = self._events
        if events:
            self._events = []
        return events

    # ── commands ──────────────────────────────────────────────────────────────────────────────

    def ping(self, now: float) -> None:
        """Measure the round trip; ``PongReceived`` follows."""
        if not self.closed:
            payload = OFFSET.pack(self.keepalive.ping(now))
            self._queue.control.append(frames.encode(FrameType.PING, 0, 0, payload))

    def probe(self, now: float) -> None:
        """Check that the peer responds: ``PongReceived`` follows, or ``SilenceNoticed``."""
        self.ping(now)
        if not self.closed:
            self.deadline = min(self.deadline, self.keepalive.probe(now))

    def challenge(self, now: float) -> None:
        """Give the peer up unless it responds at once: the path to it may be gone."""
        self.ping(now)
        if not self.closed:
            self.deadline = min(self.deadline, self.keepalive.challenge(now))

    def drain(self, reason: str, seconds: float) -> None:
        """Take no new streams from now on, and close behind the last one that runs."""
        self._draining = True
        if self.state is State.GREETING:
            self.close(Code.DRAINING, reason)
        elif self.state is State.OPEN:
            self.state = State.DRAINING
            bounded = min(max(seconds, 0.0), messages.MAX_SECONDS)
            payload = messages.encode(Drain(frames.cut(reason, 1000), bounded))
            self._queue.control.append(frames.encode(FrameType.DRAIN, 0, 0, payload))

    def close(self, code: int, reason: str = "") -> None:
        """Close with CLOSE: call ``data_to_send`` once more, then close the transport."""
        if not self.closed:
            payload = frames.encode_reason(code, reason)
            self._shut(code, reason, by_peer=False)
            self._queue.control.append(frames.encode(FrameType.CLOSE, 0, 0, payload))

    def lost(self, reason: str) -> None:
        """Note that the transport is gone."""
        if not self.closed:
            self._shut(Code.LOST, reason, by_peer=True)

    # ── driver: time and bytes ────────────────────────────────────────────────────────────────

    def handle_timer(self, now: float) -> None:
        """Act on ``deadline``; calling early does no harm."""
        if self.closed:
            return
        while (verdict := self.keepalive.check(now)) is not Verdict.WAIT:
            match verdict:
                case Verdict.PING:
                    self.ping(now)
                case Verdict.SUSPECT:
                    self._events.append(SilenceNoticed())
                case Verdict.DEAD:
                    self.lost(f"silent for {now - self.keepalive.last_received:.0f} s")
                    return
        self.deadline = self.keepalive.deadline()

    def data_to_send(self, limit: int = 256 * 1024) -> list[bytes | memoryview]:
        """Return control frames, then DATA, one frame per stream in turn, about ``limit`` bytes.

        Call again while it returns something and the transport has room: a RESET can overtake
        what is still here, but not what was handed out.
        """
        queue = self._queue
        if self._draining and not queue.ack and self._has_drained:
            self.close(Code.NONE, "drained")
        out = queue.take(limit, self._events)
        if queue.ended:
            for stream in queue.ended:
                self._on_end_sent(stream)
            queue.ended.clear()
        return out

    def receive(self, data: bytes, now: float) -> None:
        """Take bytes from the wire, cut anywhere; those after the end are ignored."""
        if self.closed:
            return
        self.keepalive.last_received = now
        problem = self._reader.feed(data)
        if problem is not None:
            self.close(Code.PROTOCOL, problem)
        elif len(self._queue.control) > self._max_control:
            self.close(Code.CALM, "too many frames that ask for an answer")

    # ── frames on the tunnel itself ───────────────────────────────────────────────────────────

    def _on_ping(self, stream_id: int, flags: int, payload: bytes) -> None:
        self._queue.control.append(frames.encode(FrameType.PONG, 0, 0, payload))
        self._charge_flood_budget("PING")

    def _on_pong(self, stream_id: int, flags: int, payload: bytes) -> None:
        round_trip = self.keepalive.pong(OFFSET.unpack(payload)[0])
        if round_trip is not None:
            self._events.append(PongReceived(round_trip))
        else:
            self._charge_flood_budget("PONG that nobody asked for")

    def _on_drain(self, stream_id: int, flags: int, payload: bytes) -> None:
        try:
            drain = _decode_drain(payload)
        except UNREADABLE as error:
            self.close(Code.PROTOCOL, f"DRAIN: {error}")
            return
        if self.state is not State.DRAINING:
            self.state = State.DRAINING
            self._events.append(DrainReceived(drain))
        else:
            self._charge_flood_budget("DRAIN while draining")

    def _on_close(self, stream_id: int, flags: int, payload: bytes) -> None:
        code, reason = frames.parse_reason(payload)
        self._shut(code, reason, by_peer=True)

    # ── parts for subclasses ──────────────────────────────────────────────────────────────────

    def _refuse_type(self, type: FrameType) -> str:
        """Return why a frame of this type is an error now."""
        return f"{type.name} from this side"

    @abstractmethod
    def _on_end_sent(self, stream: Stream) -> None:
        """Let go of a stream whose END was handed out."""

    @abstractmethod
    def _end_streams(self, code: int, reason: str, *, by_peer: bool) -> None:
        """End or suspend all streams: the connection has just been closed."""

    def _send(self, frame: bytes) -> None:
        if not self.closed:  # an owner of a suspended stream need not know that it is
            self._queue.control.append(frame)

    def _charge_flood_budget(self, what: str) -> None:
        if self._flood_budget.take(1, self.keepalive.last_received) < 0:
            self.close(Code.CALM, f"too much {what}")

    def _shut(self, code: int, reason: str, *, by_peer: bool) -> None:
        self.state = State.CLOSED
        self.closed = True
        self._queue.clear()
        self._reader.stop()
        self._end_streams(code, reason, by_peer=by_peer)
        self.deadline = float("inf")
        self._events.append(ConnectionClosed(code, reason, by_peer))
