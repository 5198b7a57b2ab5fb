"""The tunnel's state machine: bytes, calls and ``now`` in; bytes, events and a deadline out.

A connection does no input or output and never raises on what a peer sent: it closes and gives the
reason.  ``server`` and ``node`` hold the two sides.  States of a connection, and of one stream as
the server sees it::

    server: GREETING --HELLO--> OPEN --drain--> DRAINING --close--> CLOSED
    node:                       OPEN --drain--> DRAINING --close--> CLOSED

    open_stream -> waiting --HEAD--> answered --END--> gone
                      |                 |
                      +---- RESET from the node ----> gone
                      +---- reset() ----> resetting --RESET+CONFIRM or END--> gone

A stream that was suspended by a cut stays with its lost connection, which takes commands for it
and sends nothing, until another connection takes it over or ``abandon`` ends it; see ``resume``.
"""

from __future__ import annotations

from abc import abstractmethod
from random import Random
from typing import Any

from protocol.errors import Code, LocalError
from protocol.tunnel import frames
from protocol.tunnel.base import MAX_CONTROL, BaseConnection
from protocol.tunnel.events import DataReceived, StreamReset
from protocol.tunnel.frames import END_FLAG, OFFSET, FrameType
from protocol.tunnel.streams import (
    HIGH_WATER,
    STREAM_WINDOW,
    Inbound,
    Limits,
    Stream,
    StreamTable,
)


class Connection(BaseConnection):
    """One side of a tunnel: what ``ServerConnection`` and ``NodeConnection`` have in common.

    Feed it with ``receive`` and ``handle_timer``; after every call that does something, fetch
    ``events()`` and, while the transport has room, ``data_to_send()``.  ``deadline`` is when
    ``handle_timer`` is to be called; only opening a stream, ``probe`` and ``receive`` move it
    earlier.
    """

    __slots__ = ("_inbound", "_streams", "number")

    def __init__(self, now: float, rng: Random, limits: Limits) -> None:
        super().__init__(now, rng, max(MAX_CONTROL, 2 * limits.streams))
        self.number = 0
        """``Hello.tunnel``; 0 when this tunnel's streams end with it."""
        self._streams = StreamTable(limits)
        self._inbound = Inbound(limits.window)
        self._queue.allowed = limits.window

    def __repr__(self) -> str:
        return (
            f"<Connection {self.role.value} {self.state.value} streams={len(self._streams)}"
            f" credit={self.credit}>"
        )

    # ── observers ─────────────────────────────────────────────────────────────────────────────

    @property
    def active(self) -> int:
        """Number of streams not gone yet, resetting ones included; once closed, suspended ones."""
        return len(self._streams)

    @property
    def credit(self) -> int:
        """Body bytes that the peer accepts on this tunnel now."""
        return self._queue.allowed - self._queue.sent

    @property
    def queued(self) -> int:
        """Body bytes that wait for credit or for their turn."""
        return sum(stream.outbound.queued for stream in self._streams.values())

    @property
    def replay_bytes(self) -> int:
        """Sent bytes held in replay buffers, for a RESUME on another tunnel."""
        return sum(stream.replay_size() for stream in self._streams.values())

    def owner(self, stream_id: int) -> Any:
        """Return the object given to ``set_owner``; it follows the stream between tunnels."""
        stream = self._streams.get(stream_id)
        return None if stream is None else stream.owner

    def set_owner(self, stream_id: int, owner: Any) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.owner = owner

    # ── commands ──────────────────────────────────────────────────────────────────────────────

    def send_data(self, stream_id: int, data: bytes, *, ended: bool = False) -> bool:
        """Queue body bytes; return False to ask for a pause until ``StreamWritable``.

        Data for a stream that is gone is dropped, since its event may not have been handled yet.
        Raises LocalError when the body has ended, and on the node before HEAD.
        """
        stream = self._streams.get(stream_id)
        if stream is None or stream.resetting:
            return True
        outbound = stream.outbound
        if ended or not outbound.accepts_data:
            self._check_send(stream, ended)
        if data:
            outbound.add(data)
        elif not outbound.queued:
            if ended:  # needs no credit, so it need not wait behind those that do
                self._send(frames.encode(FrameType.DATA, END_FLAG, stream_id))
                stream.end_unsent = self.closed
            return True
        if not outbound.scheduled and not self.closed:
            outbound.scheduled = True
            self._queue.ready.append(stream)
        if outbound.queued > HIGH_WATER:
            outbound.writer_waits = True
            return False
        return True

    @abstractmethod
    def reset(self, stream_id: int, code: int, reason: str = "") -> None:
        """Give a stream up; queued bytes are dropped and the RESET overtakes everything."""

    def consumed(self, stream_id: int, count: int) -> bool:
        """Release ``count`` received bytes: the peer may send as many more.

        Return whether a WINDOW is due.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return False  # unconsumed bytes of a stream were released when it went
        inbound = stream.inbound
        consumed = inbound.consumed + count
        if consumed > inbound.received:
            raise LocalError(f"{stream!r} has not received what was consumed")
        due = False
        inbound.consumed = consumed  # counted inline, twice per frame, because calls cost the most
        if inbound.granted - consumed <= inbound.window // 2:
            grant = inbound.grant()
            if stream.opened:
                self._send_window(stream_id, grant)
                due = True
        if inbound.uncounted:
            before = min(inbound.uncounted, count)
            inbound.uncounted -= before
            count -= before
        inbound = self._inbound
        inbound.consumed += count
        if inbound.granted - inbound.consumed <= inbound.window // 2:
            self._send_window(0, inbound.grant())
            due = True
        return due

    def abandon(self, reason: str) -> None:
        """End the suspended streams of a closed connection that none has taken over."""
        if not self.closed:
            raise LocalError(f"{self!r} is not closed")
        for stream in list(self._streams.values()):
            self._lose(stream, reason)
            self._detach(stream)

    def _accept_frames(self) -> None:
        """Accept the frames that both sides send."""
        self._reader.accept(
            {
                FrameType.DATA: self._on_data,
                FrameType.RESET: self._on_reset,
                FrameType.WINDOW: self._on_window,
                FrameType.PING: self._on_ping,
                FrameType.PONG: self._on_pong,
                FrameType.DRAIN: self._on_drain,
                FrameType.CLOSE: self._on_close,
            }
        )

    # ── frames that both sides receive ────────────────────────────────────────────────────────

    def _on_data(self, stream_id: int, flags: int, payload: bytes) -> None:
        count = len(payload)
        inbound = self._inbound  # counted inline, twice per frame, because calls cost the most
        inbound.received += count
        if inbound.received > inbound.granted:
            self.close(Code.FLOW, "more DATA than the tunnel was granted")
            return
        stream = self._streams.get(stream_id)
        if stream is None or stream.resetting:
            self._find(stream_id)  # closes the connection if it never existed
            if stream is not None:
                stream.inbound.discard(count)  # the node stores them until ACK, which counts them
            if not self.closed:
                self._consumed_on_tunnel(count)
            return
        inbound = stream.inbound
        inbound.received += count
        if inbound.received > inbound.granted:
            self._give_up(stream, Code.FLOW, "more DATA than the stream was granted")
            return
        if not inbound.expects_data:
            self._on_unexpected_data(stream, count)
            return
        if flags & END_FLAG:
            if not self._end_body(stream):
                return
        elif not count:
            self._charge_flood_budget("DATA that is empty")
            return
        self._events.append(DataReceived(stream_id, payload, not stream.opened))

    @abstractmethod
    def _on_reset(self, stream_id: int, flags: int, payload: bytes) -> None: ...

    def _on_window(self, stream_id: int, flags: int, payload: bytes) -> None:
        (offset,) = OFFSET.unpack(payload)
        if stream_id == 0:
            queue = self._queue
            if offset - queue.allowed < self._inbound.window // 4:
                self._charge_flood_budget("WINDOW that grants little")
            if offset > queue.sent + self._inbound.window:
                self.close(Code.FLOW, "WINDOW beyond what the tunnel may hold")
            queue.allowed = max(queue.allowed, offset)
            return
        stream = self._find(stream_id)
        if stream is None:
            return
        outbound = stream.outbound
        if offset - outbound.allowed < stream.inbound.window // 4:
            self._charge_flood_budget("WINDOW that grants little")
        if offset > outbound.sent + stream.inbound.window:
            self.close(Code.FLOW, "WINDOW beyond what the stream may hold")
        outbound.allowed = max(outbound.allowed, offset)
        if outbound.replayable:
            outbound.release(outbound.allowed - STREAM_WINDOW)
        if outbound.queued and not outbound.scheduled and not self.closed:
            self._queue.schedule(stream)

    # ── differences between the sides ─────────────────────────────────────────────────────────

    @abstractmethod
    def _check_send(self, stream: Stream, ended: bool) -> None:
        """Raise LocalError when ``send_data`` breaks the order; note the end of the body."""

    @abstractmethod
    def _on_unexpected_data(self, stream: Stream, count: int) -> None:
        """Handle DATA on a stream that does not expect any."""

    @abstractmethod
    def _end_body(self, stream: Stream) -> bool:
        """Handle DATA with the end flag; return False when it is an error."""

    @abstractmethod
    def _after_give_up(self, stream: Stream) -> None:
        """Do what follows a RESET that answers an error of the peer's."""

    @abstractmethod
    def _survives(self, stream: Stream, code: int) -> bool:
        """Return whether the peer's end of the connection suspends the stream, not ends it."""

    def _lose(self, stream: Stream, reason: str) -> None:
        self._events.append(StreamReset(stream.id, Code.LOST, reason))

    # ── small parts ───────────────────────────────────────────────────────────────────────────

    def _send_reset(self, stream_id: int, flags: int, code: int, reason: str) -> None:
        payload = frames.encode_reason(code, reason)
        self._send(frames.encode(FrameType.RESET, flags, stream_id, payload))

    def _send_window(self, stream_id: int, offset: int) -> None:
        self._send(frames.encode(frames.WINDOW, 0, stream_id, OFFSET.pack(offset)))

    def _consumed_on_tunnel(self, count: int) -> None:
        grant = self._inbound.consume(count)
        if grant is not None:
            self._send_window(0, grant)

    def _add_stream(self, stream: Stream, now: float) -> None:
        if not self._streams:
            deadline = self.keepalive.busy(now)
            if deadline < self.deadline:
                self.deadline = deadline
        self._streams[stream.id] = stream

    def _find(self, stream_id: int) -> Stream | None:
        """Return the stream, or None when it is gone; one that never was ends the connection."""
        if stream_id > self._streams.last_id or not stream_id & 1:
            self.close(Code.PROTOCOL, f"stream {stream_id} was never opened")
        return self._streams.get(stream_id)

    def _detach(self, stream: Stream) -> None:
        """Take the stream out of this connection and leave its own state as it is."""
        del self._streams[stream.id]
        if not self._streams:
            self.keepalive.idle()
        if stream.outbound.scheduled:
            self._queue.unschedule(stream)
        unconsumed = stream.inbound.unconsumed()
        if unconsumed > 0:
            self._consumed_on_tunnel(unconsumed)

    def _give_up(self, stream: Stream, code: Code, reason: str) -> None:
        """End a stream on which the peer broke a rule; the second FLOW error ends the tunnel."""
        self._streams.flow_errors += code is Code.FLOW
        if self._streams.flow_errors > 1:
            self.close(code, reason)
            return
        self._send_reset(stream.id, 0, code, reason)
        stream.outbound.clear()
        self._events.append(StreamReset(stream.id, code, reason))
        self._after_give_up(stream)

    def _end_streams(self, code: int, reason: str, *, by_peer: bool) -> None:
        for stream in list(self._streams.values()):
            if not (by_peer and self._survives(stream, code)):
                self._lose(stream, reason)
                del self._streams[stream.id]
