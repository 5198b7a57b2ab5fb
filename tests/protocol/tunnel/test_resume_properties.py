"""Random cuts: whatever is cut when, every byte arrives once."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

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

from protocol.errors import Code
from protocol.tunnel.base import Role
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
from protocol.tunnel.node import NodeConnection
from protocol.tunnel.resume import ResumeTable
from protocol.tunnel.server import ServerConnection
from protocol.tunnel.streams import STREAM_WINDOW, TUNNEL_WINDOW
from protocol.tunnel.unacknowledged import ACK_BYTES
from tests.protocol.tunnel.bodies import LARGEST, PERIOD, ROLES, SIZES, WHICH, Flow
from tests.protocol.tunnel.pairs import Pair
from tests.pump import ANSWER, FIGURES, HEAD, SESSION

MAX_TUNNELS = 3


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
