"""The tunnel's state machine: bytes, calls and ``now`` in; bytes, events and a deadline out.

It does no input or output and never raises on what a peer sent: it closes and says why.  States of
a connection, and of one stream as the server sees it::

    server: GREETING --HELLO--> OPEN --drain--> DRAINING --close--> CLOSED
    node:                       OPEN --drain--> DRAINING --close--> CLOSED

    open_stream -> waiting --HEAD--> answered --END--> gone
                      |                 |
                      +---- RESET from the node ----> gone
                      +---- reset() ----> resetting --RESET+CONFIRM or END--> gone

A stream that its tunnel's cut has suspended stays with the lost connection, which takes commands
and says nothing, until another connection takes it over or ``abandon`` ends it; see ``resume``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from random import Random
from typing import Any

from protocol import messages
from protocol.errors import Code, LocalError
from protocol.messages import (
    UNREADABLE,
    Drain,
    Figures,
    Hello,
    RequestHead,
    ResponseHead,
    Resume,
)
from protocol.token_bucket import TokenBucket
from protocol.tunnel import frames
from protocol.tunnel.events import (
    ConnectionClosed,
    DataReceived,
    DrainReceived,
    Event,
    HeadReceived,
    HelloReceived,
    PongReceived,
    ResetConfirmed,
    SilenceNoticed,
    StreamEnded,
    StreamOpened,
    StreamReset,
    StreamResumed,
    StreamWritable,
)
from protocol.tunnel.frames import CONFIRM_FLAG, END_FLAG, HEADER, MAX_DATA, OFFSET, FrameType
from protocol.tunnel.keepalive import QUIET_SECONDS, KeepAlive, Verdict
from protocol.tunnel.resume import ResumeTable
from protocol.tunnel.streams import (
    HIGH_WATER,
    LOW_WATER,
    STREAM_WINDOW,
    TUNNEL_WINDOW,
    Inbound,
    Stream,
)

GREETING_SECONDS = 5.0
MAX_STREAMS = 256
LAST_STREAM = 2**32 - 1
LEAVE_SECONDS = 60.0
MAX_UNACKNOWLEDGED = 1024
"""Ended streams that a node keeps until their END is acknowledged, and no more bytes of them than
the tunnel's window; the oldest go first, and could not be resumed any more."""
ACK_DEBT, ACK_SHARE = 64 * 1024, 4 * 1024
"""ENDs are acknowledged for so many bytes of answers at a time; each END counts as so many."""
MAX_CONTROL = 4096
"""Control frames that may wait to be sent; a peer that provokes more is flooding us."""
CALM_BURST, CALM_PER_SECOND = 100.0, 20.0
"""Frames that do no work (PING, a WINDOW that grants little, empty DATA): a token bucket."""

_unpack_header = HEADER.unpack_from
_pack_header = HEADER.pack

_decode_hello = messages.decoder(Hello).decode
_decode_request = messages.decoder(RequestHead).decode
_decode_response = messages.decoder(ResponseHead).decode
_decode_figures = messages.decoder(Figures).decode
_decode_drain = messages.decoder(Drain).decode
_decode_resume = messages.decoder(Resume).decode


class Role(Enum):
    SERVER = "server"
    NODE = "node"


class State(Enum):
    GREETING = "greeting"
    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


# For the hot path: looking a member up on its Enum costs 50 ns on Python 3.11, a global 5.
_SERVER, _NODE = Role.SERVER, Role.NODE
_GREETING = State.GREETING
_DATA = int(FrameType.DATA)


class Connection:
    """One side of a tunnel.

    Feed it with ``receive`` and ``handle_timer``; after every call that does something, fetch
    ``events()`` and, while the transport has room, ``data_to_send()``.  ``deadline`` tells when
    ``handle_timer`` wants to be called; only ``open_stream`` and ``receive`` move it earlier.
    """

    # Beyond 30 attributes Python 3.11 gives up its fast ones for instances without slots: all
    # that a tunnel does takes a fifth longer then.
    __slots__ = (
        "_ack_debt",
        "_ack_due",
        "_allowed",
        "_control",
        "_ended",
        "_ended_before",
        "_ended_bytes",
        "_events",
        "_flood_budget",
        "_flow_errors",
        "_greeting_until",
        "_inbound",
        "_keeper",
        "_last_id",
        "_last_stream",
        "_leaving",
        "_most_streams",
        "_never",
        "_now",
        "_on_frame",
        "_partial",
        "_ping_answered",
        "_ping_at",
        "_ping_token",
        "_ready",
        "_sent",
        "_streams",
        "_wanted",
        "bytes_received",
        "bytes_sent",
        "closed",
        "deadline",
        "doubted",
        "frames_received",
        "keepalive",
        "number",
        "resumes",
        "role",
        "round_trip",
        "state",
    )

    def __init__(
        self,
        role: Role,
        *,
        now: float,
        rng: Random,
        most_streams: int = MAX_STREAMS,
        last_stream: int = LAST_STREAM,
        resumes: bool = False,
        number: int = 0,
        keeper: ResumeTable | None = None,
    ) -> None:
        """``resumes``: server side, its owner takes suspended streams to other tunnels.

        ``number`` and ``keeper``: node side, see ``Hello.tunnel``; both or neither.
        """
        self.role = role
        self.state = State.GREETING if role is Role.SERVER else State.OPEN
        self.closed = False
        self.doubted = False
        """Whether ``probe`` had no answer so far."""
        self.round_trip: float | None = None
        self.keepalive = KeepAlive(now, rng)
        self.deadline = self.keepalive.deadline()
        if role is Role.SERVER:
            self._greeting_until = self.deadline = now + GREETING_SECONDS
        self.bytes_received = 0
        self.bytes_sent = 0
        self.frames_received = 0
        self.number = number
        """``Hello.tunnel``; 0 when this tunnel's streams end with it."""
        self.resumes = resumes
        self._keeper = keeper
        self._ended: deque[Stream | None] = deque()
        """Node side: streams whose END was sent and not acknowledged; None for one that moved."""
        self._ended_before = 0
        """ENDs of the node's that came before those, or were received by the server."""
        self._ended_bytes = 0
        self._ack_due = False
        self._ack_debt = 0
        self._most_streams = most_streams
        self._last_stream = last_stream
        self._streams: dict[int, Stream] = {}
        self._last_id = -1
        self._partial = bytearray()
        self._wanted = 0
        self._events: list[Event] = []
        self._control: list[bytes] = []
        self._ready: deque[Stream] = deque()
        self._inbound = Inbound(TUNNEL_WINDOW)
        self._sent = 0
        self._allowed = TUNNEL_WINDOW
        self._flow_errors = 0
        self._leaving = False
        self._flood_budget = TokenBucket(CALM_BURST, CALM_PER_SECOND, now)
        self._now = now
        self._ping_token = 0
        self._ping_at = now
        self._ping_answered = True
        resuming = (FrameType.RESUME, FrameType.ACK)
        from_nodes = (FrameType.HELLO, FrameType.HEAD, FrameType.END)
        self._never: tuple[FrameType, ...]
        if role is Role.SERVER:
            self._never = (FrameType.OPEN, *resuming)
        else:
            self._never = from_nodes if number else (*from_nodes, *resuming)
        self._on_frame: dict[int, Callable[[int, int, bytes], None]] = {
            FrameType.HELLO: self._on_hello,
            FrameType.OPEN: self._on_open,
            FrameType.HEAD: self._on_head,
            FrameType.DATA: self._on_data,
            FrameType.END: self._on_end,
            FrameType.RESET: self._on_reset,
            FrameType.WINDOW: self._on_window,
            FrameType.PING: self._on_ping,
            FrameType.PONG: self._on_pong,
            FrameType.DRAIN: self._on_drain,
            FrameType.CLOSE: self._on_close,
            FrameType.RESUME: self._on_resume,
            FrameType.ACK: self._on_ack,
        }

    def __repr__(self) -> str:
        return (
            f"<Connection {self.role.value} {self.state.value} streams={len(self._streams)}"
            f" credit={self.credit}>"
        )

    # ── what an owner may ask ─────────────────────────────────────────────────────────────────

    @property
    def active(self) -> int:
        """Streams that are not gone yet, resetting ones included; once closed, suspended ones."""
        return len(self._streams)

    @property
    def usable(self) -> bool:
        """Whether ``open_stream`` would work now."""
        return (
            self.state is State.OPEN
            and not self.doubted
            and len(self._streams) < self._most_streams
            and self._last_id + 2 <= self._last_stream
        )

    @property
    def credit(self) -> int:
        """Body bytes that the peer would take on this tunnel now."""
        return self._allowed - self._sent

    @property
    def queued(self) -> int:
        """Body bytes that wait for credit or for their turn."""
        return sum(stream.outbound.queued for stream in self._streams.values())

    @property
    def has_output(self) -> bool:
        """Whether ``data_to_send`` may have something."""
        return bool(
            self._control or self._ready or self._ack_due or (self._leaving and self._is_done)
        )

    @property
    def _is_done(self) -> bool:
        """This side has drained, the last stream is gone, and everything was said."""
        return (
            self._leaving
            and not (self._streams or self._control or self._ready)
            and not self.closed
        )

    def events(self) -> list[Event]:
        """What has happened since the last call."""
        events = self._events
        if events:
            self._events = []
        return events

    @property
    def kept(self) -> int:
        """Bytes that were sent and are kept, should they be asked for on another tunnel."""
        return self._ended_bytes + sum(stream.kept for stream in self._streams.values())

    def owner(self, stream_id: int) -> Any:
        """What ``own`` was told; goes along when the stream moves."""
        stream = self._streams.get(stream_id)
        return None if stream is None else stream.owner

    def own(self, stream_id: int, owner: Any) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.owner = owner

    # ── commands ──────────────────────────────────────────────────────────────────────────────

    def hello(self, session: bytes) -> None:
        """Node side: must be the first call."""
        lost: list[int] = []
        if self._keeper is not None:
            lost = self._keeper.lost[-messages.MAX_LOST :]
            self._keeper.add(self)
        payload = messages.encode(Hello(messages.VERSION, session, self.number, lost))
        self._control.append(frames.encode(FrameType.HELLO, 0, 0, payload))

    def open_stream(self, head: RequestHead, *, now: float, ended: bool = False) -> int:
        """Server side: start a request; body bytes may follow at once, in the same flight.

        Raises LocalError when ``usable`` is False or the head is over its limit.
        """
        if not self.usable:
            raise LocalError(f"no stream can be opened on {self!r}")
        payload = messages.encode(head)
        if len(payload) > frames.MAX_HEAD:
            raise LocalError(f"a request head of {len(payload)} bytes is over its limit")
        self._last_id = stream_id = self._last_id + 2
        stream = self._add_stream(Stream(stream_id), now)
        stream.outbound.ended = ended
        flags = END_FLAG if ended else 0
        self._control.append(frames.encode(FrameType.OPEN, flags, stream_id, payload))
        if now - self.keepalive.heard >= QUIET_SECONDS:
            self._probe_idle(now)
        self._spare_ids()
        return stream_id

    def resume_stream(self, lost: Connection, lost_id: int, *, now: float) -> int:
        """Server side: go on here with a stream that ``lost`` has left suspended.

        Returns its new id.  What comes of it is told like that of any other stream: when the node
        has forgotten it, ``StreamReset`` says LOST.  Raises LocalError when ``usable`` or
        ``resumes`` is False.
        """
        if not (self.usable and self.resumes):
            raise LocalError(f"no stream can be resumed on {self!r}")
        stream = lost._streams[lost_id]
        lost._detach(stream)
        if stream.origin is None:
            stream.origin = (lost.number, lost_id)
        stream.attempt += 1
        inbound, outbound = stream.inbound, stream.outbound
        inbound.moved()
        self._last_id = stream.id = self._last_id + 2
        self._add_stream(stream, now)
        claim = Resume(
            *stream.origin,
            stream.attempt,
            stream.answered,
            inbound.received,
            inbound.granted,
            outbound.sent,
            outbound.ended and not outbound.queued and not stream.owes_end,
        )
        self._control.append(frames.encode(FrameType.RESUME, 0, stream.id, messages.encode(claim)))
        if stream.resetting:  # whether the node has heard of it or not
            self._send_reset(stream.id, 0, Code.CANCELLED, "given up")
        elif outbound.queued:
            self._list(stream)
        elif stream.owes_end:
            self._control.append(_pack_header(_DATA, END_FLAG, 0, stream.id, 0))
        stream.owes_end = False
        if now - self.keepalive.heard >= QUIET_SECONDS:
            self._probe_idle(now)
        self._spare_ids()
        return stream.id

    def abandon(self, reason: str) -> None:
        """Once closed: suspended streams that nobody has taken over are lost."""
        if not self.closed:
            raise LocalError(f"{self!r} is not closed")
        for stream in list(self._streams.values()):
            self._lose(stream, reason)
            self._remove(stream)
        self._ended.clear()
        self._ended_bytes = 0
        if self._keeper is not None:
            self._keeper.forget(self)

    def send_head(self, stream_id: int, head: ResponseHead) -> None:
        """Node side: the answer's status and headers, once per stream."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.resetting:
            return
        if stream.answered:
            raise LocalError(f"{stream!r} has its head already")
        payload = messages.encode(head)
        if len(payload) > frames.MAX_HEAD:
            raise LocalError(f"a response head of {len(payload)} bytes is over its limit")
        stream.answered = True
        if self.number:
            stream.head = payload
        if not self.closed:
            self._control.append(frames.encode(FrameType.HEAD, 0, stream_id, payload))

    def send_data(self, stream_id: int, data: bytes, *, ended: bool = False) -> bool:
        """Queue body bytes.  False: send no more before ``StreamWritable``.

        A stream that is gone swallows them, since its event may not have been handled yet.
        """
        stream = self._streams.get(stream_id)
        if stream is None or stream.resetting:
            return True
        outbound = stream.outbound
        if outbound.ended:
            raise LocalError(f"{stream!r} has ended its body already")
        if self.role is _NODE and (ended or not stream.answered):
            raise LocalError(f"{stream!r} needs send_head before and end_stream after its data")
        outbound.ended = ended
        if data:
            outbound.add(data)
        elif not outbound.queued:
            if ended:  # needs no credit, so it need not wait behind those that do
                self._say(_pack_header(_DATA, END_FLAG, 0, stream_id, 0))
                stream.owes_end = self.closed
            return True
        if not stream.listed and not self.closed:
            stream.listed = True
            self._ready.append(stream)
        if outbound.queued > HIGH_WATER:
            stream.waiting = True
            return False
        return True

    def end_stream(self, stream_id: int, figures: Figures) -> None:
        """Node side: the answer is complete; the stream is gone once its last byte is sent.

        One that the server has reset is gone at once, and confirmed: its work has stopped.
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
        outbound.ended = True
        stream.waiting = False
        stream.owner = None
        end = frames.encode(FrameType.END, 0, stream_id, messages.encode(figures))
        if outbound.queued or self.closed:
            outbound.trailer = end  # and listed, unless it waits for credit or another tunnel
        else:
            self._control.append(end)
            self._end(stream, end)

    def reset(self, stream_id: int, code: int, reason: str = "") -> None:
        """Give a stream up; queued bytes are dropped and the RESET overtakes everything.

        Node side the stream is gone at once; server side with ``ResetConfirmed`` (or, when an
        END crossed it, ``StreamEnded``).
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if stream.resetting:
            self.confirm_reset(stream_id)
            return
        self._send_reset(stream_id, 0, code, reason)
        stream.outbound.clear()
        if self.role is Role.NODE:
            self._remove(stream)
        else:
            stream.resetting = True

    def confirm_reset(self, stream_id: int) -> None:
        """Node side: the work behind a ``StreamReset`` has stopped."""
        stream = self._streams.get(stream_id)
        if stream is not None and stream.resetting and self.role is Role.NODE:
            self._send_reset(stream_id, CONFIRM_FLAG, Code.NONE, "")
            self._remove(stream)

    def consumed(self, stream_id: int, count: int) -> None:
        """``count`` received bytes have gone on: the peer may send as many more."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return  # what a stream leaves behind is given back when it goes
        inbound = stream.inbound
        if inbound.consumed + count > inbound.received:
            raise LocalError(f"{stream!r} has not received what was consumed")
        grant = inbound.consume(count)
        if grant is not None and stream.opened:
            self._send_window(stream_id, grant)
        if inbound.elsewhere:
            before = min(inbound.elsewhere, count)
            inbound.elsewhere -= before
            count -= before
        grant = self._inbound.consume(count)
        if grant is not None:
            self._send_window(0, grant)

    def ping(self, now: float) -> None:
        """Ask for a round trip; ``PongReceived`` tells."""
        if self.closed:
            return
        self._ping_token += 1
        self._ping_at = now
        self._ping_answered = False
        payload = OFFSET.pack(self._ping_token)
        self._control.append(frames.encode(FrameType.PING, 0, 0, payload))

    def probe(self, now: float) -> None:
        """Ask whether it is of use: ``PongReceived`` says yes, ``SilenceNoticed`` perhaps not."""
        self.ping(now)
        if not self.closed:
            self.deadline = min(self.deadline, self.keepalive.probed(now))

    def drain(self, reason: str, seconds: float) -> None:
        """No new streams from now on; behind the last of those that run, the tunnel closes."""
        self._leaving = True
        if self.state is State.GREETING:
            self.close(Code.DRAINING, reason)
        elif self.state is State.OPEN:
            self.state = State.DRAINING
            payload = messages.encode(Drain(frames.cut(reason, 1000), max(seconds, 0.0)))
            self._control.append(frames.encode(FrameType.DRAIN, 0, 0, payload))

    def close(self, code: int, reason: str = "") -> None:
        """Say why and end: ``data_to_send`` once more, then close the transport."""
        if not self.closed:
            payload = frames.encode_reason(code, reason)
            self._shut(code, reason, by_peer=False)
            self._control.append(frames.encode(FrameType.CLOSE, 0, 0, payload))

    def lost(self, reason: str) -> None:
        """The transport is gone."""
        if not self.closed:
            self._shut(Code.LOST, reason, by_peer=True)

    # ── time ──────────────────────────────────────────────────────────────────────────────────

    def handle_timer(self, now: float) -> None:
        """Call when ``deadline`` has come; calling early does no harm."""
        if self.closed:
            return
        if self.state is State.GREETING:
            if now >= self._greeting_until:
                self.close(Code.TIMEOUT, "no HELLO in time")
            return
        while (verdict := self.keepalive.check(now)) is not Verdict.WAIT:
            match verdict:
                case Verdict.ASK:
                    self.ping(now)
                case Verdict.DOUBT:
                    self.doubted = True
                    self._events.append(SilenceNoticed())
                case Verdict.DEAD:
                    self.lost(f"silent for {now - self.keepalive.heard:.0f} s")
                    return
        self.deadline = self.keepalive.deadline()

    # ── bytes out ─────────────────────────────────────────────────────────────────────────────

    def data_to_send(self, most: int = 256 * 1024) -> list[bytes | memoryview]:
        """Control frames first, then DATA, one frame per stream in turn, about ``most`` bytes.

        Call again while it returns something and the transport has room: what is still here can
        be overtaken by a RESET, what was handed out cannot.
        """
        if self._ack_due:
            self._ack_due, self._ack_debt = False, 0
            ended = OFFSET.pack(self._ended_before)
            self._control.append(frames.encode(FrameType.ACK, 0, 0, ended))
        elif self._leaving and self._is_done:
            self.close(Code.NONE, "drained")
        out: list[bytes | memoryview] = []
        if self._control:
            out.extend(self._control)
            self._control.clear()
        ready = self._ready
        while ready and most > 0:
            stream = ready.popleft()
            stream.listed = False
            outbound = stream.outbound
            if outbound.queued:
                room = min(outbound.allowed - outbound.sent, MAX_DATA)
                if room <= 0:
                    continue  # a WINDOW frame lists it again
                room = min(room, self._allowed - self._sent)
                if room <= 0:
                    stream.listed = True
                    ready.appendleft(stream)
                    break  # the whole tunnel waits for credit
                payload = outbound.take(room)
                count = len(payload)
                self._sent += count
                most -= count
                last = outbound.ended and not outbound.queued and outbound.trailer is None
                flags = END_FLAG if last else 0
                out.append(_pack_header(_DATA, flags, 0, stream.id, count))
                out.append(payload)
                if stream.waiting and outbound.queued < LOW_WATER:
                    stream.waiting = False
                    self._events.append(StreamWritable(stream.id))
                if outbound.queued:
                    stream.listed = True
                    ready.append(stream)
                    continue
            if outbound.trailer is not None:
                out.append(outbound.trailer)
                self._end(stream, outbound.trailer)
        self.bytes_sent += sum(map(len, out))
        return out

    # ── bytes in ──────────────────────────────────────────────────────────────────────────────

    def receive(self, data: bytes, now: float) -> None:
        """Take bytes from the wire, cut anywhere.  Bytes behind the end are ignored."""
        if self.closed:
            return
        self._now = self.keepalive.heard = now
        self.bytes_received += len(data)
        if self._partial:
            self._partial += data
            if len(self._partial) < self._wanted:
                return
            data = bytes(self._partial)
            self._partial.clear()
        at, end = 0, len(data)
        on_frame = self._on_frame
        while end - at >= 12:
            type, flags, reserved, stream_id, length = _unpack_header(data, at)
            if (
                type != _DATA  # the one that counts: checked without a call
                or length > MAX_DATA
                or flags > END_FLAG
                or reserved
                or not stream_id & 1
                or self.state is _GREETING
            ):
                problem = self._problem_with(type, flags, reserved, stream_id, length)
                if problem is not None:
                    self.close(Code.PROTOCOL, problem)
                    return
            start = at + 12
            at = start + length
            if at > end:
                at = start - 12
                self._wanted = 12 + length
                break
            self.frames_received += 1
            on_frame[type](stream_id, flags, data[start:at])
            if self.closed:
                return
        else:
            self._wanted = 12
        if at < end:
            self._partial += data[at:] if at else data
        if len(self._control) > MAX_CONTROL:
            self.close(Code.CALM, "too many frames that ask for an answer")

    def _problem_with(
        self, type: int, flags: int, reserved: int, stream_id: int, length: int
    ) -> str | None:
        problem = frames.problem_with(type, flags, reserved, stream_id, length)
        if problem is not None:
            return problem
        if type in self._never:
            return f"{FrameType(type).name} from this side"
        if self.state is _GREETING and type not in (FrameType.HELLO, FrameType.CLOSE):
            return f"{FrameType(type).name} before HELLO"
        return None

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
            words = f"protocol {hello.version} is not spoken here, {messages.VERSION} is"
            self.close(Code.OBSOLETE, words)
            return
        self.state = State.OPEN
        self.number = hello.tunnel
        self.resumes = self.resumes and bool(hello.tunnel)
        self.deadline = self.keepalive.deadline()
        self._events.append(HelloReceived(hello))

    def _on_open(self, stream_id: int, flags: int, payload: bytes) -> None:
        if stream_id <= self._last_id:
            self.close(Code.PROTOCOL, f"stream {stream_id} opened out of order")
            return
        self._last_id = stream_id
        try:
            head = _decode_request(payload)
        except UNREADABLE as error:
            self._send_reset(stream_id, 0, Code.PROTOCOL, f"OPEN: {error}")
            return
        if self.state is State.DRAINING:
            self._send_reset(stream_id, 0, Code.DRAINING, "this node is draining")
            return
        if len(self._streams) >= self._most_streams:
            self._send_reset(stream_id, 0, Code.REFUSED, "too many streams on this tunnel")
            return
        stream = self._add_stream(Stream(stream_id, keeps=self.number != 0), self._now)
        stream.opened = not flags & END_FLAG
        self._events.append(StreamOpened(stream_id, head, not stream.opened))

    def _on_head(self, stream_id: int, flags: int, payload: bytes) -> None:
        stream = self._find(stream_id)
        if stream is None or stream.resetting:
            return
        if stream.answered:
            self._give_up(stream, Code.PROTOCOL, "a second HEAD")
            return
        try:
            head = _decode_response(payload)
        except UNREADABLE as error:
            self._give_up(stream, Code.PROTOCOL, f"HEAD: {error}")
            return
        stream.answered = True
        self._events.append(HeadReceived(stream_id, head))

    def _on_data(self, stream_id: int, flags: int, payload: bytes) -> None:
        count = len(payload)
        if not self._inbound.receive(count):
            self.close(Code.FLOW, "more DATA than the tunnel was granted")
            return
        stream = self._streams.get(stream_id)
        if stream is None or stream.resetting:
            self._find(stream_id)  # closes the connection if it never existed
            if stream is not None:
                stream.inbound.ignore(count)  # the node keeps them until ACK, which counts them
            if not self.closed:
                self._consumed_on_tunnel(count)
            return
        inbound = stream.inbound
        if not inbound.receive(count):
            self._give_up(stream, Code.FLOW, "more DATA than the stream was granted")
            return
        if self.role is _SERVER:
            if not stream.answered:
                self._give_up(stream, Code.PROTOCOL, "DATA before HEAD")
                return
        elif not stream.opened:
            self._give_up(stream, Code.PROTOCOL, "DATA after the end of the body")
            return
        elif stream.outbound.ended:  # answered already; nobody reads the rest of the question
            self.consumed(stream_id, count)
            return
        if flags & END_FLAG:
            if self.role is Role.SERVER:
                self.close(Code.PROTOCOL, "DATA with the end flag from a node")
                return
            stream.opened = False
        elif not count:
            self._charge_flood_budget("DATA that is empty")
            return
        self._events.append(DataReceived(stream_id, payload, not stream.opened))

    def _on_end(self, stream_id: int, flags: int, payload: bytes) -> None:
        stream = self._find(stream_id)
        if self.resumes and not self.closed:
            self._ended_before += 1
            self._ack_debt += ACK_SHARE + (0 if stream is None else stream.inbound.received)
            self._ack_due = self._ack_debt >= ACK_DEBT
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
        self._remove(stream)
        self._events.append(StreamEnded(stream_id, figures))

    def _on_reset(self, stream_id: int, flags: int, payload: bytes) -> None:
        code, reason = frames.parse_reason(payload)
        stream = self._find(stream_id)
        if stream is None:
            return  # it crossed our END
        if self.role is Role.SERVER:
            was_resetting = stream.resetting
            self._remove(stream)
            if was_resetting:
                self._events.append(ResetConfirmed(stream_id))
            elif stream.attempt and code == Code.UNKNOWN:
                self._events.append(StreamReset(stream_id, Code.LOST, reason))
            else:
                self._events.append(StreamReset(stream_id, code, reason))
        elif not stream.resetting:
            stream.resetting = True
            if stream.outbound.ended:  # the work is done, its last bytes were waiting here
                self.confirm_reset(stream_id)
                return
            stream.outbound.clear()
            self._events.append(StreamReset(stream_id, code, reason))

    def _on_window(self, stream_id: int, flags: int, payload: bytes) -> None:
        (offset,) = OFFSET.unpack(payload)
        if stream_id == 0:
            if offset - self._allowed < TUNNEL_WINDOW // 4:
                self._charge_flood_budget("WINDOW that grants little")
            if offset > self._sent + TUNNEL_WINDOW:
                self.close(Code.FLOW, "WINDOW beyond what the tunnel may hold")
            self._allowed = max(self._allowed, offset)
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
        if outbound.keeps:
            outbound.release(outbound.allowed - STREAM_WINDOW)
        if outbound.queued and not stream.listed and not self.closed:
            self._list(stream)

    def _on_ping(self, stream_id: int, flags: int, payload: bytes) -> None:
        self._control.append(frames.encode(FrameType.PONG, 0, 0, payload))
        self._charge_flood_budget("PING")

    def _on_pong(self, stream_id: int, flags: int, payload: bytes) -> None:
        if OFFSET.unpack(payload)[0] == self._ping_token and not self._ping_answered:
            self._ping_answered = True
            self.doubted = False
            self.round_trip = self._now - self._ping_at
            self._events.append(PongReceived(self.round_trip))
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

    def _on_resume(self, stream_id: int, flags: int, payload: bytes) -> None:
        if stream_id <= self._last_id:
            self.close(Code.PROTOCOL, f"stream {stream_id} resumed out of order")
            return
        self._last_id = stream_id
        try:
            claim = _decode_resume(payload)
        except UNREADABLE as error:
            self._send_reset(stream_id, 0, Code.PROTOCOL, f"RESUME: {error}")
            return
        if len(self._streams) >= self._most_streams:
            self._send_reset(stream_id, 0, Code.REFUSED, "too many streams on this tunnel")
            return
        assert self._keeper is not None  # RESUME is refused before it gets here without
        found = self._keeper.find(claim)
        if found is None or found[1].attempt >= claim.attempt or found[1].given_up:
            self._send_reset(stream_id, 0, Code.UNKNOWN, "this stream is not here any more")
            return
        self._take_over(*found, stream_id, claim)

    def _take_over(self, former: Connection, stream: Stream, stream_id: int, claim: Resume) -> None:
        """Node side: claims are granted here, whatever state the stream is in."""
        former._detach(stream)
        stream.origin = (claim.tunnel, claim.stream)
        stream.attempt = claim.attempt
        stream.id = stream_id
        inbound, outbound = stream.inbound, stream.outbound
        inbound.moved()
        self._add_stream(stream, self._now)
        self._events.append(StreamResumed(stream_id))
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
                self._send_reset(stream_id, 0, Code.PROTOCOL, "RESUME from where nothing is")
                self._remove(stream)
            else:
                self._give_up(stream, Code.PROTOCOL, "RESUME from where nothing is")
            return
        outbound.allowed = max(outbound.allowed, claim.allowed)
        if stream.answered and not claim.head:
            assert stream.head is not None
            self._control.append(frames.encode(FrameType.HEAD, 0, stream_id, stream.head))
        if outbound.trailer is not None:  # it names the stream
            end = outbound.trailer[HEADER.size :]
            outbound.trailer = frames.encode(FrameType.END, 0, stream_id, end)
        if outbound.queued or outbound.trailer is not None:
            self._list(stream)
        if stream.opened and not ended and inbound.granted > STREAM_WINDOW:
            self._send_window(stream_id, inbound.granted)  # the last one may have been lost

    def _on_ack(self, stream_id: int, flags: int, payload: bytes) -> None:
        (count,) = OFFSET.unpack(payload)
        if count > self._ended_before + len(self._ended):
            self.close(Code.PROTOCOL, "ACK of an END that was never sent")
            return
        if count <= self._ended_before:
            self._charge_flood_budget("ACK that tells nothing")
        while self._ended_before < count:
            self._forget_ended()

    # ── small parts ───────────────────────────────────────────────────────────────────────────

    def opened_here(self, stream_id: int) -> Stream | None:
        """The stream opened here with this id, unless it has moved; for ``ResumeTable``."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            return stream if stream.origin is None else None
        for ended in self._ended:
            if ended is not None and ended.id == stream_id and ended.origin is None:
                return ended
        return None

    def came_from(self, origin: tuple[int, int]) -> Stream | None:
        """For ``ResumeTable``: the stream that was opened elsewhere and is here now."""
        for stream in self._streams.values():
            if stream.origin == origin:
                return stream
        for ended in self._ended:
            if ended is not None and ended.origin == origin:
                return ended
        return None

    def _say(self, frame: bytes) -> None:
        if not self.closed:  # a suspended stream's owner need not know that it is
            self._control.append(frame)

    def _list(self, stream: Stream) -> None:
        stream.listed = True
        self._ready.append(stream)

    def _spare_ids(self) -> None:
        if self._last_id + 2 > self._last_stream:
            # Two days at full speed: the node dials anew when this one has closed behind the last.
            self.drain("stream ids are used up", LEAVE_SECONDS)

    def _add_stream(self, stream: Stream, now: float) -> Stream:
        if not self._streams:
            self.deadline = min(self.deadline, self.keepalive.busy(now))
        self._streams[stream.id] = stream
        return stream

    def _probe_idle(self, now: float) -> None:
        if len(self._streams) == 1:  # with more, silence is noticed as it is
            self.probe(now)

    def _find(self, stream_id: int) -> Stream | None:
        """The stream, or None when it is gone; one that never was ends the connection."""
        if stream_id > self._last_id or not stream_id & 1:
            self.close(Code.PROTOCOL, f"stream {stream_id} was never opened")
        return self._streams.get(stream_id)

    def _remove(self, stream: Stream) -> None:
        self._detach(stream)
        stream.outbound.clear()

    def _end(self, stream: Stream, end: bytes) -> None:
        """Node side: END is said; whether it arrives is another question."""
        self._detach(stream)
        if not self.number:
            stream.outbound.clear()
            return
        stream.outbound.trailer = end
        ended = self._ended
        ended.append(stream)
        stream.weight = stream.kept
        self._ended_bytes += stream.weight
        while self._ended_bytes > TUNNEL_WINDOW or len(ended) > MAX_UNACKNOWLEDGED:
            self._forget_ended()

    def _forget_ended(self) -> None:
        stream = self._ended.popleft()
        self._ended_before += 1
        if stream is not None:
            self._ended_bytes -= stream.weight

    def _detach(self, stream: Stream) -> None:
        """It is here no more; what it holds remains."""
        if self._streams.get(stream.id) is not stream:
            self._ended[self._ended.index(stream)] = None
            self._ended_bytes -= stream.weight
            return
        del self._streams[stream.id]
        if not self._streams:
            self.keepalive.idle()
        if stream.listed:  # rare, and a tunnel that waits for credit would pile them up
            stream.listed = False
            self._ready.remove(stream)
        left = stream.inbound.left
        if left > 0:
            self._consumed_on_tunnel(left)

    def _give_up(self, stream: Stream, code: Code, words: str) -> None:
        """The peer broke a rule on one stream: end that stream; a second time, the tunnel."""
        self._flow_errors += code is Code.FLOW
        if self._flow_errors > 1:
            self.close(code, words)
            return
        self._send_reset(stream.id, 0, code, words)
        stream.outbound.clear()
        self._events.append(StreamReset(stream.id, code, words))
        if self.role is Role.SERVER:
            self._remove(stream)
        else:
            stream.resetting = stream.given_up = True

    def _send_reset(self, stream_id: int, flags: int, code: int, reason: str) -> None:
        payload = frames.encode_reason(code, reason)
        self._say(frames.encode(FrameType.RESET, flags, stream_id, payload))

    def _send_window(self, stream_id: int, offset: int) -> None:
        self._say(frames.encode(FrameType.WINDOW, 0, stream_id, OFFSET.pack(offset)))

    def _consumed_on_tunnel(self, count: int) -> None:
        grant = self._inbound.consume(count)
        if grant is not None:
            self._send_window(0, grant)

    def _charge_flood_budget(self, what: str) -> None:
        if self._flood_budget.take(1, self._now) < 0:
            self.close(Code.CALM, f"too much {what}")

    def _shut(self, code: int, reason: str, *, by_peer: bool) -> None:
        self.state = State.CLOSED
        self.closed = True
        for stream in list(self._streams.values()):
            stream.listed = False
            if not self._outlives(stream, code, by_peer=by_peer):
                self._lose(stream, reason)
                del self._streams[stream.id]
        if by_peer and code != Code.LOST:
            self._ended.clear()  # whoever says CLOSE asks for nothing any more
            self._ended_bytes = 0
        self._ready.clear()
        self._ack_due = False
        self._control.clear()
        self._partial.clear()
        self.deadline = float("inf")
        self._events.append(ConnectionClosed(code, reason, by_peer))

    def _outlives(self, stream: Stream, code: int, *, by_peer: bool) -> bool:
        """Whether a stream is suspended by its tunnel's end, and not lost."""
        if not by_peer or not (self.resumes or self._keeper is not None):
            return False
        if code == Code.LOST:
            return True
        # Our RESUME has crossed the CLOSE of a node that knew of no streams here.
        return self.resumes and code == Code.NONE and stream.attempt > 0

    def _lose(self, stream: Stream, reason: str) -> None:
        # On a node, one that was reset or has ended is its owner's business no more.
        if self.role is Role.SERVER or not (stream.resetting or stream.outbound.ended):
            self._events.append(StreamReset(stream.id, Code.LOST, reason))
