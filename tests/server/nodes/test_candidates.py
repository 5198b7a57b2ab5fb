"""Candidates are kept by difference: after any history they are what recomputing them gives."""

from __future__ import annotations

from itertools import count
from operator import is_
from random import Random
from typing import Any, cast

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_server.nodes.candidates import UNSORTED, Candidates
from fabric_server.nodes.circuit_breaker import FAILURES
from fabric_server.nodes.node import Engine, Node
from fabric_server.nodes.registry import Registry
from fabric_server.nodes.slot_limit import SlotLimit
from fabric_server.routing.criteria import Requirements
from fabric_server.routing.load_balancer import RoutingState, can_pick, pick
from protocol.errors import Code
from protocol.messages import EngineReport, ModelReport, Register, RequestHead
from protocol.tunnel.node import NodeConnection
from protocol.tunnel.server import ServerConnection
from protocol.tunnel.streams import Limits

MODELS = ("a", "b:latest", "b")
PATHS = ("", "/chat", "/rerank")
HEAD = RequestHead("req_1", "one", "POST", "/chat", [], None, 1000)
SHARED = ("/chat", "/models")
STREAMS = 3
"""Streams that a tunnel carries here."""


class Tunnel:
    """A connected tunnel: both ends are real connections, without sockets."""

    def __init__(self, session: bytes, now: float, rng: Random) -> None:
        self.connection = ServerConnection(now=now, rng=rng, limits=Limits(STREAMS))
        self._peer = NodeConnection(now=now, rng=rng)
        self._peer.hello(session)
        self._exchange(now)

    def open(self, now: float) -> int:
        stream = self.connection.open_stream(HEAD, now=now)
        self._exchange(now)
        return stream

    def end(self, stream: int, now: float) -> None:
        """End a stream as its node does."""
        if not self.connection.closed:
            self._peer.reset(stream, Code.ENGINE_FAILED, "test")
            self._exchange(now)

    def _exchange(self, now: float) -> None:
        self._peer.receive(b"".join(self.connection.data_to_send()), now)
        self.connection.receive(b"".join(self._peer.data_to_send()), now)
        self._peer.events()
        self.connection.events()


class Fleet:
    """Nodes, and everything that can happen to them; ``now`` only grows."""

    def __init__(self, seed: int) -> None:
        self.registry = Registry()
        self.rng = Random(seed)
        self.now = 1000.0
        self.held: list[tuple[Engine, str, Tunnel, int]] = []
        self._numbers = count()

    @property
    def nodes(self) -> list[Node]:
        return list(self.registry.nodes())

    def report(self, name: str) -> EngineReport:
        rng = self.rng
        kind, slots = rng.choice(["vllm", "ollama"]), rng.choice([0, 1, 1, 2, 2, 16])
        models = [
            ModelReport(
                one,
                context_length=rng.choice([None, 4096]),
                capabilities=rng.choice([[], ["tools"], ["tools", "vision"]]),
            )
            for one in MODELS
            if rng.random() < 0.7
        ]
        paths = list(rng.choice([SHARED, ("/rerank",), (*SHARED, "/rerank")]))
        healthy = rng.random() < 0.85
        return EngineReport(
            name,
            kind,
            healthy,
            slots,
            models,
            paths=paths,
            elsewhere=rng.choice([0, 0, 0, 1]),
            paused=not healthy and rng.random() < 0.5,
        )

    def reports(self) -> list[EngineReport]:
        return [self.report(name) for name in ("one", "two") if self.rng.random() < 0.8]

    # ── what happens ──────────────────────────────────────────────────────────────────────────

    def come(self, id: str = "") -> None:
        id = id or f"node_{next(self._numbers)}"
        reports = self.reports()
        register = Register(1, "0", id, "test", reports, self.rng.choice(["", "eu", "us"]))
        node = Node(id, 1, register, cast(Any, object()), 0.0)
        self.registry.add(node)
        self.registry.report(node, reports)
        for _ in range(self.rng.choice([0, 1, 1, 2])):
            self.tunnel(node)

    def tunnel(self, node: Node) -> None:
        node.tunnels.append(cast(Any, Tunnel(node.session, self.now, self.rng)))
        self.registry.room(node)

    def happen(self, what: str) -> None:
        if what == "wait":
            self.now += self.rng.choice([0.1, 1.0, 6.0, 61.0, 130.0])
        elif what == "release":
            self.release()
        elif what == "come" or not self.nodes:
            self.come()
        else:
            getattr(self, what)(self.rng.choice(self.nodes))

    def come_again(self, node: Node) -> None:
        self.come(node.id)
        self.registry.remove(node)

    def leave(self, node: Node) -> None:
        self.registry.remove(node)

    def change(self, node: Node) -> None:
        self.registry.report(node, self.reports())

    def change_room(self, node: Node) -> None:
        reports = [
            msgspec.structs.replace(
                engine.report,
                slots=self.rng.randrange(3),
                elsewhere=self.rng.randrange(2),
                healthy=self.rng.random() < 0.7,
            )
            for engine in node.engines.values()
        ]
        self.registry.report(node, reports)

    def take(self, node: Node) -> None:
        """Take a slot as a request does: with a stream of a tunnel."""
        for engine in node.engines.values():
            tunnel = cast(Tunnel | None, node.tunnel(self.now))
            if engine.has_room and tunnel is not None:
                key = self.rng.choice("kl")
                self.registry.take(engine, key, self.now)
                self.held.append((engine, key, tunnel, tunnel.open(self.now)))

    def fill(self, node: Node) -> None:
        for _ in range(8):
            self.take(node)

    def release(self) -> None:
        for _ in range(min(3, len(self.held))):
            engine, key, tunnel, stream = self.held.pop(self.rng.randrange(len(self.held)))
            tunnel.end(stream, self.now)
            self.registry.release(engine, key)

    def lose_tunnel(self, node: Node) -> None:
        if node.tunnels:
            node.tunnels.pop().connection.close(Code.NONE, "test")
            node.refresh()

    def gain_tunnel(self, node: Node) -> None:
        self.tunnel(node)

    def silence(self, node: Node) -> None:
        for tunnel in node.tunnels:
            tunnel.connection.keepalive.suspected = True
        node.refresh()

    def pong(self, node: Node) -> None:
        for tunnel in node.tunnels:
            tunnel.connection.keepalive.suspected = False
        self.registry.room(node)

    def drain(self, node: Node) -> None:
        node.drained = not node.drained

    def go(self, node: Node) -> None:
        node.draining = True

    def fail(self, node: Node) -> None:
        for engine in node.engines.values():
            scope = self.rng.choice(MODELS), self.rng.choice(PATHS)
            for _ in range(FAILURES):
                engine.breaker(scope).record_failure(self.now)

    def probe(self, node: Node) -> None:
        for engine in node.engines.values():
            for breaker in engine.breakers.values():
                breaker.on_attempt(self.now)

    def forget_probe(self, node: Node) -> None:
        for engine in node.engines.values():
            for breaker in engine.breakers.values():
                breaker.release_probe()

    def succeed(self, node: Node) -> None:
        for engine in node.engines.values():
            engine.breakers.close(self.rng.choice(MODELS), self.rng.choice(PATHS))

    def rest(self, node: Node) -> None:
        for engine in node.engines.values():
            engine.slot_limit = SlotLimit()
            engine.slot_limit.slots = self.rng.randrange(2)
            engine.limit_slots()


EVENTS = [
    "come", "come_again", "leave", "change", "change_room", "take", "fill", "fill", "release",
    "release", "release", "lose_tunnel", "gain_tunnel", "silence", "pong", "drain", "drain", "go",
    "fail", "fail", "fail", "fail", "probe", "probe", "forget_probe", "succeed", "rest", "wait",
]  # fmt: skip
STEPS = 100


# ── what they should be: everything is looked at ──────────────────────────────────────────────


def serving(fleet: Fleet, model: str) -> list[Engine]:
    return [
        engine
        for node in fleet.nodes
        for engine in node.engines.values()
        if model in engine.models
        or (engine.kind == "ollama" and ":" not in model and f"{model}:latest" in engine.models)
    ]


def ejected_may_be(fleet: Fleet, model: str, path: str) -> tuple[list[Engine], int]:
    """The engines whose breakers keep requests away, the worst first, and how many stay out."""
    able = [
        one
        for one in serving(fleet, model)
        if one.healthy
        and one.report.slots
        and one.node.link is not None
        and not (one.node.draining or one.node.drained)
        and one.node.tunnels
        and (not path or path in one.paths)
    ]
    avoided = [one for one in able if not one.allows(model, fleet.now, path)]
    avoided.sort(key=lambda one: badness(one, model, path), reverse=True)
    return avoided, min(len(avoided), len(able) // 2)


def badness(engine: Engine, model: str, path: str) -> tuple[int, float]:
    return max(breaker.badness for breaker in engine.breakers.of(model, path))


def check(fleet: Fleet) -> None:
    for model in MODELS:
        expected = serving(fleet, model)
        candidates = fleet.registry.candidates(model)
        assert set(candidates) == set(expected)
        assert len(candidates) == len(expected)
        assert set(candidates.cards()) == {one.offers[model].card for one in expected}
        assert all(map(is_, candidates.offers, [one.offers[model] for one in candidates]))
        assert len(candidates.offers) == len(expected)
        may_serve = {one for one in expected if one.may_serve}
        assert candidates.slots == sum(one.slots for one in may_serve)
        for path in PATHS:
            check_path(fleet, model, path, candidates, may_serve)


def check_path(
    fleet: Fleet, model: str, path: str, candidates: Candidates[Engine], may_serve: set[Engine]
) -> None:
    avoided, most = ejected_may_be(fleet, model, path)
    ejected = candidates.ejected(fleet.now, path)
    assert len(ejected) == most
    assert ejected <= set(avoided)
    if most:  # of several that are as bad, any may stay out
        worst = [badness(one, model, path) for one in avoided]
        assert sorted((badness(one, model, path) for one in ejected), reverse=True) == worst[:most]
    engines, number, more = candidates.with_room(fleet.now, path)
    found = [*engines[:number], *more]
    assert len(set(found)) == len(found)
    real = {one for one in candidates if one.has_room and one not in ejected}
    assert {one for one in found if one.has_room and one not in ejected} == real
    if len(candidates) > UNSORTED:  # nobody else is looked at, but those whose tunnels are full
        assert all(
            one in real or not any(t.connection.free_streams for t in one.node.tunnels)
            for one in found
        )
    assert may_serve - ejected <= set(candidates.serving(fleet.now, path))
    check_choice(fleet, Requirements(model, "k", path=path), candidates, real)


def check_choice(
    fleet: Fleet, requirements: Requirements, candidates: Candidates[Engine], real: set[Engine]
) -> None:
    able = {
        one
        for one in real
        if one.has_room_for("k", fleet.now)
        and (not requirements.path or requirements.path in one.paths)
    }
    choice = pick(candidates, requirements, fleet.rng, state=RoutingState(), now=fleet.now)
    assert (choice is None) is (not able)
    assert choice is None or choice.engine in able
    assert can_pick(candidates, requirements, fleet.now) is bool(able)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([3, 12, 25]))
def test_after_any_history_candidates_are_what_recomputing_gives(seed: int, nodes: int) -> None:
    fleet = Fleet(seed)
    for _ in range(nodes):
        fleet.come()
    for _ in range(STEPS):
        few = len(fleet.nodes) < nodes
        fleet.happen("come" if few and fleet.rng.random() < 0.3 else fleet.rng.choice(EVENTS))
        check(fleet)
    for node in fleet.nodes:
        fleet.leave(node)
    check(fleet)
    assert not fleet.registry.candidates("a")
