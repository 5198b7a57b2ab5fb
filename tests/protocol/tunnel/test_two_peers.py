"""Random commands, cuts and delays between two honest peers."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from random import Random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

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
from protocol.tunnel.streams import STREAM_WINDOW, TUNNEL_WINDOW, Limits
from tests.protocol.tunnel.bodies import PERIOD, ROLES, SIZES, WHICH, Flow
from tests.pump import ANSWER, FIGURES, HEAD, SESSION, Frame, frames_in


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
        self.server = ServerConnection(now=0.0, rng=Random(1), limits=Limits(24))
        self.node = NodeConnection(now=0.0, rng=Random(1), limits=Limits(24))
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
            assert not self.server.has_output()
            assert not self.node.has_output()

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
