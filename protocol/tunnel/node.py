"""The node's side of a tunnel: accepts streams, sends answers, hands streams over after a cut."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from protocol import messages
from protocol.errors import Code, LocalError
from protocol.messages import UNREADABLE, Figures, Hello, RequestHead, ResponseHead, Resume
from protocol.tunnel import frames
from protocol.tunnel.base import Role, State
from protocol.tunnel.connection import Connection
from protocol.tunnel.events import StreamOpened, StreamReset, StreamResumed
from protocol.tunnel.frames import CONFIRM_FLAG, END_FLAG, HEADER, OFFSET, FrameType
from protocol.tunnel.resume import ResumeTable, StreamHolder
from protocol.tunnel.streams import (
    NODE_LIMITS,
    STREAM_WINDOW,
    Limits,
    Stream,
)
from protocol.tunnel.unacknowledged import Unacknowledged

_DRAINING = State.DRAINING  # looking a member up on its Enum costs 50 ns on Python 3.11
_decode_head = messages.decoder(RequestHead).decode
_decode_resume = messages.decoder(Resume).decode


class NodeConnection(Connection):
    """The node's side of a tunnel; call ``hello`` first."""

    __slots__ = ("_decode_head", "_resume_table", "_unacknowledged")

    role = Role.NODE

    def __init__(
        self,
        *,
        now: float,
        rng: Random,
        limits: Limits = NODE_LIMITS,
        number: int = 0,
        resume_table: ResumeTable | None = None,
        decode_head: Callable[[bytes], RequestHead] = _decode_head,
    ) -> None:
        """Create the node's side; with ``number`` and ``resume_table``, streams outlive a cut.

        Give both or neither; for ``number`` see ``Hello.tunnel``.
        """
        super().__init__(now, rng, limits)
        self._decode_head = decode_head
        self.number = number
        self._resume_table = resume_table
        self._unacknowledged = Unacknowledged()
        self._accept_frames()
        self._reader.accept({FrameType.OPEN: self._on_open})
        if number:
            self._reader.accept({FrameType.RESUME: self._on_resume, FrameType.ACK: self._on_ack})

    @property
    def replay_bytes(self) -> int:
        return super().replay_bytes + self._unacknowledged.replay_bytes

    @property
    def unacknowledged(self) -> int:
        """Number of ended streams held until the server acknowledges their END."""
        return len(self._unacknowledged)

    # ── commands ──────────────────────────────────────────────────────────────────────────────

    def hello(self, session: bytes) -> None:
        """Send HELLO; must be the first call."""
        lost: list[int] = []
        if self._resume_table is not None:
            lost = self._resume_table.lost[-messages.MAX_LOST :]
            self._resume_table.add(self)
        payload = messages.encode(Hello(messages.VERSION, session, self.number, lost))
        self._queue.control.append(frames.encode(FrameType.HELLO, 0, 0, payload))

    def send_head(self, stream_id: int, head: ResponseHead) -> None:
        """Send status and headers of the answer, once per stream."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.resetting:
            return
        if stream.answered:
            raise LocalError(f"{stream!r} has its head already")
        payload = messages.encode(head)
        if len(payload) > frames.MAX_HEAD:
            raise LocalError(f"a response head of {len(payload)} bytes is over its limit")
        stream.answered = stream.outbound.accepts_data = True
        if self.number:
            stream.head = payload
        if not self.closed:
            self._queue.control.append(frames.encode(frames.HEAD, 0, stream_id, payload))

    def send_answer(
        self, stream_id: int, head: ResponseHead, body: bytes, figures: Figures
    ) -> None:
        """Send a whole answer: ``send_head``, ``send_data`` and ``end_stream`` in one.

        One that fits a frame and the credit goes at once, without a turn of its own.
        """
        self.send_head(stream_id, head)
        stream = self._streams.get(stream_id)
        if (
            body
            and stream is not None
            and not (stream.resetting or self.closed)
            and self._queue.send_at_once(stream, body, 0)
        ):
            stream.outbound.keep(body)
            self._end(stream, figures)
            return
        if body:
            self.send_data(stream_id, body)
        self.end_stream(stream_id, figures)

    def end_stream(self, stream_id: int, figures: Figures) -> None:
        """Complete the answer; the stream is gone once its last byte is sent.

        A stream that the server has reset is gone at once and confirmed: its work has stopped.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if stream.resetting:
            self.confirm_reset(stream_id)
            return
        outbound = stream.outbound
        if outbound.ended:
            raise LocalError(f"{stream!r} has ended already")
        if not stream.answered:
            raise LocalError(f"{stream!r} needs send_head before its end")
        self._end(stream, figures)

    def _end(self, stream: Stream, figures: Figures) -> None:
        outbound = stream.outbound
        outbound.ended = True
        outbound.accepts_data = outbound.writer_waits = stream.inbound.expects_data = False
        stream.owner = None
        end = frames.encode(frames.END, 0, stream.id, messages.encode(figures))
        outbound.trailer = end
        if not outbound.queued and not self.closed:
            self._queue.control.append(end)
            self._on_end_sent(stream)

    def reset(self, stream_id: int, code: int, reason: str = "") -> None:
        """Give a stream up; queued bytes are dropped and the RESET overtakes everything.

        The stream is gone at once.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if stream.resetting:
            self.confirm_reset(stream_id)
            return
        self._send_reset(stream_id, 0, code, reason)
        self._detach(stream)

    def confirm_reset(self, stream_id: int) -> None:
        """Report that the work behind a ``StreamReset`` has stopped."""
        stream = self._streams.get(stream_id)
        if stream is not None and stream.resetting:
            self._send_reset(stream_id, CONFIRM_FLAG, Code.NONE, "")
            self._detach(stream)

    def abandon(self, reason: str) -> None:
        super().abandon(reason)
        self._unacknowledged.clear()
        if self._resume_table is not None:
            self._resume_table.forget(self)

    # ── streams that move to another tunnel (``StreamHolder``) ────────────────────────────────

    def find_stream(self, origin: tuple[int, int]) -> Stream | None:
        tunnel, stream_id = origin
        if tunnel == self.number:  # most streams have not moved
            stream = self._streams.get(stream_id)
            if stream is not None and stream.origin is None:
                return stream
        for streams in (self._streams.values(), self._unacknowledged):
            for stream in streams:
                if stream.is_from(origin, self.number):
                    return stream
        return None

    def hand_over(self, stream: Stream) -> None:
        if self._streams.get(stream.id) is stream:
            self._detach(stream)
        else:
            self._unacknowledged.remove(stream)

    def _take_over(self, holder: StreamHolder, stream: Stream, new_id: int, claim: Resume) -> None:
        """Continue ``stream`` here, whatever state it is in."""
        holder.hand_over(stream)
        stream.origin = (claim.tunnel, claim.stream)
        stream.attempt = claim.attempt
        stream.id = new_id
        inbound, outbound = stream.inbound, stream.outbound
        inbound.move()
        self._add_stream(stream, self.keepalive.last_received)
        self._events.append(StreamResumed(new_id))
        if stream.resetting:
            return  # its work is being stopped, and the server knows
        ended = outbound.ended
        if not ended and (inbound.received != claim.sent or stream.opened == claim.ended):
            self._give_up(stream, Code.UNKNOWN, "a part of the request was lost with its tunnel")
            return
        offset = claim.received
        beyond = claim.allowed > offset + STREAM_WINDOW or (claim.head and not stream.answered)
        if beyond or not outbound.rewind(offset):
            if ended:
                self._send_reset(new_id, 0, Code.PROTOCOL, "RESUME from where nothing is")
                self._detach(stream)
            else:
                self._give_up(stream, Code.PROTOCOL, "RESUME from where nothing is")
            return
        outbound.allowed = max(outbound.allowed, claim.allowed)
        if stream.answered and not claim.head:
            assert stream.head is not None
            self._queue.control.append(frames.encode(frames.HEAD, 0, new_id, stream.head))
        if outbound.trailer is not None:  # the END frame contains the stream id
            end = outbound.trailer[HEADER.size :]
            outbound.trailer = frames.encode(frames.END, 0, new_id, end)
        if outbound.queued or outbound.trailer is not None:
            self._queue.schedule(stream)
        if stream.opened and not ended and inbound.granted > STREAM_WINDOW:
            self._send_window(new_id, inbound.granted)  # the last one may have been lost

    # ── frames from the server ────────────────────────────────────────────────────────────────

    def _on_open(self, stream_id: int, flags: int, payload: bytes) -> None:
        streams = self._streams
        if stream_id <= streams.last_id:
            self.close(Code.PROTOCOL, f"stream {stream_id} opened out of order")
            return
        streams.last_id = stream_id
        try:
            head = self._decode_head(payload)
        except UNREADABLE as error:
            self._send_reset(stream_id, 0, Code.PROTOCOL, f"OPEN: {error}")
            return
        if self.state is _DRAINING:
            self._send_reset(stream_id, 0, Code.DRAINING, "this node is draining")
            return
        if streams.is_full():
            self._send_reset(stream_id, 0, Code.REFUSED, "too many streams on this tunnel")
            return
        stream = Stream(stream_id, replayable=self.number != 0)
        stream.opened = stream.inbound.expects_data = not flags & END_FLAG
        self._add_stream(stream, self.keepalive.last_received)
        self._events.append(StreamOpened(stream_id, head, not stream.opened))

    def _on_reset(self, stream_id: int, flags: int, payload: bytes) -> None:
        code, reason = frames.parse_reason(payload)
        stream = self._find(stream_id)
        if stream is None or stream.resetting:
            return  # it crossed our END or RESET
        stream.resetting = True
        if stream.outbound.ended:  # the work is done, only its last bytes were waiting here
            self.confirm_reset(stream_id)
            return
        stream.outbound.clear()
        self._events.append(StreamReset(stream_id, code, reason))

    def _on_resume(self, stream_id: int, flags: int, payload: bytes) -> None:
        streams = self._streams
        if stream_id <= streams.last_id:
            self.close(Code.PROTOCOL, f"stream {stream_id} resumed out of order")
            return
        streams.last_id = stream_id
        try:
            claim = _decode_resume(payload)
        except UNREADABLE as error:
            self._send_reset(stream_id, 0, Code.PROTOCOL, f"RESUME: {error}")
            return
        if streams.is_full():
            self._send_reset(stream_id, 0, Code.REFUSED, "too many streams on this tunnel")
            return
        assert self._resume_table is not None  # without a table the reader refuses RESUME
        found = self._resume_table.find(claim)
        if found is None or found[1].attempt >= claim.attempt or found[1].given_up:
            self._send_reset(stream_id, 0, Code.UNKNOWN, "this stream is not here any more")
            return
        self._take_over(*found, stream_id, claim)

    def _on_ack(self, stream_id: int, flags: int, payload: bytes) -> None:
        (count,) = OFFSET.unpack(payload)
        if count > self._unacknowledged.sent:
            self.close(Code.PROTOCOL, "ACK of an END that was never sent")
            return
        if count <= self._unacknowledged.acknowledged:
            self._charge_flood_budget("ACK that tells nothing")
        self._unacknowledged.acknowledge(count)

    # ── rules of this side ────────────────────────────────────────────────────────────────────

    def _check_send(self, stream: Stream, ended: bool) -> None:
        if stream.outbound.ended:
            raise LocalError(f"{stream!r} has ended its body already")
        raise LocalError(f"{stream!r} needs send_head before and end_stream after its data")

    def _on_unexpected_data(self, stream: Stream, count: int) -> None:
        if not stream.opened:
            self._give_up(stream, Code.PROTOCOL, "DATA after the end of the body")
        else:  # answered already: the rest of the request is not needed
            self.consumed(stream.id, count)

    def _end_body(self, stream: Stream) -> bool:
        stream.opened = stream.inbound.expects_data = False
        return True

    def _on_end_sent(self, stream: Stream) -> None:
        self._detach(stream)
        if self.number:
            self._unacknowledged.add(stream)

    def _after_give_up(self, stream: Stream) -> None:
        stream.resetting = stream.given_up = True

    def _survives(self, stream: Stream, code: int) -> bool:
        return self._resume_table is not None and code == Code.LOST

    def _lose(self, stream: Stream, reason: str) -> None:
        # The owner of a stream that was reset or has ended needs no further event.
        if not (stream.resetting or stream.outbound.ended):
            super()._lose(stream, reason)

    def _end_streams(self, code: int, reason: str, *, by_peer: bool) -> None:
        super()._end_streams(code, reason, by_peer=by_peer)
        if by_peer and code != Code.LOST:
            self._unacknowledged.clear()  # a server that sends CLOSE resumes nothing
