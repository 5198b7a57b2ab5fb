"""The registry of connected nodes: what their engines serve, and how busy they are."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import monotonic

from fabric_server.dialects.endpoints import DEFAULT_PATHS
from fabric_server.nodes.circuit_breaker import CircuitBreaker
from fabric_server.nodes.departures import Departures
from fabric_server.nodes.held_slots import HeldSlots
from fabric_server.nodes.served_models import ServedModels, variants_of
from fabric_server.nodes.slot_limit import SlotLimit
from fabric_server.nodes.tunnel_choice import SHARED_STREAMS, idlest_tunnel
from protocol.aio.link import LinkDriver
from protocol.aio.server import ServerTunnel
from protocol.messages import EngineReport, Heartbeat, ModelReport, Register
from protocol.tunnel.keepalive import QUIET_SECONDS
from runtime.findings import Finding

MAX_BREAKERS = 256
"""Circuit breakers of one engine; the oldest is forgotten."""

KEPT_FREE = 16
"""Of so many slots of an engine that several keys use, one is kept from the key that has all the
others."""

Scope = tuple[str, str]
"""A model and a path of it; the path is empty for what concerns all of them."""


class Engine:
    """One engine of one node, with its slots: a candidate for routing."""

    __slots__ = (
        "active",
        "breakers",
        "elsewhere",
        "healthy",
        "held",
        "implausible_usage",
        "kind",
        "models",
        "name",
        "node",
        "paths",
        "report",
        "reported_slots",
        "slot_limit",
        "slots",
    )

    def __init__(self, node: Node, report: EngineReport) -> None:
        self.node = node
        self.name = report.name
        self.active = 0
        """Requests that hold a slot, until the node confirms that their work has stopped."""
        self.held = HeldSlots()
        """The same requests, by their keys."""
        self.breakers: dict[Scope, CircuitBreaker] = {}
        """Breakers of what failed lately."""
        self.implausible_usage = 0
        """Answers whose token counts were not plausible."""
        self.slot_limit: SlotLimit | None = None
        """Set while it gets fewer requests than it has slots for."""
        self.update(report)

    def update(self, report: EngineReport) -> None:
        self.kind = report.kind
        self.healthy = report.healthy
        self.report = report
        """The last report; what is looked at for each request has attributes of its own."""
        self.reported_slots = report.slots
        self.limit_slots()
        self.paths: frozenset[str] = frozenset(report.paths) or DEFAULT_PATHS
        """Paths that it supports, natively or translated on its node."""
        self.elsewhere = report.elsewhere
        """Slots held by requests that its node got from another server."""
        self.models: dict[str, ModelReport] = {model.name: model for model in report.models}

    @property
    def problem(self) -> str | None:
        return self.report.problem

    @property
    def paused(self) -> bool:
        """Return whether its node's owner keeps requests away."""
        return self.report.paused

    @property
    def back_at(self) -> float:
        """Return the earliest end of a pause, in Unix seconds; 0 when it is not known."""
        return self.report.back_at

    @property
    def has_room(self) -> bool:
        return self.healthy and self.active + self.elsewhere < self.slots and self.node.reachable

    def has_room_for(self, key_id: str, now: float) -> bool:
        """Return whether a request of this key may have a slot now."""
        return self.has_room and self.held.of(key_id) < self.most_per_key(now)

    def most_per_key(self, now: float) -> int:
        """Return how many slots one key may hold: of many that are shared, some are kept free.

        So whoever asks for little beside one that asks for all rarely has to wait.
        """
        kept = self.slots // KEPT_FREE
        return self.slots - kept if kept and self.held.is_shared(now) else self.slots

    @property
    def may_serve(self) -> bool:
        """Return whether it is worth waiting for."""
        return self.healthy and self.reported_slots > 0 and self.node.connected

    def limit_slots(self) -> None:
        """Set the slots that are used: those reported, or fewer while a limit is set."""
        limit, reported = self.slot_limit, self.reported_slots
        self.slots = reported if limit is None else min(limit.slots, reported)

    def breakers_of(self, model: str, path: str) -> Iterator[CircuitBreaker]:
        """Yield the breakers that a request for this model and path has to pass: two at most."""
        for scope in ((model, path), (model, "")) if path else ((model, ""),):
            if (breaker := self.breakers.get(scope)) is not None:
                yield breaker

    def allows(self, model: str, now: float, path: str = "") -> bool:
        """Return whether its breakers let a request through."""
        return not self.breakers or all(
            breaker.allows(now) for breaker in self.breakers_of(model, path)
        )

    def breaker(self, scope: Scope) -> CircuitBreaker:
        """Return the breaker of this scope; make it, where nothing failed so far."""
        breakers = self.breakers
        breaker = breakers.get(scope)
        if breaker is None:
            breaker = breakers[scope] = CircuitBreaker()
            if len(breakers) > MAX_BREAKERS:
                del breakers[next(iter(breakers))]
        return breaker

    def serves(self, model: str) -> bool:
        """Return whether it serves the model, busy or not; Ollama's ``:latest`` may be left out."""
        return model in self.models or (
            self.kind == "ollama" and ":" not in model and f"{model}:latest" in self.models
        )

    def __repr__(self) -> str:
        return f"<Engine {self.node.id}/{self.name} {self.active}/{self.slots}>"


class Node:
    """One registration of a node; a new registration, with a new epoch, is a new object."""

    def __init__(
        self, id: str, epoch: int, register: Register, link: LinkDriver, at: float
    ) -> None:
        self.id = id
        self.epoch = epoch
        self.name = register.name
        self.platform = register.platform
        self.region = register.region
        """Region that it reports; empty when it reports none."""
        self.release = register.release
        self.instance = register.instance
        """Id of the node's process; empty when it has none."""
        self.session = secrets.token_bytes(16)
        self.link: LinkDriver | None = link
        self.tunnels: list[ServerTunnel] = []
        """The one that is filled comes first."""
        self.engines: dict[str, Engine] = {}
        self.draining = False
        """The node has announced that it leaves."""
        self.drained = False
        """The operator wants it to get no new requests."""
        self.connected_at = at
        """Unix seconds."""
        self.heartbeat: Heartbeat | None = None

    @property
    def connected(self) -> bool:
        """Return whether it takes new streams: at once, or as soon as its tunnels are up."""
        return self.link is not None and not self.draining and not self.drained

    @property
    def reachable(self) -> bool:
        """Return whether a new stream can be opened now."""
        if self.link is not None and not self.draining and not self.drained:
            for tunnel in self.tunnels:  # a loop, because it runs for each candidate
                if tunnel.connection.usable:
                    return True
        return False

    def tunnel(self, now: float) -> ServerTunnel | None:
        """Return the usable tunnel for a new stream; None if there is none.

        Streams that share a tunnel share its writes, so one that carries a few already is filled
        first, if it has just received something.  Otherwise the one with the fewest is next, which
        is then looked at first.
        """
        for tunnel in self.tunnels:
            connection = tunnel.connection
            if (
                0 < connection.active < SHARED_STREAMS
                and connection.usable
                and connection.keepalive.last_received > now - QUIET_SECONDS
            ):
                return tunnel
        best = idlest_tunnel(self.tunnels)
        if best is not None and best is not self.tunnels[0]:
            self.tunnels.remove(best)
            self.tunnels.insert(0, best)
        return best

    @property
    def active(self) -> int:
        return sum(engine.active for engine in self.engines.values())

    @property
    def slots(self) -> int:
        return sum(engine.slots for engine in self.engines.values())

    @property
    def problem(self) -> str:
        """Return why no engine of it gets requests, as reported; empty when one does."""
        engines = self.engines.values()
        if any(engine.healthy and engine.reported_slots > 0 for engine in engines):
            return ""
        problems = dict.fromkeys(engine.problem or "an engine is down" for engine in engines)
        return "; ".join(problems)[:1024] or "no engine"

    def __repr__(self) -> str:
        leaving = self.draining or self.drained
        state = "gone" if self.link is None else "draining" if leaving else "connected"
        return f"<Node {self.id} epoch {self.epoch} {state} tunnels={len(self.tunnels)}>"


class Registry:
    """The connected nodes.  Epochs are compared by object identity: a node is one registration."""

    def __init__(
        self, known_models: Iterable[str] = (), *, clock: Callable[[], float] = monotonic
    ) -> None:
        self._nodes: dict[str, Node] = {}
        self._sessions: dict[bytes, Node] = {}
        self._candidates: dict[str, tuple[Engine, ...]] = {}
        self.held = HeldSlots()
        """The slots of all engines that requests hold, by their keys."""
        self._known = ServedModels(known_models)
        self._clock = clock
        self._began = clock()
        self.findings: dict[str, tuple[Finding, ...]] = {}
        """Problems of connected nodes, which ``NodeWatch`` finds, by the nodes' ids."""
        self.departures = Departures()
        """Models of nodes that left lately."""
        self.on_room: Callable[[Node], None] = lambda node: None
        """Called when an engine of this node may have room for one more request."""
        self.on_paused: Callable[[Node], None] = lambda node: None
        """Called when engines of this node were paused."""

    # ── queries ───────────────────────────────────────────────────────────────────────────────

    def nodes(self) -> Sequence[Node]:
        return tuple(self._nodes.values())

    def node(self, id: str) -> Node | None:
        return self._nodes.get(id)

    def problem(self, node: Node) -> str:
        """Return what is wrong with a node, by its own reports and by what was found here."""
        found = (str(one) for one in self.findings.get(node.id, ()))
        return "; ".join(filter(None, (*found, node.problem)))[:1024]

    def engine(self, node_id: str, name: str) -> Engine | None:
        node = self._nodes.get(node_id)
        return node.engines.get(name) if node is not None else None

    def by_session(self, session: bytes) -> Node | None:
        return self._sessions.get(session)

    def candidates(self, model: str) -> tuple[Engine, ...]:
        """Return the engines that serve ``model``, busy or not."""
        found = self._candidates.get(model)
        if found is None:
            found = tuple(
                engine
                for node in self._nodes.values()
                for engine in node.engines.values()
                if engine.serves(model)
            )
            if found:  # unknown names, which clients may invent, must not fill the cache
                self._candidates[model] = found
        return found

    def available(self, model: str, now: float, path: str = "") -> Sequence[Engine]:
        """Return the candidates that are not ejected: whose breakers let a request through.

        Not more than half of the engines that could serve the model at this path are ever ejected,
        so never its only one; the worst of them stay out.
        """
        candidates = self.candidates(model)
        for engine in candidates:
            if engine.breakers and not engine.allows(model, now, path):
                ejected = self._ejected(model, now, path)
                return [engine for engine in candidates if engine not in ejected]
        return candidates

    def _ejected(self, model: str, now: float, path: str) -> Sequence[Engine]:
        able = [
            engine
            for engine in self.candidates(model)
            if engine.may_serve and engine.node.tunnels and (not path or path in engine.paths)
        ]
        avoided = [engine for engine in able if not engine.allows(model, now, path)]

        def badness(engine: Engine) -> tuple[int, float]:
            return max(breaker.badness for breaker in engine.breakers_of(model, path))

        avoided.sort(key=badness, reverse=True)
        return avoided[: len(able) // 2]

    def is_ejected(self, engine: Engine, model: str, now: float, path: str = "") -> bool:
        """Return whether ``available`` leaves the engine out now."""
        return not engine.allows(model, now, path) and engine in self._ejected(model, now, path)

    def ejections(self, engine: Engine, now: float) -> Iterator[tuple[Scope, CircuitBreaker]]:
        """Yield what the engine is ejected for, with the breaker that did it."""
        for (model, path), breaker in engine.breakers.items():
            if not breaker.allows(now) and engine in self._ejected(model, now, path):
                yield (model, path), breaker

    def is_alone(self, engine: Engine, model: str, now: float, path: str = "") -> bool:
        """Return whether no other engine could take this model's requests at this path now."""
        return not any(
            other.may_serve and other.slots and (not path or path in other.paths)
            for other in self.available(model, now, path)
            if other is not engine
        )

    def is_known(self, model: str) -> bool:
        """Return whether any node has served the model, even if none does now."""
        return model in self._known or f"{model}:latest" in self._known

    def gone_for(self, model: str) -> float | None:
        """Return for how many seconds the last node that left with the model has been away.

        When none has left lately, that is the time since the server's start, after which nodes are
        on their way; or None if a node with the model is here.
        """
        now = self._clock()
        at = self.departures.last(model, now)
        if at is None and not self.candidates(model):
            at = self._began
        return None if at is None else now - at

    def departed_models(self) -> set[str]:
        """Return the models of nodes that left lately, whether others serve them or not."""
        return self.departures.models(self._clock())

    def models(self) -> dict[str, list[Engine]]:
        """Return the engines of each model that is served now."""
        models: dict[str, list[Engine]] = {}
        for node in self._nodes.values():
            for engine in node.engines.values():
                for name in engine.models:
                    models.setdefault(name, []).append(engine)
        return models

    # ── changes ───────────────────────────────────────────────────────────────────────────────

    def add(self, node: Node) -> Node | None:
        """Add a registration.  Returns the older one of the same node that it supersedes."""
        older = self._nodes.pop(node.id, None)
        if older is not None:
            self._sessions.pop(older.session, None)
        self._nodes[node.id] = node
        self._sessions[node.session] = node
        self._candidates.clear()
        self.departures.forget(node.id)
        return older

    def remove(self, node: Node) -> bool:
        """Remove a registration.  Returns False when a newer one has taken its place already."""
        self._sessions.pop(node.session, None)
        node.link = None
        if self._nodes.get(node.id) is not node:
            return False
        del self._nodes[node.id]
        self._candidates.clear()
        names = (name for engine in node.engines.values() for name in engine.models)
        self.departures.add(node.id, names, self._clock())
        return True

    def report(self, node: Node, reports: Sequence[EngineReport]) -> list[str]:
        """Replace a node's engines by those reported.  Returns the models to be stored: new ones,
        or those with new weights, as many as a node may have."""
        before = [(engine, engine.kind, engine.models.keys()) for engine in node.engines.values()]
        kept: dict[str, Engine] = {}
        paused = False
        for report in reports:
            engine = node.engines.get(report.name)
            if engine is None:
                engine = Engine(node, report)
                paused |= engine.paused
            else:
                paused |= report.paused and not engine.paused
                engine.update(report)
            kept[report.name] = engine
        node.engines = kept
        after = [(engine, engine.kind, engine.models.keys()) for engine in kept.values()]
        if before != after:  # mostly only health or slots have changed
            self._candidates.clear()
        variants = variants_of(reports)
        new = self._known.add(node.id, variants, self._clock(), variants)
        self.room(node)
        if paused:
            self.on_paused(node)
        return new

    def room(self, node: Node) -> None:
        """Announce room: a tunnel came up, or slots were added."""
        self.on_room(node)

    def take(self, engine: Engine, key_id: str, now: float) -> None:
        """Give a slot to a request of this key."""
        engine.active += 1
        engine.held.take(key_id, now)
        self.held.take(key_id, now)

    def release(self, engine: Engine, key_id: str) -> None:
        """Take back the slot of a request of this key."""
        engine.active -= 1
        engine.held.give_back(key_id)
        self.held.give_back(key_id)
        self.on_room(engine.node)  # not only the engine: its tunnels may have been full of streams
