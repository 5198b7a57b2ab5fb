"""What holds for any bytes, in any pieces, and for any two peers that keep the rules."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from protocol import messages
from protocol.control.link import Link, LinkClosed
from protocol.messages import Drain, Hello
from protocol.tunnel import frames
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
    StreamEnded,
    StreamOpened,
    StreamReset,
    StreamWritable,
)
from protocol.tunnel.node import NodeConnection
from protocol.tunnel.server import ServerConnection
from protocol.tunnel.streams import STREAM_WINDOW, TUNNEL_WINDOW
from tests.pump import ANSWER, FIGURES, HEAD, SESSION, Frame, frames_in

calm = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


# ── traffic, whole and broken ─────────────────────────────────────────────────────────────────

PAYLOADS = [
    messages.encode(Hello(1, SESSION)),
    messages.encode(Hello(2, SESSION)),
    messages.encode(HEAD),
    messages.encode(ANSWER),
    messages.encode(FIGURES),
    messages.encode(Drain("restarting", 3.0)),
    frames.encode_reason(1, "hung up"),
    (STREAM_WINDOW + 5).to_bytes(8, "big"),
    bytes(8),
    b"",
    b"\xc1",
    b"\xdd\xff\xff\xff\xff",
    b"\x91" * 3000,
    b"x" * frames.MAX_DATA,
]

payloads = st.sampled_from(PAYLOADS) | st.binary(max_size=40)
stream_ids = st.sampled_from([0, 1, 1, 1, 3, 3, 5, 7, 2, 99, 2**32 - 1])
sane_frames = st.builds(
    frames.encode,
    st.sampled_from(list(frames.FrameType)),
    st.sampled_from([0, 0, 0, 1]),
    stream_ids,
    payloads,
)
either = [
    frames.encode(frames.FrameType.RESET, 0, 1, PAYLOADS[6]),
    frames.encode(frames.FrameType.RESET, 1, 3, PAYLOADS[6]),
    frames.encode(frames.FrameType.WINDOW, 0, 3, PAYLOADS[7]),
    frames.encode(frames.FrameType.WINDOW, 0, 0, PAYLOADS[8]),
    frames.encode(frames.FrameType.PING, 0, 0, PAYLOADS[8]),
    frames.encode(frames.FrameType.PONG, 0, 0, (1).to_bytes(8, "big")),
    frames.encode(frames.FrameType.DRAIN, 0, 0, PAYLOADS[5]),
    frames.encode(frames.FrameType.DATA, 0, 1, b"some data"),
    frames.encode(frames.FrameType.DATA, 0, 1, PAYLOADS[-1]),
]
from_nodes = [
    frames.encode(frames.FrameType.HEAD, 0, 3, PAYLOADS[3]),
    frames.encode(frames.FrameType.DATA, 0, 3, b"after the head or before"),
    frames.encode(frames.FrameType.END, 0, 1, PAYLOADS[4]),
    frames.encode(frames.FrameType.RESET, 1, 5, PAYLOADS[6]),
]
from_servers = [
    frames.encode(frames.FrameType.OPEN, 0, 5, PAYLOADS[2]),
    frames.encode(frames.FrameType.OPEN, 1, 7, PAYLOADS[2]),
    frames.encode(frames.FrameType.DATA, 1, 3, b"the last"),
]
fitting_frames = st.sampled_from(either + from_nodes + from_servers)
raw_frames = st.builds(
    lambda type, flags, reserved, id, length, payload: (
        frames.HEADER.pack(type, flags, reserved, id, length) + payload
    ),
    st.integers(0, 255),
    st.integers(0, 255),
    st.sampled_from([0, 0, 0, 1, 0xFFFF]),
    stream_ids,
    st.integers(0, 2**32 - 1) | st.integers(0, 50),
    payloads,
)


@st.composite
def broken(draw: st.DrawFn, traffic: bytes) -> bytes:
    """The same bytes with a few of them changed, dropped, doubled."""
    data = bytearray(traffic)
    for _ in range(draw(st.integers(0, 4))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(["change", "drop", "double", "cut"])):
            case "change":
                data[at] = draw(st.integers(0, 255))
            case "drop":
                del data[at : at + draw(st.integers(1, 20))]
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 40))]
            case "cut":
                del data[at:]
    return bytes(data)


traffic = st.one_of(
    st.binary(max_size=200),
    st.lists(st.sampled_from(either + from_nodes), max_size=12).map(b"".join),
    st.lists(st.sampled_from(either + from_servers), max_size=12).map(b"".join),
    st.lists(fitting_frames | sane_frames, max_size=12).map(b"".join),
    st.lists(fitting_frames | sane_frames | raw_frames, max_size=12).map(b"".join),
    st.lists(fitting_frames | sane_frames, max_size=8).map(b"".join).flatmap(broken),
)
cuts = st.one_of(
    st.lists(st.integers(1, 40) | st.integers(1, 20_000), max_size=60),
    st.integers(1, 50).map(lambda size: [size] * 400),
)


def pieces_of(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    pieces.append(data[at:])
    return [piece for piece in pieces if piece]


def a_server(busy: bool) -> ServerConnection:
    """Fresh, or greeted and with stream 1 answered, 3 and 5 open, 5 given up, data waiting."""
    server = ServerConnection(now=0.0, rng=Random(1))
    if busy:
        server.receive(frames.encode(frames.FrameType.HELLO, 0, 0, PAYLOADS[0]), 0.0)
        for _ in range(3):
            server.open_stream(HEAD, now=0.0)
        server.send_data(3, b"y" * (STREAM_WINDOW + 10))
        server.reset(5, 1)
        server.ping(0.0)
        server.receive(frames.encode(frames.FrameType.HEAD, 0, 1, PAYLOADS[3]), 0.0)
    return server


def a_node(busy: bool) -> NodeConnection:
    node = NodeConnection(now=0.0, rng=Random(1))
    node.hello(SESSION)
    if busy:
        for id in (1, 3):
            node.receive(frames.encode(frames.FrameType.OPEN, 0, id, PAYLOADS[2]), 0.0)
            node.send_head(id, ANSWER)
        node.send_data(3, b"y" * (STREAM_WINDOW + 10))
        node.end_stream(3, FIGURES)
        node.ping(0.0)
        node.events()
    return node


SIDES = {
    "fresh server": lambda: a_server(False),
    "busy server": lambda: a_server(True),
    "fresh node": lambda: a_node(False),
    "busy node": lambda: a_node(True),
}


def check_order(events: list[Event]) -> None:
    """Nothing behind the end of a stream or of the connection."""
    gone: set[int] = set()
    for at, event in enumerate(events):
        if isinstance(event, ConnectionClosed):
            assert at == len(events) - 1
        stream_id = getattr(event, "stream_id", None)
        assert stream_id not in gone
        if isinstance(event, StreamEnded | StreamReset | ResetConfirmed):
            gone.add(stream_id)


@pytest.mark.parametrize("side", SIDES)
@calm
@given(data=traffic, sizes=cuts)
def test_any_bytes_in_any_pieces_give_the_same_events_and_the_same_answer(side, data, sizes):
    whole, cut = SIDES[side](), SIDES[side]()
    whole.receive(data, 1.0)
    for piece in pieces_of(data, sizes):
        cut.receive(piece, 1.0)
    events = whole.events()
    assert cut.events() == events
    answer = b"".join(whole.data_to_send())
    assert b"".join(cut.data_to_send()) == answer
    assert (cut.closed, cut.active, cut.queued, cut.credit) == (
        whole.closed,
        whole.active,
        whole.queued,
        whole.credit,
    )
    check_order(events)
    said = [frame.type for frame in frames_in(answer)]
    assert "CLOSE" not in said[:-1], "nothing is said behind a CLOSE"
    if whole.closed:
        assert isinstance(events[-1], ConnectionClosed)
        assert said == ([] if events[-1].by_peer else ["CLOSE"])


@calm
@given(said=st.lists(st.sampled_from(either + from_nodes), max_size=12), sizes=cuts)
def test_every_frame_is_heard_with_its_last_byte(said, sizes):
    server = a_server(True)
    before, carried, ends = server.frames_received, 0, []
    for frame in said:
        ends.append(len(frame) + (ends[-1] if ends else 0))
    for piece in pieces_of(b"".join(said), sizes):
        server.receive(piece, 1.0)
        carried += len(piece)
        if server.closed:
            break
        assert server.frames_received - before == sum(end <= carried for end in ends)


@pytest.mark.parametrize("side", SIDES)
@calm
@given(data=traffic, sizes=cuts, waits=st.lists(st.floats(0.0, 20.0), max_size=20))
def test_any_bytes_at_any_time_never_raise(side, data, sizes, waits):
    connection = SIDES[side]()
    now, events, pauses = 0.0, [], deque(waits)
    for piece in pieces_of(data, sizes):
        if pauses:
            now += pauses.popleft()
            connection.handle_timer(now)
        connection.receive(piece, now)
        for event in connection.events():
            events.append(event)
            match event:
                case DataReceived(id, payload):
                    connection.consumed(id, len(payload))
                case StreamOpened(id):
                    connection.send_head(id, ANSWER)
                    connection.send_data(id, b"z" * 30_000)
                case StreamReset(id):
                    if isinstance(connection, NodeConnection):
                        connection.confirm_reset(id)
        list(frames_in(b"".join(connection.data_to_send())))
    connection.lost("cut")
    events += connection.events()
    assert sum(isinstance(event, ConnectionClosed) for event in events) == 1
    assert isinstance(events[-1], ConnectionClosed)
    check_order(events)


# ── the link ──────────────────────────────────────────────────────────────────────────────────

LINK_MESSAGES = [
    messages.encode(message)
    for message in (
        messages.Ping(1),
        messages.Pong(2),
        messages.Tunnels(3),
        messages.Leaving("restarting", 1.0),
        messages.Refused(13, "revoked", False),
        messages.Registered("node_1", 1, b"s", 17001, 2, 15.0),
        messages.Engines([messages.EngineReport("e", "openai", True, 1, [])]),
    )
]
link_traffic = st.one_of(
    st.binary(max_size=100),
    st.lists(st.sampled_from(LINK_MESSAGES) | st.binary(max_size=30), max_size=10)
    .map(lambda parts: b"".join(len(part).to_bytes(4, "big") + part for part in parts))
    .flatmap(broken),
)


@calm
@given(data=link_traffic, sizes=cuts)
def test_a_link_hears_the_same_in_any_pieces(data, sizes):
    whole, cut = (Link(now=0.0, rng=Random(1)) for _ in range(2))
    whole.receive(data, 1.0)
    for piece in pieces_of(data, sizes):
        cut.receive(piece, 1.0)
    events = whole.events()
    assert cut.events() == events
    assert b"".join(cut.data_to_send()) == b"".join(whole.data_to_send())
    assert [isinstance(event, LinkClosed) for event in events].count(True) == int(whole.closed)
    assert not whole.closed or isinstance(events[-1], LinkClosed)


# ── two peers that keep the rules ─────────────────────────────────────────────────────────────

PERIOD = 65_521  # prime, so that a piece taken from the wrong place shows
BLOB = Random(0).randbytes(PERIOD) * 64
SIZES = st.sampled_from([1, 7, 1000, 16_372, 16_373, 70_000, 300_000])
ROLES = st.sampled_from(list(Role))
WHICH = st.integers(0, 1000)


@dataclass
class Flow:
    """A body on its way: what was given to one side, and how much has come out at the other."""

    base: int
    given: int = 0
    got: int = 0
    consumed: int = 0
    ended: bool = False
    end_heard: bool = False

    def more(self, count: int) -> bytes:
        data = BLOB[self.base + self.given : self.base + self.given + count]
        self.given += len(data)
        return data

    def check(self, data: bytes) -> None:
        start = self.base + self.got
        assert data == BLOB[start : start + len(data)], "bytes lost, changed or out of order"
        self.got += len(data)
        assert self.got <= self.given


@dataclass
class Told:
    """A stream as its two owners know it."""

    up: Flow
    down: Flow
    server: str = "open"  # then "resetting", "gone"
    node: str = "unborn"  # then "open", "reset", "gone"
    head_sent: bool = False
    head_heard: bool = False
    ends: int = 0
    waiting: set[Role] = field(default_factory=set)


@dataclass
class Wire:
    """Bytes on their way from one side, and that side's credit as the other side granted it."""

    data: bytearray = field(default_factory=bytearray)
    written: int = 0
    carried: int = 0
    frames: deque[tuple[int, Frame]] = field(default_factory=deque)
    sent: dict[int, int] = field(default_factory=dict)
    """By stream; 0 is the tunnel."""
    allowed: dict[int, int] = field(default_factory=lambda: {0: TUNNEL_WINDOW})


class TwoPeers(RuleBasedStateMachine):
    """Random commands, cuts and delays between two honest peers; an outside observer counts."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.server = ServerConnection(now=0.0, rng=Random(1), max_streams=24)
        self.node = NodeConnection(now=0.0, rng=Random(1), max_streams=24)
        self.sides = {Role.SERVER: self.server, Role.NODE: self.node}
        self.wires = {role: Wire() for role in Role}
        self.streams: dict[int, Told] = {}
        self.ending = False
        """Somebody has drained, closed or lost the tunnel."""
        self.over: set[Role] = set()

    # what goes on

    @initialize()
    def greet(self) -> None:
        self.node.hello(SESSION)
        self.settle()

    @precondition(lambda self: self.server.usable)
    @rule(ended=st.booleans(), size=SIZES)
    def open(self, ended: bool, size: int) -> None:
        stream = self.server.open_stream(HEAD, now=self.now, ended=ended)
        base = (stream * 7919) % PERIOD
        told = self.streams[stream] = Told(Flow(base, ended=ended), Flow((base * 31) % PERIOD))
        if not ended:
            self._send(Role.SERVER, stream, told, size, False)

    @rule(answer=st.booleans())
    def crowd(self, answer: bool) -> None:
        """So many large bodies that the tunnel's own credit runs out."""
        while self.server.usable and len(self.streams) < 200:
            self.open(ended=answer, size=300_000)
        if answer:
            self.settle()
            for stream, told in self.streams.items():
                if told.node == "open" and told.down.given < 2_000_000:
                    if not told.head_sent:
                        self.node.send_head(stream, ANSWER)
                        told.head_sent = True
                    self._send(Role.NODE, stream, told, 300_000, False)

    @rule(which=WHICH, size=SIZES, ended=st.booleans())
    def upload(self, which: int, size: int, ended: bool) -> None:
        for stream, told in self._pick(which, lambda t: t.server == "open" and not t.up.ended):
            self._send(Role.SERVER, stream, told, size, ended)

    @rule(which=WHICH)
    def head(self, which: int) -> None:
        for stream, told in self._pick(which, lambda t: t.node == "open" and not t.head_sent):
            self.node.send_head(stream, ANSWER)
            told.head_sent = True

    @rule(which=WHICH, size=SIZES)
    def download(self, which: int, size: int) -> None:
        for stream, told in self._pick(which, lambda t: t.node == "open" and t.head_sent):
            self._send(Role.NODE, stream, told, size, False)

    @rule(which=WHICH)
    def finish(self, which: int) -> None:
        for stream, told in self._pick(which, lambda t: t.node == "open" and t.head_sent):
            self.node.end_stream(stream, FIGURES)
            told.node, told.down.ended = "gone", True

    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        for stream, told in self._pick(which, lambda t: t.server == "open"):
            self.server.reset(stream, 1)
            told.server = "resetting"

    @rule(which=WHICH)
    def give_up(self, which: int) -> None:
        for stream, told in self._pick(which, lambda t: t.node == "open"):
            self.node.reset(stream, 6)
            told.node = "gone"

    @rule(which=WHICH)
    def confirm(self, which: int) -> None:
        for stream, told in self._pick(which, lambda t: t.node == "reset"):
            self.node.confirm_reset(stream)
            told.node = "gone"

    @rule(which=WHICH, role=ROLES, share=st.sampled_from([0.01, 0.5, 1.0]))
    def consume(self, which: int, role: Role, share: float) -> None:
        up = role is Role.NODE
        for stream, told in self._pick(
            which, lambda t: (flow := t.up if up else t.down).consumed < flow.got
        ):
            flow = told.up if up else told.down
            count = max(1, int((flow.got - flow.consumed) * share))
            flow.consumed += count
            self.sides[role].consumed(stream, count)

    @rule(role=ROLES, most=st.sampled_from([1, 20_000, 256 * 1024]))
    def flush(self, role: Role, most: int) -> None:
        self._flush(role, most)

    def _flush(self, role: Role, most: int = 256 * 1024) -> int:
        wire = self.wires[role]
        data = b"".join(self.sides[role].data_to_send(most))
        wire.data += data
        for frame in frames_in(data):
            wire.written += 12 + len(frame.payload)
            wire.frames.append((wire.written, frame))
            if frame.type == "DATA":
                for key in (0, frame.stream_id):
                    wire.sent[key] = wire.sent.get(key, 0) + len(frame.payload)
                    assert wire.sent[key] <= wire.allowed.get(key, STREAM_WINDOW)
        self.listen(role)
        return len(data)

    @rule(role=ROLES, count=st.integers(1, 50) | st.integers(1, 400_000))
    def deliver(self, role: Role, count: int) -> None:
        wire, other = self.wires[role], self._other(role)
        data = bytes(wire.data[:count])
        del wire.data[:count]
        wire.carried += len(data)
        while wire.frames and wire.frames[0][0] <= wire.carried:
            frame = wire.frames.popleft()[1]
            if frame.type == "WINDOW":
                back = self.wires[other]
                offset = int.from_bytes(frame.payload, "big")
                assert offset > back.allowed.get(frame.stream_id, 0)
                back.allowed[frame.stream_id] = offset
        self.sides[other].receive(data, self.now)
        self.listen(other)

    @rule()
    def settle(self) -> None:
        moved = True
        while moved:
            moved = False
            for role in Role:
                moved |= self._flush(role) > 0
                if self.wires[role].data:
                    self.deliver(role, len(self.wires[role].data))

    @rule(seconds=st.floats(0.0, 4.0))
    def tick(self, seconds: float) -> None:
        self.settle()  # a live peer answers within seconds
        self.now += seconds
        for side in self.sides.values():
            side.handle_timer(self.now)

    @precondition(lambda self: len(self.streams) > 6)
    @rule(role=ROLES, how=st.sampled_from(["drain", "drain", "close", "lost"]))
    def leave(self, role: Role, how: str) -> None:
        self.ending = True
        if how == "drain":
            self.sides[role].drain("restarting", 1.0)
        elif how == "close":
            self.sides[role].close(0, "bye")
        else:
            for side in self.sides.values():
                side.lost("cut")
        for each in Role:
            self.listen(each)

    # what must hold

    def listen(self, role: Role) -> None:
        for event in self.sides[role].events():
            assert role not in self.over, "an event behind the last one"
            if isinstance(event, ConnectionClosed):
                assert self.ending, event
                self.over.add(role)
            elif isinstance(event, DrainReceived):
                assert self.ending
            elif isinstance(event, HelloReceived):
                assert role is Role.SERVER
            elif isinstance(event, PongReceived):
                assert event.round_trip >= 0
            elif role is Role.SERVER:
                self._on_server(event)
            else:
                self._on_node(event)

    def _on_server(self, event: Event) -> None:
        told = self.streams[event.stream_id]  # type: ignore[union-attr]
        assert told.server != "gone", "an event behind a stream's end"
        match event:
            case HeadReceived():
                assert told.server == "open"
                assert not told.head_heard
                told.head_heard = True
            case DataReceived(_, data, ended):
                assert told.server == "open"
                assert told.head_heard
                assert not ended
                told.down.check(data)
            case StreamEnded():
                if told.server == "open":
                    assert told.down.ended
                    assert told.down.got == told.down.given
                told.server = "gone"
                told.ends += 1
            case StreamReset():
                assert told.server == "open" or self.server.closed
                told.server = "gone"
                told.ends += 1
            case ResetConfirmed():
                assert told.server == "resetting"
                told.server = "gone"
                told.ends += 1
            case StreamWritable():
                assert Role.SERVER in told.waiting
                told.waiting.discard(Role.SERVER)
            case _:
                raise AssertionError(event)

    def _on_node(self, event: Event) -> None:
        told = self.streams[event.stream_id]  # type: ignore[union-attr]
        match event:
            case StreamOpened(_, head, ended):
                assert told.node == "unborn"
                assert head == HEAD
                told.node = "open"
                told.up.end_heard = ended
            case DataReceived(_, data, ended):
                assert told.node == "open"
                assert not told.up.end_heard
                told.up.check(data)
                told.up.end_heard = ended
                assert not ended or (told.up.ended and told.up.got == told.up.given)
            case StreamReset():
                assert told.node == "open", "told twice, or after its own end"
                told.node = "gone" if self.node.closed else "reset"
            case StreamWritable():
                assert told.node == "open"
                assert Role.NODE in told.waiting
                told.waiting.discard(Role.NODE)
            case _:
                raise AssertionError(event)

    @invariant()
    def honest_peers_are_never_closed(self) -> None:
        for side in self.sides.values():
            assert self.ending or not side.closed

    @invariant()
    def what_waits_is_what_was_given(self) -> None:
        for role, side in self.sides.items():
            flows = [
                told.up if role is Role.SERVER else told.down for told in self.streams.values()
            ]
            assert side.queued + self.wires[role].sent.get(0, 0) <= sum(f.given for f in flows)

    def teardown(self) -> None:
        """Everybody finishes what they began: all of it ends, and no credit is lost."""
        for _ in range(200):
            self.settle()
            if self.server.closed and self.node.closed:
                break
            if not self.ending and self.server.active == self.node.active == 0:
                break
            for stream, told in self.streams.items():
                for role, flow in ((Role.NODE, told.up), (Role.SERVER, told.down)):
                    self.sides[role].consumed(stream, flow.got - flow.consumed)
                    flow.consumed = flow.got
                if told.server == "open" and not told.up.ended:
                    self._send(Role.SERVER, stream, told, 1, True)
                if told.node == "open":
                    if not told.head_sent:
                        self.node.send_head(stream, ANSWER)
                        told.head_sent = True
                    self.node.end_stream(stream, FIGURES)
                    told.node, told.down.ended = "gone", True
                elif told.node == "reset":
                    self.node.confirm_reset(stream)
                    told.node = "gone"
        else:
            raise AssertionError(f"stuck: {self.server!r} {self.node!r} {self.streams}")
        for told in self.streams.values():
            assert told.ends == 1, "every stream ends once for the server's owner"
            assert told.node in ("gone", "unborn") or (self.ending and told.node == "reset")
        if not self.ending:
            assert self.server.credit >= TUNNEL_WINDOW // 2
            assert self.node.credit >= TUNNEL_WINDOW // 2
            assert not self.server.has_output
            assert not self.node.has_output

    # small parts

    def _other(self, role: Role) -> Role:
        return Role.NODE if role is Role.SERVER else Role.SERVER

    def _pick(self, which, wanted):  # type: ignore[no-untyped-def]
        fitting = [pair for pair in self.streams.items() if wanted(pair[1])]
        return [fitting[which % len(fitting)]] if fitting else []

    def _send(self, role: Role, stream: int, told: Told, size: int, ended: bool) -> None:
        flow = told.up if role is Role.SERVER else told.down
        flow.ended = ended
        if not self.sides[role].send_data(stream, flow.more(size), ended=ended):
            told.waiting.add(role)


def test_two_honest_peers_lose_nothing_and_close_nothing():
    run_state_machine_as_test(
        TwoPeers,
        settings=settings(
            max_examples=60,
            stateful_step_count=60,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
