"""The server's side of a tunnel: opens streams, reads answers, resumes streams after a cut."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from protocol import messages
from protocol.errors import Code, LocalError
from protocol.messages import UNREADABLE, Figures, Hello, RequestHead, ResponseHead, Resume
from protocol.tunnel import frames
from protocol.tunnel.base import Role, State
from protocol.tunnel.connection import Connection
from protocol.tunnel.events import (
    HeadReceived,
    HelloReceived,
    ResetConfirmed,
    StreamEnded,
    StreamReset,
)
from protocol.tunnel.frames import END_FLAG, FrameType
from protocol.tunnel.keepalive import QUIET_SECONDS
from protocol.tunnel.streams import NODE_LIMITS, Limits, Stream
from protocol.tunnel.unacknowledged import AckCounter

GREETING_SECONDS = 5.0
"""Time in which HELLO must come."""
DRAIN_SECONDS = 60.0
"""Time that DRAIN announces on a tunnel whose stream ids are used up."""

_NODE_SENDS = frozenset(FrameType) - {FrameType.OPEN, FrameType.RESUME, FrameType.ACK}

_OPEN = State.OPEN  # looking a member up on its Enum costs 50 ns on Python 3.11
_decode_hello = messages.decoder(Hello).decode
_decode_head = messages.decoder(ResponseHead).decode
_decode_figures = messages.decoder(Figures).decode


class ServerConnection(Connection):
    """The server's side of a tunnel; the first event is ``HelloReceived``."""

    __slots__ = ("_acks", "_decode_head", "_greeting_until", "resumes")

    role = Role.SERVER

    def __init__(
        self,
        *,
        now: float,
        rng: Random,
        limits: Limits = NODE_LIMITS,
        resumes: bool = False,
        decode_head: Callable[[bytes], ResponseHead] = _decode_head,
    ) -> None:
        """Create the server's side; with ``resumes``, the owner resumes streams after a cut."""
        super().__init__(now, rng, limits)
        self._decode_head = decode_head
        self.state = State.GREETING
        self._greeting_until = self.deadline = now + GREETING_SECONDS
        self.resumes = resumes
        self._acks = AckCounter()
        self._reader.accept({FrameType.HELLO: self._on_hello, FrameType.CLOSE: self._on_close})

    @property
    def usable(self) -> bool:
        """``open_stream`` works now."""
        streams = self._streams
        return (
            self.state is _OPEN
            and not self.keepalive.suspected
            and len(streams) < streams.max_streams
            and streams.last_id + 2 <= streams.max_id
        )

    @property
    def free_streams(self) -> int:
        """Streams that can be opened now, beside those that are open."""
        return self._streams.max_streams - len(self._streams) if self.usable else 0

    # ── commands ──────────────────────────────────────────────────────────────────────────────

    def open_stream(
        self, head: RequestHead, *, now: float, body: bytes = b"", ended: bool = False
    ) -> int:
        """Start a request with what there is of its body, and return its stream id.

        More of it may follow in the same flight unless it is ``ended``.  Raises LocalError when
        ``usable`` is False or the head is over its limit.
        """
        if not self.usable:
            raise LocalError(f"no stream can be opened on {self!r}")
        payload = messages.encode(head)
        if len(payload) > frames.MAX_HEAD:
            raise LocalError(f"a request head of {len(payload)} bytes is over its limit")
        stream = Stream(self._streams.last_id + 2)
        queue = self._queue
        flags = END_FLAG if ended and not body else 0
        queue.control.append(frames.encode(frames.OPEN, flags, stream.id, payload))
        whole = ended and (not body or queue.send_at_once(stream, body, END_FLAG))
        stream.outbound.ended = whole
        stream.outbound.accepts_data = not whole
        self._start(stream, now)
        if body and not whole:
            self.send_data(stream.id, body, ended=ended)
        return stream.id

    def resume_stream(self, former: ServerConnection, former_id: int, *, now: float) -> int:
        """Continue a stream here that ``former`` has left suspended; return its new id.

        Its events are those of any other stream: ``StreamReset`` with LOST when the node no longer
        has it.  Raises LocalError when ``usable`` or ``resumes`` is False.
        """
        if not (self.usable and self.resumes):
            raise LocalError(f"no stream can be resumed on {self!r}")
        stream = former.release(former_id)
        stream.attempt += 1
        inbound, outbound = stream.inbound, stream.outbound
        inbound.move()
        stream.id = self._streams.last_id + 2
        assert stream.origin is not None
        claim = Resume(
            *stream.origin,
            stream.attempt,
            stream.answered,
            inbound.received,
            inbound.granted,
            outbound.sent,
            outbound.ended and not outbound.queued and not stream.end_unsent,
        )
        payload = messages.encode(claim)
        self._queue.control.append(frames.encode(FrameType.RESUME, 0, stream.id, payload))
        if stream.resetting:  # whether or not the node has received the RESET
            self._send_reset(stream.id, 0, Code.CANCELLED, "given up")
        elif outbound.queued:
            self._queue.schedule(stream)
        elif stream.end_unsent:
            end = frames.encode(FrameType.DATA, END_FLAG, stream.id)
            self._queue.control.append(end)
        stream.end_unsent = False
        self._start(stream, now)
        return stream.id

    def release(self, stream_id: int) -> Stream:
        """Let another connection have a suspended stream."""
        stream = self._streams[stream_id]
        self._detach(stream)
        if stream.origin is None:
            stream.origin = (self.number, stream_id)
        return stream

    def reset(self, stream_id: int, code: int, reason: str = "") -> None:
        """Give a stream up; queued bytes are dropped and the RESET overtakes everything.

        The stream is gone with ``ResetConfirmed`` or, when an END crossed it, ``StreamEnded``.
        """
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.resetting:
            self._send_reset(stream_id, 0, code, reason)
            stream.outbound.clear()
            stream.resetting = True

    def handle_timer(self, now: float) -> None:
        if self.state is State.GREETING:
            if now >= self._greeting_until:
                self.close(Code.TIMEOUT, "no HELLO in time")
            return
        super().handle_timer(now)

    # ── frames from the node ──────────────────────────────────────────────────────────────────

    def _on_hello(self, stream_id: int, flags: int, payload: bytes) -> None:
        if self.state is not State.GREETING:
            self.close(Code.PROTOCOL, "a second HELLO")
            return
        try:
            hello = _decode_hello(payload)
        except UNREADABLE as error:
            self.close(Code.PROTOCOL, f"HELLO: {error}")
            return
        if hello.version != messages.VERSION:
            reason = f"protocol {hello.version} is not spoken here, {messages.VERSION} is"
            self.close(Code.OBSOLETE, reason)
            return
        self.state = State.OPEN
        self.number = hello.tunnel
        self.resumes = self.resumes and bool(hello.tunnel)
        self.deadline = self.keepalive.deadline()
        self._accept_frames()
        self._reader.accept({FrameType.HEAD: self._on_head, FrameType.END: self._on_end})
        self._events.append(HelloReceived(hello))

    def _on_head(self, stream_id: int, flags: int, payload: bytes) -> None:
        stream = self._streams.get(stream_id) or self._find(stream_id)
        if stream is None or stream.resetting:
            return
        if stream.answered:
            self._give_up(stream, Code.PROTOCOL, "a second HEAD")
            return
        try:
            head = self._decode_head(payload)
        except UNREADABLE as error:
            self._give_up(stream, Code.PROTOCOL, f"HEAD: {error}")
            return
        stream.answered = stream.inbound.expects_data = True
        self._events.append(HeadReceived(stream_id, head))

    def _on_end(self, stream_id: int, flags: int, payload: bytes) -> None:
        stream = self._streams.get(stream_id) or self._find(stream_id)
        if self.resumes and not self.closed:
            queue = self._queue
            answer_bytes = 0 if stream is None else stream.inbound.received
            queue.ack = self._acks.count(answer_bytes, queue.ack)
        if stream is None:
            return
        if not stream.answered and not stream.resetting:
            self._give_up(stream, Code.PROTOCOL, "END before HEAD")
            return
        try:
            figures = _decode_figures(payload)
        except UNREADABLE as error:
            self._give_up(stream, Code.PROTOCOL, f"END: {error}")
            return
        self._detach(stream)
        self._events.append(StreamEnded(stream_id, figures))

    def _on_reset(self, stream_id: int, flags: int, payload: bytes) -> None:
        code, reason = frames.parse_reason(payload)
        stream = self._find(stream_id)
        if stream is None:
            return  # it crossed a RESET of this side's
        self._detach(stream)
        if stream.resetting:
            self._events.append(ResetConfirmed(stream_id))
        elif stream.attempt and code == Code.UNKNOWN:
            self._events.append(StreamReset(stream_id, Code.LOST, reason))
        else:
            self._events.append(StreamReset(stream_id, code, reason))

    # ── rules of this side ────────────────────────────────────────────────────────────────────

    def _refuse_type(self, type: FrameType) -> str:
        if self.state is State.GREETING and type in _NODE_SENDS:
            return f"{type.name} before HELLO"
        return super()._refuse_type(type)

    def _check_send(self, stream: Stream, ended: bool) -> None:
        outbound = stream.outbound
        if outbound.ended:
            raise LocalError(f"{stream!r} has ended its body already")
        outbound.ended = ended
        outbound.accepts_data = not ended

    def _on_unexpected_data(self, stream: Stream, count: int) -> None:
        self._give_up(stream, Code.PROTOCOL, "DATA before HEAD")

    def _end_body(self, stream: Stream) -> bool:
        self.close(Code.PROTOCOL, "DATA with the end flag from a node")
        return False

    def _on_end_sent(self, stream: Stream) -> None:
        raise AssertionError("servers send no END")

    def _after_give_up(self, stream: Stream) -> None:
        self._detach(stream)

    def _survives(self, stream: Stream, code: int) -> bool:
        if code == Code.LOST:
            return self.resumes
        # Our RESUME has crossed the CLOSE of a node that knew of no streams here.
        return self.resumes and code == Code.NONE and stream.attempt > 0

    # ── small parts ───────────────────────────────────────────────────────────────────────────

    def _start(self, stream: Stream, now: float) -> None:
        """Add a stream that was just opened or resumed."""
        self._streams.last_id = stream.id
        self._add_stream(stream, now)
        if now - self.keepalive.last_received >= QUIET_SECONDS and len(self._streams) == 1:
            self.probe(now)  # with more streams, silence is noticed anyway
        if stream.id + 2 > self._streams.max_id:
            # Two days at full speed: the node dials anew when this one has closed behind the last.
            self.drain("stream ids are used up", DRAIN_SECONDS)
