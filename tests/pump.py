"""Two ends of a tunnel without sockets, a clock that moves when told, and a transcript to read.

    pump = Pump.greeted()
    pump.server.open_stream(HEAD, now=pump.now, ended=True)
    assert pump.run() == lines(
        '''
        > OPEN 1 end
        node: opened 1 POST /v1/chat/completions, ended
        '''
    )

``>`` goes from the server to the node, ``<`` from the node to the server.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from struct import unpack_from
from textwrap import dedent
from typing import NamedTuple

from protocol import messages
from protocol.errors import Code
from protocol.messages import Figures, RequestHead, ResponseHead
from protocol.tunnel.base import Role
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
from protocol.tunnel.node import NodeConnection
from protocol.tunnel.server import ServerConnection
from protocol.tunnel.streams import Limits

HEAD = RequestHead("req_1", "ollama", "POST", "/v1/chat/completions", [], None, 60_000)
ANSWER = ResponseHead(200, [("content-type", "application/json")])
FIGURES = Figures(12.5, 80.0, 11)
SESSION = b"session"

TYPES = {
    1: "HELLO",
    2: "OPEN",
    3: "HEAD",
    4: "DATA",
    5: "END",
    6: "RESET",
    7: "WINDOW",
    8: "PING",
    9: "PONG",
    10: "DRAIN",
    11: "CLOSE",
    13: "RESUME",
    14: "ACK",
}


SIDES: dict[Role, type[ServerConnection] | type[NodeConnection]] = {
    Role.SERVER: ServerConnection,
    Role.NODE: NodeConnection,
}


class Frame(NamedTuple):
    """A frame as the specification draws it, read without the code under test."""

    type: str
    flags: int
    stream_id: int
    payload: bytes

    def __str__(self) -> str:
        words = [self.type]
        if self.stream_id:
            words.append(str(self.stream_id))
        match self.type:
            case "DATA":
                words.append(f"{len(self.payload)} bytes")
            case "RESET" | "CLOSE":
                words.append(Code.name_of(int.from_bytes(self.payload[:2], "big")))
                if self.payload[2:]:
                    words.append(repr(self.payload[2:].decode()))
            case "WINDOW" | "ACK":
                words.append(f"{int.from_bytes(self.payload, 'big'):,}")
            case "RESUME":
                claim = messages.decoder(messages.Resume).decode(self.payload)
                words.append(f"is {claim.tunnel}/{claim.stream} from {claim.received:,}")
            case "DRAIN":
                words.append(repr(messages.decoder(messages.Drain).decode(self.payload).reason))
        if self.flags:
            words.append("confirm" if self.type == "RESET" else "end")
        return " ".join(words)


def frames_in(data: bytes) -> Iterator[Frame]:
    """Every frame in ``data``, which must end with one."""
    at = 0
    while at < len(data):
        kind, flags, reserved, stream_id, length = unpack_from(">BBHII", data, at)
        assert reserved == 0
        payload = data[at + 12 : at + 12 + length]
        assert len(payload) == length, "output was cut inside a frame"
        yield Frame(TYPES[kind], flags, stream_id, payload)
        at += 12 + length


def words_of(event: Event) -> str:
    match event:
        case HelloReceived(hello):
            return f"hello {hello.session!r}"
        case StreamOpened(id, head, ended):
            return f"opened {id} {head.method} {head.path}{', ended' if ended else ''}"
        case HeadReceived(id, head):
            return f"head {id} {head.status}"
        case DataReceived(id, data, ended):
            shown = repr(data) if len(data) <= 40 else f"{len(data)} bytes"
            return f"data {id} {shown}{', ended' if ended else ''}"
        case StreamEnded(id):
            return f"ended {id}"
        case StreamReset(id, code, reason):
            return f"reset {id} {Code.name_of(code)}" + (f" {reason!r}" if reason else "")
        case ResetConfirmed(id):
            return f"confirmed {id}"
        case StreamResumed(id):
            return f"resumed {id}"
        case StreamWritable(id):
            return f"writable {id}"
        case DrainReceived(drain):
            return f"drain {drain.reason!r} {drain.seconds:g} s"
        case PongReceived(seconds):
            return f"pong {seconds * 1000:.0f} ms"
        case SilenceNoticed():
            return "silence"
        case ConnectionClosed(code, reason, by_peer):
            who = "peer" if by_peer else "us"
            return f"closed by {who}: {Code.name_of(code)}" + (f" {reason!r}" if reason else "")
    raise AssertionError(event)


def lines(text: str) -> list[str]:
    return dedent(text).strip().splitlines()


class Pump:
    """What one side says reaches the other when ``run`` or ``carry`` is called, and not before."""

    def __init__(
        self, *, seed: int = 1, max_streams: int = 256, max_stream_id: int = 2**32 - 1
    ) -> None:
        self.now = 1000.0
        rng = Random(seed)
        limits = Limits(max_streams, max_stream_id)
        self.server = ServerConnection(now=self.now, rng=rng, limits=limits)
        self.node = NodeConnection(now=self.now, rng=rng, limits=limits)
        self.transcript: list[str] = []
        self.heard: dict[Role, list[Event]] = {Role.SERVER: [], Role.NODE: []}
        self.deaf: set[Role] = set()
        """Whoever stands here gets nothing more: the bytes to it are lost."""

    @classmethod
    def greeted(
        cls, *, seed: int = 1, max_streams: int = 256, max_stream_id: int = 2**32 - 1
    ) -> Pump:
        pump = cls(seed=seed, max_streams=max_streams, max_stream_id=max_stream_id)
        pump.node.hello(SESSION)
        pump.run()
        pump.forget()
        return pump

    def side(self, role: Role) -> ServerConnection | NodeConnection:
        return self.server if role is Role.SERVER else self.node

    def other(self, role: Role) -> Role:
        return Role.NODE if role is Role.SERVER else Role.SERVER

    def forget(self) -> None:
        self.transcript.clear()
        for events in self.heard.values():
            events.clear()

    def events(self, role: Role) -> list[Event]:
        """What ``role`` has heard since the last call."""
        self._listen(role)
        events = self.heard[role]
        self.heard[role] = []
        return events

    def take(self, role: Role, most: int = 256 * 1024) -> bytes:
        """What ``role`` has to send, taken off its hands."""
        data = b"".join(self.side(role).data_to_send(most))
        arrow = ">" if role is Role.SERVER else "<"
        self.transcript.extend(f"{arrow} {frame}" for frame in frames_in(data))
        return data

    def give(self, role: Role, data: bytes) -> None:
        if role not in self.deaf:
            self.side(role).receive(data, self.now)
            self._listen(role)

    def carry(self, role: Role, most: int = 256 * 1024) -> int:
        """One flush of ``role`` to the other side; returns how many bytes it was."""
        data = self.take(role, most)
        self._listen(role)
        if data:
            self.give(self.other(role), data)
        return len(data)

    def run(self) -> list[str]:
        """Carry both ways until nothing moves; returns what was said and heard since last time."""
        self._settle()
        said, self.transcript = self.transcript, []
        return said

    def wait(self, seconds: float) -> None:
        """Let time pass: each deadline on the way is met, and bytes move."""
        until = self.now + seconds
        while True:
            due = min(self.server.deadline, self.node.deadline)
            if due > until:
                break
            self.now = max(self.now, due)
            for side in (self.server, self.node):
                if side.deadline <= self.now:
                    side.handle_timer(self.now)
                    assert side.deadline > self.now, f"{side!r} wants to be called for ever"
            self._settle()
        self.now = until

    def _settle(self) -> None:
        for role in Role:
            self._listen(role)
        while self.carry(Role.SERVER) + self.carry(Role.NODE):
            pass

    def _listen(self, role: Role) -> None:
        events = self.side(role).events()
        self.heard[role].extend(events)
        self.transcript.extend(f"{role.value}: {words_of(event)}" for event in events)
