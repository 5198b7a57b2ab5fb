"""The control link's state machine: length-prefixed messages, and keepalive.

::

     0                 4
    +-----------------+-----------------------------
    | length          | message (msgpack, ``messages``)
    +-----------------+-----------------------------
      u32, big-endian

Like ``connection.Connection`` it does no input or output and never raises on what a peer sent.
"""

from __future__ import annotations

from random import Random
from struct import Struct as Layout

import msgspec

from protocol import messages
from protocol.errors import Code, LocalError
from protocol.messages import UNREADABLE, Message, Ping, Pong, Refused
from protocol.token_bucket import TokenBucket
from protocol.tunnel import frames
from protocol.tunnel.keepalive import CHALLENGE_SECONDS, KeepAlive, Verdict

LENGTH = Layout(">I")
MAX_MESSAGE = 1024 * 1024
FIRST_MESSAGE_SECONDS = 5.0
FLOOD_BURST, FLOOD_PER_SECOND = 200.0, 20.0
"""Messages that a peer may send: a token bucket."""
FLOOD_BYTES, FLOOD_BYTES_PER_SECOND = 4.0 * 2**20, 512.0 * 1024
"""Bytes of messages that a peer may send: another one, because large messages cost more to read."""

_decode = msgspec.msgpack.Decoder[Message](Message).decode


class LinkClosed(msgspec.Struct, frozen=True):
    """Last event.  With ``again``, the same attempt may succeed later."""

    code: int
    reason: str
    again: bool
    by_peer: bool


class Link:
    """One side of a control link, used like ``Connection``.  Its last event is ``LinkClosed``.

    ``Refused`` closes the link on both sides and becomes ``LinkClosed``; pings are answered here
    and are not events.
    """

    def __init__(self, *, now: float, rng: Random) -> None:
        self.closed = False
        self.keepalive = KeepAlive(now, rng)
        self.message_received = False
        self._first_until = self.deadline = now + FIRST_MESSAGE_SECONDS
        self._partial = bytearray()
        self._events: list[Message | LinkClosed] = []
        self._out: list[bytes | memoryview] = []
        self._flood_budget = TokenBucket(FLOOD_BURST, FLOOD_PER_SECOND, now)
        self._byte_budget = TokenBucket(FLOOD_BYTES, FLOOD_BYTES_PER_SECOND, now)

    def __repr__(self) -> str:
        return f"<Link {'closed' if self.closed else 'open'}>"

    def has_output(self) -> bool:
        return bool(self._out)

    def events(self) -> list[Message | LinkClosed]:
        events = self._events
        if events:
            self._events = []
        return events

    def data_to_send(self) -> list[bytes | memoryview]:
        out = self._out
        if out:
            self._out = []
        return out

    def send(self, message: Message) -> None:
        """Queue a message, unless the link is closed; raise LocalError when it is too large."""
        if self.closed:
            return
        payload = messages.encode(message)
        if len(payload) > MAX_MESSAGE:
            raise LocalError(f"a {type(message).__name__} of {len(payload)} bytes is too large")
        self._out.append(LENGTH.pack(len(payload)) + payload)

    def close(self, code: int, reason: str, *, again: bool = True) -> None:
        """Close with ``Refused``: call ``data_to_send`` once more, then close the transport."""
        if not self.closed:
            self.send(Refused(code, frames.cut(reason, 1000), again))
            self._shut(code, reason, again=again, by_peer=False)

    def challenge(self, now: float) -> None:
        """Give the peer up unless it responds at once: the path to it may be gone."""
        if self.closed:
            return
        if self.message_received:
            self.send(Ping(self.keepalive.ping(now)))
            self.deadline = min(self.deadline, self.keepalive.challenge(now))
        else:
            self._first_until = min(self._first_until, now + CHALLENGE_SECONDS)
            self.deadline = min(self.deadline, self._first_until)

    def lost(self, reason: str) -> None:
        """Note that the transport is gone."""
        if not self.closed:
            self._shut(Code.LOST, reason, again=True, by_peer=True)

    def handle_timer(self, now: float) -> None:
        if self.closed:
            return
        if not self.message_received:
            if now >= self._first_until:
                self.close(Code.TIMEOUT, "nothing was said in time")
            return
        match self.keepalive.check(now):
            case Verdict.PING:
                self.send(Ping(self.keepalive.ping(now)))
            case Verdict.DEAD:
                self.lost(f"silent for {now - self.keepalive.last_received:.0f} s")
                return
            case Verdict.WAIT:
                pass
        self.deadline = self.keepalive.deadline()

    def receive(self, data: bytes, now: float) -> None:
        """Take bytes from the wire, cut anywhere."""
        if self.closed:
            return
        self.keepalive.last_received = now
        self._partial += data
        self._read_messages(now)

    def _read_messages(self, now: float) -> None:
        partial = self._partial
        at, end = 0, len(partial)
        while end - at >= 4:
            (length,) = LENGTH.unpack_from(partial, at)
            if not 1 <= length <= MAX_MESSAGE:
                self.close(Code.PROTOCOL, f"a message of {length} bytes")
                return
            if end - at - 4 < length:
                break
            payload = bytes(partial[at + 4 : at + 4 + length])
            at += 4 + length
            self._on_message(payload, now)
            if self.closed:
                return
        del partial[:at]

    def _on_message(self, payload: bytes, now: float) -> None:
        if self._flood_budget.take(1, now) < 0:
            self.close(Code.CALM, "too many messages")
            return
        if self._byte_budget.take(len(payload), now) < 0:
            self.close(Code.CALM, "too many bytes of messages")
            return
        try:
            message = _decode(payload)
        except UNREADABLE as error:
            self.close(Code.PROTOCOL, f"a message that can't be read: {error}", again=False)
            return
        if not self.message_received:
            self.message_received = True
            self.deadline = self.keepalive.deadline()
        if isinstance(message, Ping):
            self.send(Pong(message.token))
        elif isinstance(message, Refused):
            self._shut(message.code, message.reason, again=message.again, by_peer=True)
        elif isinstance(message, Pong):
            self.keepalive.pong(message.token)
        else:
            self._events.append(message)

    def _shut(self, code: int, reason: str, *, again: bool, by_peer: bool) -> None:
        self.closed = True
        self._partial.clear()
        self.deadline = float("inf")
        self._events.append(LinkClosed(code, reason, again, by_peer))
