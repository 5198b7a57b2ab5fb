"""Streams that outlive their tunnels: whatever is cut when, every byte arrives once."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from protocol import messages
from protocol.errors import Code, LocalError
from protocol.messages import MAX_LOST, Resume
from protocol.tunnel.base import Role
from protocol.tunnel.connection import Connection
from protocol.tunnel.events import (
    ConnectionClosed,
    DataReceived,
    Event,
    HeadReceived,
    HelloReceived,
    ResetConfirmed,
    StreamEnded,
    StreamOpened,
    StreamReset,
    StreamResumed,
    StreamWritable,
)
from protocol.tunnel.frames import FrameType, encode
from protocol.tunnel.node import NodeConnection
from protocol.tunnel.resume import ResumeTable
from protocol.tunnel.server import ServerConnection
from protocol.tunnel.streams import STREAM_WINDOW, TUNNEL_WINDOW
from protocol.tunnel.unacknowledged import ACK_BYTES, MAX_UNACKNOWLEDGED
from tests.pump import ANSWER, FIGURES, HEAD, SESSION, frames_in, words_of

PERIOD = 65_521  # prime, so that a piece taken from the wrong place shows
BLOB = Random(0).randbytes(PERIOD) * 64
SIZES = st.sampled_from([1, 7, 1000, 16_372, 16_373, 70_000, 300_000])
LARGEST = 300_000
WHICH = st.integers(0, 1000)
ROLES = st.sampled_from(list(Role))
MAX_TUNNELS = 3


@dataclass(eq=False)
class Flow:
    """A body on its way: what was given to one side, and how much has come out at the other."""

    base: int
    given: int = 0
    got: int = 0
    consumed: int = 0
    ended: bool = False
    end_heard: bool = False

    def more(self, count: int) -> bytes:
        start = (self.base + self.given) % PERIOD
        self.given += count
        return BLOB[start : start + count]

    def check(self, data: bytes) -> None:
        start = (self.base + self.got) % PERIOD
        assert data == BLOB[start : start + len(data)], "lost, doubled or out of order"
        self.got += len(data)
        assert self.got <= self.given


@dataclass(eq=False)
class Told:
    """What each side's owner knows of one request."""

    up: Flow
    down: Flow
    at_server: tuple[ServerConnection, int]
    at_node: tuple[NodeConnection, int] | None = None
    server: str = "open"
    node: str = "unborn"
    head_sent: bool = False
    head_heard: bool = False
    ends: int = 0
    excused: bool = False
    """May be lost: its question was on its way when a tunnel was cut, or somebody gave it up."""


@dataclass(eq=False)
class Pair:
    """One tunnel: both ends, and the bytes between them."""

    server: ServerConnection
    node: NodeConnection
    wires: dict[Role, bytearray] = field(
        default_factory=lambda: {role: bytearray() for role in Role}
    )
    cut: bool = False

    def side(self, role: Role) -> Connection:
        return self.server if role is Role.SERVER else self.node


class ManyTunnels(RuleBasedStateMachine):
    """One registration.  Tunnels come and are cut at any byte; each end notices when it does."""

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.rng = Random(4)
        self.resume_table = ResumeTable()
        self.number = 0
        self.pairs: list[Pair] = []
        self.all: list[Pair] = []
        self.streams: dict[str, Told] = {}
        self.by_place: dict[tuple[int, int], Told] = {}
        self.dial()

    @rule()
    def dial(self) -> None:
        if len(self.live) >= MAX_TUNNELS:
            return
        self.number += 1
        pair = Pair(
            ServerConnection(now=self.now, rng=self.rng, resumes=True),
            NodeConnection(
                now=self.now,
                rng=self.rng,
                number=self.number,
                resume_table=self.resume_table,
            ),
        )
        pair.node.hello(SESSION)
        self.pairs.append(pair)
        self.all.append(pair)

    @property
    def live(self) -> list[Pair]:
        return [pair for pair in self.pairs if not pair.cut]

    # ── what owners do ────────────────────────────────────────────────────────────────────────

    @rule(which=WHICH, ended=st.booleans(), size=SIZES)
    def open(self, which: int, ended: bool, size: int) -> None:
        usable = [pair for pair in self.pairs if pair.server.usable]
        if not usable:
            return
        server = usable[which % len(usable)].server
        name = f"req_{len(self.streams)}"
        stream_id = server.open_stream(replace(HEAD, request_id=name), now=self.now, ended=ended)
        base = len(self.streams) * 7919 % PERIOD
        told = Told(Flow(base, ended=ended), Flow(base * 31 % PERIOD), (server, stream_id))
        self.streams[name] = told
        self.by_place[id(server), stream_id] = told
        if not ended:
            server.send_data(stream_id, told.up.more(size), ended=size < 1000)
            told.up.ended = size < 1000

    @rule(which=WHICH, size=SIZES, ended=st.booleans())
    def upload(self, which: int, size: int, ended: bool) -> None:
        for told in self._pick(which, lambda t: t.server == "open" and not t.up.ended):
            server, stream_id = told.at_server
            size = 0 if ended and size == 7 else size
            told.up.ended = ended
            server.send_data(stream_id, told.up.more(size), ended=ended)

    @rule(which=WHICH, size=SIZES, more=st.sampled_from(["head", "data", "data", "data", "end"]))
    def answer(self, which: int, size: int, more: str) -> None:
        for told in self._pick(which, lambda t: t.node == "open"):
            self._answer(told, size, more)

    def _answer(self, told: Told, size: int, more: str) -> None:
        assert told.at_node is not None
        node, stream_id = told.at_node
        if not told.head_sent:
            node.send_head(stream_id, ANSWER)
            told.head_sent = True
        if more == "data" and told.down.given - told.down.got < 600_000:
            node.send_data(stream_id, told.down.more(size))
        if more == "end":
            node.end_stream(stream_id, FIGURES)
            told.node, told.down.ended = "gone", True

    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        for told in self._pick(which, lambda t: t.server == "open"):
            server, stream_id = told.at_server
            server.reset(stream_id, 1)
            told.server = "resetting"

    @rule(which=WHICH)
    def give_up(self, which: int) -> None:
        for told in self._pick(which, lambda t: t.node == "open"):
            assert told.at_node is not None
            node, stream_id = told.at_node
            node.reset(stream_id, 6)
            told.node, told.excused = "gone", True

    @rule(which=WHICH)
    def confirm(self, which: int) -> None:
        for told in self._pick(which, lambda t: t.node == "reset"):
            assert told.at_node is not None
            node, stream_id = told.at_node
            node.confirm_reset(stream_id)
            told.node = "gone"

    @rule(which=WHICH, role=ROLES, share=st.sampled_from([0.01, 0.5, 1.0]))
    def consume(self, which: int, role: Role, share: float) -> None:
        up = role is Role.NODE
        for told in self._pick(
            which, lambda t: (flow := t.up if up else t.down).consumed < flow.got
        ):
            flow = told.up if up else told.down
            self._consume(told, role, max(1, int((flow.got - flow.consumed) * share)))

    def _consume(self, told: Told, role: Role, count: int) -> None:
        flow, place = (told.up, told.at_node) if role is Role.NODE else (told.down, told.at_server)
        flow.consumed += count
        if place is not None:
            place[0].consumed(place[1], count)

    # ── what the network does ─────────────────────────────────────────────────────────────────

    @rule(which=WHICH, role=ROLES, most=st.sampled_from([1, 20_000, 256 * 1024]))
    def flush(self, which: int, role: Role, most: int) -> None:
        if self.live:
            self._flush(self.live[which % len(self.live)], role, most)

    def _flush(self, pair: Pair, role: Role, most: int = 256 * 1024) -> bool:
        data = b"".join(pair.side(role).data_to_send(most))
        pair.wires[role] += data
        self.listen(pair, role)
        return bool(data)

    @rule(which=WHICH, role=ROLES, count=st.integers(1, 50) | st.integers(1, 400_000))
    def deliver(self, which: int, role: Role, count: int) -> None:
        if self.live:
            self._deliver(self.live[which % len(self.live)], role, count)

    def _deliver(self, pair: Pair, role: Role, count: int) -> None:
        data = bytes(pair.wires[role][:count])
        del pair.wires[role][:count]
        other = Role.NODE if role is Role.SERVER else Role.SERVER
        pair.side(other).receive(data, self.now)
        self.listen(pair, other)

    @rule()
    def settle(self) -> None:
        moved = True
        while moved:
            moved = False
            for pair in self.live:
                for role in Role:
                    moved |= self._flush(pair, role)
                    if pair.wires[role]:
                        self._deliver(pair, role, len(pair.wires[role]))

    @rule(which=WHICH, up=st.integers(0, 400_000), down=st.integers(0, 400_000))
    def cut(self, which: int, up: int, down: int) -> None:
        """So many bytes still arrive, the rest never does; nobody has noticed yet."""
        if not self.live:
            return
        pair = self.live[which % len(self.live)]
        self._deliver(pair, Role.SERVER, up)
        self._deliver(pair, Role.NODE, down)
        pair.cut = True
        for told in self.streams.values():
            if told.at_server[0] is pair.server and not told.up.end_heard:
                told.excused = True

    @rule(which=WHICH, role=ROLES)
    def notice(self, which: int, role: Role) -> None:
        silent = [pair for pair in self.pairs if pair.cut and not pair.side(role).closed]
        if silent:
            self._notice(silent[which % len(silent)], role)

    def _notice(self, pair: Pair, role: Role) -> None:
        for told in self.streams.values():  # opened on it since
            if told.at_server[0] is pair.server and not told.up.end_heard:
                told.excused = True
        pair.side(role).lost("cut")
        self.listen(pair, role)

    @rule(which=WHICH)
    def resume(self, which: int) -> None:
        """What one lost tunnel has left goes on elsewhere, be that tunnel cut already or not."""
        usable = [pair for pair in self.pairs if pair.server.usable and pair.server.resumes]
        waiting = [t for t in self._at_lost_servers() if t.server != "gone"]
        if usable and waiting:
            told = waiting[which % len(waiting)]
            self._resume(told, usable[which % len(usable)])

    def _resume(self, told: Told, pair: Pair) -> None:
        lost, lost_id = told.at_server
        stream_id = pair.server.resume_stream(lost, lost_id, now=self.now)
        del self.by_place[id(lost), lost_id]
        told.at_server = pair.server, stream_id
        self.by_place[id(pair.server), stream_id] = told

    @rule(role=ROLES, which=WHICH)
    def abandon(self, role: Role, which: int) -> None:
        """Nobody has come in time."""
        if which % 7:  # or nothing would be left to resume
            return
        closed = [pair for pair in self.pairs if pair.side(role).closed]
        if closed:
            pair = closed[which % len(closed)]
            for told in self.streams.values():
                at_node = told.at_node and told.at_node[0]
                # One that has ended moves without its owner hearing where to.
                unknown = role is Role.NODE and told.down.ended
                if unknown or pair.side(role) in (told.at_server[0], at_node):
                    told.excused = True
            pair.side(role).abandon("nobody came")
            self.listen(pair, role)

    # ── what must hold ────────────────────────────────────────────────────────────────────────

    def listen(self, pair: Pair, role: Role) -> None:
        side = pair.side(role)
        for event in side.events():
            if isinstance(event, ConnectionClosed):
                assert event.code == Code.LOST, event
                assert pair.cut, event
            elif isinstance(event, HelloReceived | StreamWritable):
                pass
            elif role is Role.SERVER:
                self._on_server(self.by_place[id(side), event.stream_id], event)  # type: ignore[union-attr]
            else:
                self._on_node(side, event)

    def _on_server(self, told: Told, event: Event) -> None:
        assert told.server != "gone", "an event behind a stream's end"
        match event:
            case HeadReceived():
                assert told.server == "open"
                assert not told.head_heard, "a second head"
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
                    assert told.head_heard
                told.server = "gone"
                told.ends += 1
            case StreamReset(_, code):
                assert told.excused, event
                assert code in (Code.LOST, 6), event
                told.server = "gone"
                told.ends += 1
            case ResetConfirmed():
                assert told.server == "resetting"
                told.server = "gone"
                told.ends += 1
            case _:
                raise AssertionError(event)

    def _on_node(self, node: NodeConnection, event: Event) -> None:
        match event:
            case StreamOpened(stream_id, head, ended):
                told = self.streams[head.request_id]
                assert told.node == "unborn"
                told.node = "open"
                told.up.end_heard = ended
                told.at_node = node, stream_id
                node.set_owner(stream_id, told)
                self.by_place[id(node), stream_id] = told
            case StreamResumed(stream_id):
                moved: Told | None = node.owner(stream_id)
                if moved is not None:
                    assert moved.at_node is not None
                    self.by_place.pop((id(moved.at_node[0]), moved.at_node[1]))
                    moved.at_node = node, stream_id
                    self.by_place[id(node), stream_id] = moved
            case DataReceived(stream_id, data, ended):
                told = self.by_place[id(node), stream_id]
                assert told.node == "open"
                assert not told.up.end_heard
                told.up.check(data)
                told.up.end_heard = ended
                assert not ended or (told.up.ended and told.up.got == told.up.given)
            case StreamReset(stream_id):
                told = self.by_place[id(node), stream_id]
                assert told.node == "open", "told twice, or after its own end"
                told.node = "gone" if node.closed else "reset"
            case _:
                raise AssertionError(event)

    @invariant()
    def what_is_kept_is_bounded(self) -> None:
        for pair in self.all:
            most = pair.node.active * (2 * STREAM_WINDOW + LARGEST + 100) + TUNNEL_WINDOW
            assert pair.node.replay_bytes <= most
            assert pair.server.replay_bytes == 0
            if not pair.cut:
                assert not pair.server.closed
                assert not pair.node.closed

    def teardown(self) -> None:
        """Everything that may go on does, and ends as it should."""
        for _ in range(300):
            if not self.live:
                self.dial()
            self.settle()
            for pair in self.pairs:
                for role in Role:
                    if pair.cut and not pair.side(role).closed:
                        self._notice(pair, role)
            for told in list(self._at_lost_servers()):
                if told.server != "gone":
                    self._resume(told, self.live[-1])
            self.settle()
            for told in self.streams.values():
                for role, flow in ((Role.NODE, told.up), (Role.SERVER, told.down)):
                    self._consume(told, role, flow.got - flow.consumed)
                if told.server == "open" and not told.up.ended:
                    told.up.ended = True
                    told.at_server[0].send_data(told.at_server[1], b"", ended=True)
                if told.node == "open":
                    self._answer(told, 0, "end")
                elif told.node == "reset":
                    assert told.at_node is not None
                    told.at_node[0].confirm_reset(told.at_node[1])
                    told.node = "gone"
            if all(told.server == "gone" for told in self.streams.values()):
                break
        else:
            raise AssertionError(f"stuck: {self.streams}")
        self.settle()
        for pair in self.pairs:
            for role in Role:
                if pair.side(role).closed:
                    pair.side(role).abandon("over")
                    self.listen(pair, role)
        for told in self.streams.values():
            assert told.ends == 1, "every stream ends once for the server's owner"
            assert told.node in ("gone", "unborn")
        for pair in self.live:
            for side in (pair.server, pair.node):
                assert side.active == 0
                assert side.replay_bytes <= ACK_BYTES
                assert side.credit >= TUNNEL_WINDOW // 2

    # small parts

    def _at_lost_servers(self) -> list[Told]:
        return [told for told in self.streams.values() if told.at_server[0].closed]

    def _pick(self, which, wanted):  # type: ignore[no-untyped-def]
        fitting = [told for told in self.streams.values() if wanted(told)]
        return [fitting[which % len(fitting)]] if fitting else []


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
@example(seed=21068)  # given up by the node, whose RESET is cut: said again, and at once
@example(seed=19464)  # cancelled when all of the answer was under way: it was kept for too long
def test_busy_tunnels_that_are_cut_again_and_again_lose_nothing(seed: int):
    """Traffic as it is, with what the machine below draws too seldom: cuts in full flight."""
    rng = Random(seed)
    world = ManyTunnels()
    world.begin()

    def which() -> int:
        return rng.randrange(1000)

    def size() -> int:
        return rng.choice([1, 7, 1000, 16_372, 16_373, 70_000, 300_000])

    def some_bytes() -> int:
        return rng.choice([0, rng.randrange(60), rng.randrange(20_000), rng.randrange(400_000)])

    def role() -> Role:
        return rng.choice(list(Role))

    actions = [
        (2, lambda: world.dial()),
        (2, lambda: world.open(which(), rng.random() < 0.7, size())),
        (1, lambda: world.upload(which(), size(), rng.random() < 0.5)),
        (12, lambda: world.answer(which(), size(), "data")),
        (1, lambda: world.answer(which(), 1, "end")),
        (0.5, lambda: world.cancel(which())),
        (0.2, lambda: world.give_up(which())),
        (1, lambda: world.confirm(which())),
        (6, lambda: world.consume(which(), role(), rng.choice([0.01, 0.5, 1.0]))),
        (8, lambda: world.flush(which(), role(), rng.choice([1, 20_000, 256 * 1024]))),
        (8, lambda: world.deliver(which(), role(), some_bytes())),
        (1.5, lambda: world.settle()),
        (1.5, lambda: world.cut(which(), some_bytes(), some_bytes())),
        (4, lambda: world.notice(which(), role())),
        (6, lambda: world.resume(which())),
        (0.1, lambda: world.abandon(role(), 7 * which())),
    ]
    weights = [weight for weight, _ in actions]
    for _, action in rng.choices(actions, weights, k=rng.choice([30, 100, 300])):
        action()
        world.what_is_kept_is_bounded()
    world.teardown()


def test_cut_anywhere_and_as_often_as_you_like_every_byte_arrives_once():
    run_state_machine_as_test(
        ManyTunnels,
        settings=settings(
            max_examples=100,
            stateful_step_count=80,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


# ── one rule at a time ────────────────────────────────────────────────────────────────────────


class Site:
    """A server's and a node's side of as many tunnels as a test asks for."""

    def __init__(self) -> None:
        self.resume_table = ResumeTable()
        self.count = 0

    def tunnel(self) -> Pair:
        pair = self.dial()
        up(pair)
        return pair

    def dial(self) -> Pair:
        """HELLO has been made, and not been sent."""
        self.count += 1
        pair = Pair(
            ServerConnection(now=0.0, rng=Random(1), resumes=True),
            NodeConnection(
                now=0.0, rng=Random(1), number=self.count, resume_table=self.resume_table
            ),
        )
        pair.node.hello(SESSION)
        return pair

    def answering(self, *, ended: bool = True) -> tuple[Pair, int]:
        pair = self.tunnel()
        stream = pair.server.open_stream(HEAD, now=0.0, ended=ended)
        down(pair)
        pair.node.send_head(stream, ANSWER)
        up(pair)
        return pair, stream


def down(pair: Pair) -> list[str]:
    """What the server says reaches the node; returns what that hears."""
    pair.node.receive(b"".join(pair.server.data_to_send()), 0.0)
    return [words_of(event) for event in pair.node.events()]


def up(pair: Pair) -> list[str]:
    pair.server.receive(b"".join(pair.node.data_to_send()), 0.0)
    return [words_of(event) for event in pair.server.events()]


def cut(pair: Pair) -> None:
    for side in (pair.server, pair.node):
        side.lost("cut")
        assert [type(event) for event in side.events()] == [ConnectionClosed]


def test_without_a_number_a_cut_ends_the_streams_of_both_sides_as_ever():
    for resumes in (True, False):
        pair = Pair(
            ServerConnection(now=0.0, rng=Random(1), resumes=resumes),
            NodeConnection(now=0.0, rng=Random(1)),
        )
        pair.node.hello(SESSION)
        up(pair)
        pair.server.open_stream(HEAD, now=0.0, ended=True)
        down(pair)
        for side in (pair.server, pair.node):
            side.lost("cut")
            assert [words_of(event) for event in side.events()] == [
                "reset 1 lost 'cut'",
                "closed by peer: lost 'cut'",
            ]
        assert pair.node.replay_bytes == 0


def test_a_node_without_a_number_takes_resume_for_the_breach_that_it_is():
    for kind, stream in ((FrameType.RESUME, 1), (FrameType.ACK, 0)):
        node = NodeConnection(now=0.0, rng=Random(1))
        node.receive(encode(kind, 0, stream, bytes(8)), 0.0)
        assert node.closed


def test_a_number_is_for_servers_that_resume_and_others_ignore_it():
    pair = Pair(
        ServerConnection(now=0.0, rng=Random(1)),
        NodeConnection(now=0.0, rng=Random(1), number=1, resume_table=ResumeTable()),
    )
    pair.node.hello(SESSION)
    assert up(pair) == ["hello b'session'"]
    pair.server.open_stream(HEAD, now=0.0, ended=True)
    down(pair)
    pair.node.send_head(1, ANSWER)
    pair.node.end_stream(1, FIGURES)
    assert up(pair) == ["head 1 200", "ended 1"]
    assert not pair.server.has_output, "no ACK"


def lost_in_hello(pair: Pair) -> list[int]:
    """What the node says it has lost."""
    pair.server.receive(b"".join(pair.node.data_to_send()), 0.0)
    [event] = pair.server.events()
    assert isinstance(event, HelloReceived)
    return event.hello.lost


def test_a_node_says_which_tunnels_it_has_lost_until_it_forgets_them():
    site = Site()
    first, second = site.tunnel(), site.tunnel()
    assert lost_in_hello(site.dial()) == []
    first.node.lost("connection reset")
    assert lost_in_hello(site.dial()) == [1]
    second.node.lost("connection reset")
    assert lost_in_hello(site.dial()) == [1, 2]
    first.node.abandon("nobody asked for it any more")
    assert lost_in_hello(site.dial()) == [2]


def test_a_hello_has_room_for_the_newest_of_many_lost_tunnels():
    site = Site()
    site.count = 2**62
    lost = [site.dial() for _ in range(MAX_LOST + 4)]
    for pair in lost:
        pair.node.data_to_send()
        pair.node.lost("connection reset")
    numbers = [pair.node.number for pair in lost]
    assert lost_in_hello(site.dial()) == numbers[-MAX_LOST:]


def test_what_came_over_the_old_tunnel_is_not_credited_to_the_new_one():
    site = Site()
    old, stream = site.answering()
    old.node.send_data(stream, bytes(200_000))
    up(old)
    cut(old)
    new = site.tunnel()
    stream = new.server.resume_stream(old.server, stream, now=0.0)
    down(new)
    new.node.send_data(stream, bytes(50_000))
    assert up(new) == [f"data {stream} 16372 bytes"] * 3 + [f"data {stream} 884 bytes"]
    new.server.consumed(stream, 200_000)
    new.server.consumed(stream, 50_000)
    assert new.server._inbound.consumed == new.server._inbound.received == 50_000


def test_the_newer_of_two_claims_holds_whichever_comes_last():
    site = Site()
    old, stream = site.answering()
    old.node.send_data(stream, b"one")
    up(old)
    old.server.lost("silent")
    slow, quick = site.tunnel(), site.tunnel()
    first = slow.server.resume_stream(old.server, stream, now=0.0)
    late = b"".join(slow.server.data_to_send())
    slow.server.lost("silent")
    second = quick.server.resume_stream(slow.server, first, now=0.0)
    assert down(quick) == [f"resumed {second}"]
    quick.node.send_data(second, b"two")
    slow.node.receive(late, 0.0)
    assert slow.node.events() == []
    assert [str(frame) for frame in frames_in(b"".join(slow.node.data_to_send()))] == [
        "RESET 1 unknown 'this stream is not here any more'"
    ]
    assert up(quick) == [f"data {second} b'two'"]
    assert old.node.active == slow.node.active == 0


def test_a_question_that_lost_a_part_is_given_up_on_both_sides():
    site = Site()
    old, stream = site.answering(ended=False)
    old.server.send_data(stream, b"half of it")
    old.server.data_to_send()
    cut(old)
    new = site.tunnel()
    stream = new.server.resume_stream(old.server, stream, now=0.0)
    words = "'a part of the request was lost with its tunnel'"
    assert down(new) == [f"resumed {stream}", f"reset {stream} unknown {words}"]
    new.node.confirm_reset(stream)
    assert up(new) == [f"reset {stream} lost {words}"]
    assert new.server.active == new.node.active == 0


def test_a_question_that_lost_nothing_goes_on_where_it_was():
    site = Site()
    old, stream = site.answering(ended=False)
    old.server.send_data(stream, bytes(STREAM_WINDOW))
    down(old)
    old.node.consumed(stream, STREAM_WINDOW)
    old.node.data_to_send()  # the WINDOW is lost
    cut(old)
    old.server.send_data(stream, b"and the rest")
    new = site.tunnel()
    stream = new.server.resume_stream(old.server, stream, now=0.0)
    assert down(new) == [f"resumed {stream}"]
    assert up(new) == []
    assert down(new) == [f"data {stream} b'and the rest'"]
    new.server.send_data(stream, b"", ended=True)
    assert down(new) == [f"data {stream} b'', ended"]


def test_the_end_of_a_question_said_between_tunnels_is_said_on_the_next_one():
    site = Site()
    old, stream = site.answering(ended=False)
    cut(old)
    old.server.send_data(stream, b"", ended=True)
    new = site.tunnel()
    stream = new.server.resume_stream(old.server, stream, now=0.0)
    assert down(new) == [f"resumed {stream}", f"data {stream} b'', ended"]


def test_what_was_granted_may_be_dropped_and_nothing_else_is():
    site = Site()
    pair, stream = site.answering()
    for _ in range(16):
        pair.node.send_data(stream, bytes(16_000))
    up(pair)
    assert pair.node.replay_bytes > 256_000
    sent = 256_000
    for consumed in range(140_000, 2_000_000, 140_000):
        pair.server.consumed(stream, 140_000)
        down(pair)
        assert sent - consumed <= pair.node.replay_bytes <= 2 * STREAM_WINDOW
        for _ in range(8):
            pair.node.send_data(stream, bytes(17_500))
        sent += 140_000
        up(pair)


def test_an_end_is_kept_until_it_is_acknowledged():
    site = Site()
    pair, stream = site.answering()
    for size in (10, 60_000):
        pair.node.send_data(stream, bytes(size))
        pair.node.end_stream(stream, FIGURES)
        up(pair)
        assert pair.node.active == 0
        assert pair.node.replay_bytes > size
        down(pair)
        if size == 10:
            assert pair.node.replay_bytes > size, "too little to be worth a frame"
            stream = pair.server.open_stream(HEAD, now=0.0, ended=True)
            down(pair)
            pair.node.send_head(stream, ANSWER)
    assert pair.node.replay_bytes == 0


def test_what_was_ignored_of_a_cancelled_answer_is_acknowledged_like_any_other():
    site = Site()
    pair, stream = site.answering()
    pair.node.send_data(stream, bytes(ACK_BYTES))
    pair.node.end_stream(stream, FIGURES)
    answer = b"".join(pair.node.data_to_send())
    pair.server.reset(stream, Code.CANCELLED)
    pair.server.receive(answer, 0.0)
    assert [words_of(event) for event in pair.server.events()] == [f"ended {stream}"]
    assert pair.node.replay_bytes > ACK_BYTES
    down(pair)
    assert pair.node.replay_bytes == 0


def test_small_answers_are_acknowledged_sixteen_at_a_time():
    site = Site()
    pair = site.tunnel()
    acknowledged = []
    for _ in range(48):
        stream = pair.server.open_stream(HEAD, now=0.0, ended=True)
        down(pair)
        pair.node.send_head(stream, ANSWER)
        pair.node.end_stream(stream, FIGURES)
        up(pair)
        if pair.server.has_output:
            acknowledged.append(stream)
        down(pair)
    assert acknowledged == [31, 63, 95]


def test_an_acknowledgement_of_what_was_never_sent_closes():
    site = Site()
    pair, _ = site.answering()
    pair.node.receive(encode(FrameType.ACK, 0, 0, (1).to_bytes(8, "big")), 0.0)
    assert pair.node.closed


def test_acknowledgements_that_tell_nothing_are_a_flood():
    site = Site()
    pair, _ = site.answering()
    pair.node.receive(encode(FrameType.ACK, 0, 0, bytes(8)) * 101, 0.0)
    closed = pair.node.events()[-1]
    assert words_of(closed) == "closed by us: calm 'too much ACK that tells nothing'"


def test_ends_that_nobody_acknowledges_are_kept_up_to_a_limit():
    site = Site()
    pair = site.tunnel()
    for _ in range(2 * MAX_UNACKNOWLEDGED):
        stream = pair.server.open_stream(HEAD, now=0.0, ended=True)
        pieces = pair.server.data_to_send()
        pair.node.receive(b"".join(one for one in pieces if one[0] != FrameType.ACK), 0.0)
        pair.node.send_head(stream, ANSWER)
        pair.node.send_data(stream, bytes(10_000))
        pair.node.end_stream(stream, FIGURES)
        data = b"".join(pair.node.data_to_send())
        pair.server.receive(data, 0.0)
        for event in pair.server.events():
            if isinstance(event, DataReceived):
                pair.server.consumed(stream, len(event.data))
        assert pair.node.replay_bytes <= TUNNEL_WINDOW
        assert pair.node.unacknowledged <= MAX_UNACKNOWLEDGED


def test_a_claim_of_bytes_that_are_not_kept_breaks_that_stream_alone():
    site = Site()
    pair, stream = site.answering()
    pair.node.send_data(stream, b"ten bytes.")
    up(pair)
    for attempt, (received, allowed) in enumerate([(11, 262_144), (5, 262_150)], 1):
        claim = Resume(1, 1, attempt, True, received, allowed, 0, True)
        frame = encode(FrameType.RESUME, 0, 1 + 2 * attempt, messages.encode(claim))
        pair.node.receive(frame, 0.0)
        if attempt == 1:
            assert words_of(pair.node.events()[-1]).startswith("reset 3 protocol")
            pair.node.confirm_reset(3)
            assert not pair.node.closed


def test_a_close_is_no_cut_but_crosses_a_resume():
    site = Site()
    old, stream = site.answering()
    cut(old)
    new, last = site.tunnel(), site.tunnel()
    new.node.drain("restarting", 1.0)
    stream = new.server.resume_stream(old.server, stream, now=0.0)
    up(new)
    up(new)
    assert new.server.closed
    assert new.server.active == 1
    stream = last.server.resume_stream(new.server, stream, now=0.0)
    assert down(last) == [f"resumed {stream}"]


def test_one_that_is_being_stopped_moves_and_is_confirmed_where_it_is():
    site = Site()
    old, stream = site.answering()
    old.server.reset(stream, Code.CANCELLED)
    assert down(old) == ["reset 1 cancelled"]
    cut(old)
    new = site.tunnel()
    stream = new.server.resume_stream(old.server, stream, now=0.0)
    assert down(new) == [f"resumed {stream}"]
    new.node.confirm_reset(stream)
    assert up(new) == [f"confirmed {stream}"]


def test_one_that_the_node_gave_up_is_lost_though_its_work_is_still_being_stopped():
    site = Site()
    old, stream = site.answering(ended=False)
    old.server.send_data(stream, b"is lost with its tunnel")
    old.server.data_to_send()
    cut(old)
    new, last = site.tunnel(), site.tunnel()
    stream = new.server.resume_stream(old.server, stream, now=0.0)
    [resumed, given_up] = down(new)
    assert resumed == f"resumed {stream}"
    assert given_up.startswith(f"reset {stream} unknown")
    new.node.data_to_send()  # so is the RESET
    cut(new)
    moved = last.server.resume_stream(new.server, stream, now=0.0)
    assert down(last) == []
    [lost] = up(last)
    assert lost.startswith(f"reset {moved} lost")
    new.node.confirm_reset(stream)
    assert new.node.active == 0


def test_one_that_was_confirmed_on_the_way_is_confirmed_by_being_unknown():
    site = Site()
    old, stream = site.answering()
    cut(old)
    old.server.reset(stream, Code.CANCELLED)
    old.node.reset(stream, Code.ENGINE_FAILED)
    new = site.tunnel()
    stream = new.server.resume_stream(old.server, stream, now=0.0)
    assert down(new) == []
    assert up(new) == [f"confirmed {stream}"]


def test_a_stream_can_only_be_resumed_where_streams_can_be_opened_and_are_numbered():
    site = Site()
    old, stream = site.answering()
    cut(old)
    with pytest.raises(LocalError, match="no stream can be resumed"):
        old.server.resume_stream(old.server, stream, now=0.0)
    with pytest.raises(LocalError, match="is not closed"):
        site.tunnel().server.abandon("too early")
