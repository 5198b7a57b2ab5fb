"""Frames and body bytes of a tunnel that wait to be sent, in the order the specification gives."""

from __future__ import annotations

from collections import deque

from protocol.tunnel import frames
from protocol.tunnel.events import Event, StreamWritable
from protocol.tunnel.frames import DATA, END_FLAG, HEADER, MAX_DATA, OFFSET
from protocol.tunnel.streams import LOW_WATER, TUNNEL_WINDOW, Stream

_pack_header = HEADER.pack


class SendQueue:
    """Control frames first, then DATA: one frame per stream in turn, within the tunnel's credit."""

    __slots__ = ("ack", "allowed", "bytes_sent", "control", "ended", "ready", "sent")

    def __init__(self) -> None:
        self.control: list[bytes | memoryview] = []
        self.ready: deque[Stream] = deque()
        """Round-robin of the streams that have bytes to send and credit of their own."""
        self.ack = 0
        """Number of ENDs received that the next ``take`` acknowledges; 0 for no ACK."""
        self.ended: list[Stream] = []
        """Streams whose END the last ``take`` has returned; the owner empties it."""
        self.sent = 0
        """DATA payload bytes handed out: the tunnel's offset."""
        self.allowed = TUNNEL_WINDOW
        self.bytes_sent = 0

    def schedule(self, stream: Stream) -> None:
        stream.outbound.scheduled = True
        self.ready.append(stream)

    def send_at_once(self, stream: Stream, body: bytes, flags: int) -> bool:
        """Put the whole body of a stream behind the frames that go before DATA.

        Return False, and do nothing, if it does not fit one frame and the credit.
        """
        count = len(body)
        if count > MAX_DATA or count > self.allowed - self.sent:
            return False
        self.control.append(_pack_header(DATA, flags, 0, stream.id, count))
        self.control.append(body)
        self.sent += count
        stream.outbound.sent = count
        return True

    def unschedule(self, stream: Stream) -> None:
        # Rarely needed, but a tunnel that waits for credit would accumulate dead entries.
        stream.outbound.scheduled = False
        self.ready.remove(stream)

    def clear(self) -> None:
        for stream in self.ready:
            stream.outbound.scheduled = False
        self.ready.clear()
        self.control.clear()
        self.ack = 0

    def take(self, limit: int, events: list[Event]) -> list[bytes | memoryview]:
        """Return about ``limit`` bytes to send; one DATA frame per stream in turn.

        ``StreamWritable`` is added to ``events`` and ended streams to ``ended``.
        """
        out, self.control = self.control, []
        if self.ack:
            out.append(frames.encode(frames.ACK, 0, 0, OFFSET.pack(self.ack)))
            self.ack = 0
        ready = self.ready
        while ready and limit > 0:
            stream = ready.popleft()
            outbound = stream.outbound
            outbound.scheduled = False
            if outbound.queued:
                room = outbound.allowed - outbound.sent  # the least of three, without calls
                if room <= 0:
                    continue  # WINDOW schedules it again
                if room > MAX_DATA:
                    room = MAX_DATA
                credit = self.allowed - self.sent
                if room > credit:
                    room = credit
                if room <= 0:
                    outbound.scheduled = True
                    ready.appendleft(stream)
                    break  # the whole tunnel waits for credit
                payload = outbound.take(room)
                count = len(payload)
                self.sent += count
                limit -= count
                left = outbound.queued
                last = outbound.ended and not left and outbound.trailer is None
                out.append(_pack_header(DATA, END_FLAG if last else 0, 0, stream.id, count))
                out.append(payload)
                if outbound.writer_waits and left < LOW_WATER:
                    outbound.writer_waits = False
                    events.append(StreamWritable(stream.id))
                if left:
                    outbound.scheduled = True
                    ready.append(stream)
                    continue
            if outbound.trailer is not None:
                out.append(outbound.trailer)
                self.ended.append(stream)
        self.bytes_sent += sum(map(len, out))
        return out
