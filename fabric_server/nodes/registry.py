"""The registry of connected nodes: what their engines serve, and how busy they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from time import monotonic

from fabric_server.nodes.candidates import NOBODY, Candidates
from fabric_server.nodes.circuit_breaker import CircuitBreaker, Scope
from fabric_server.nodes.departures import Departures
from fabric_server.nodes.held_slots import HeldSlots
from fabric_server.nodes.node import Engine, Node
from fabric_server.nodes.offers import offers_of
from fabric_server.nodes.served_models import ServedModels, variants_of
from fabric_server.nodes.standing import CUT_OFF, ROOM
from protocol.messages import EngineReport
from runtime.findings import Finding


class Registry:
    """The connected nodes.  Epochs are compared by object identity: a node is one registration."""

    def __init__(
        self, known_models: Iterable[str] = (), *, clock: Callable[[], float] = monotonic
    ) -> None:
        self._nodes: dict[str, Node] = {}
        self._sessions: dict[bytes, Node] = {}
        self._candidates: dict[str, Candidates[Engine]] = {}
        """By the names of models; none is empty."""
        self.held = HeldSlots()
        """The slots of all engines that requests hold, by their keys."""
        self._known = ServedModels(known_models)
        self._clock = clock
        self._began = clock()
        self.findings: dict[str, tuple[Finding, ...]] = {}
        """Problems of connected nodes, which ``NodeWatch`` finds, by the nodes' ids."""
        self.departures = Departures()
        """Models of nodes that left lately."""
        self.homes = 0
        """How many of the nodes stand for engines at other servers."""
        self.on_load: Callable[[Engine], None] | None = None
        """Called when a request has taken a slot of an engine, or given it back."""
        self.on_room: Callable[[Node], None] = lambda node: None
        """Called when an engine of this node may have room for one more request."""
        self.on_paused: Callable[[Node], None] = lambda node: None
        """Called when engines of this node were paused."""

    # ── queries ───────────────────────────────────────────────────────────────────────────────

    def nodes(self) -> Sequence[Node]:
        """Return the nodes that are connected to this server."""
        return tuple(node for node in self._nodes.values() if not node.remote)

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

    def candidates(self, model: str) -> Candidates[Engine]:
        """Return the engines that serve ``model``, busy or not."""
        return self._candidates.get(model, NOBODY)

    def available(self, model: str, now: float, path: str = "") -> Sequence[Engine]:
        """Return the candidates that are not ejected: see ``nodes.ejection``."""
        found = self._candidates.get(model)
        if found is None:
            return ()
        ejected = found.ejected(now, path)
        return [engine for engine in found if engine not in ejected] if ejected else found

    def is_ejected(self, engine: Engine, model: str, now: float, path: str = "") -> bool:
        """Return whether the engine gets none of these requests now, because it fails."""
        if engine.allows(model, now, path):
            return False
        found = self._candidates.get(model)
        return found is not None and engine in found.ejected(now, path)

    def ejections(self, engine: Engine, now: float) -> Iterator[tuple[Scope, CircuitBreaker]]:
        """Yield what the engine is ejected for, with the breaker that did it."""
        for (model, path), breaker in engine.breakers.items():
            if not breaker.allows(now) and self.is_ejected(engine, model, now, path):
                yield (model, path), breaker

    def is_alone(self, engine: Engine, model: str, now: float, path: str = "") -> bool:
        """Return whether no other engine could take this model's requests at this path now."""
        found = self._candidates.get(model)
        return found is None or not any(
            other.may_serve and other.slots and (not path or path in other.paths)
            for other in found.serving(now, path, last=CUT_OFF)
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

    def models(self, *, here: bool = False) -> dict[str, list[Engine]]:
        """Return the engines of each model that is served now; ``here``: by this server's nodes."""
        models: dict[str, list[Engine]] = {}
        for node in self.nodes() if here else self._nodes.values():
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
            self._unlist_all(older)
        self._nodes[node.id] = node
        if node.remote:
            self.homes += 1
        else:
            self._sessions[node.session] = node
        for engine in node.engines.values():
            self._list(engine, engine.names())
        self.departures.forget(node.id)
        return older

    def remove(self, node: Node) -> bool:
        """Remove a registration.  Returns False when a newer one has taken its place already."""
        self._sessions.pop(node.session, None)
        node.link = None
        if self._nodes.get(node.id) is not node:
            return False
        del self._nodes[node.id]
        self.homes -= node.remote
        self._unlist_all(node)
        names = (name for engine in node.engines.values() for name in engine.models)
        self.departures.add(node.id, names, self._clock())
        return True

    def report(self, node: Node, reports: Sequence[EngineReport]) -> list[str]:
        """Replace a node's engines by those reported.  Returns the models to be stored: new ones,
        or those with new weights, as many as a node may have."""
        here = self._nodes.get(node.id) is node
        gone, kept, paused = dict(node.engines), dict[str, Engine](), False
        for report in {report.name: report for report in reports}.values():
            engine = gone.pop(report.name, None)
            if engine is None:
                engine = Engine(node, report, self._on_breakers)
                paused |= engine.paused
                if here:
                    self._list(engine, engine.names())
            elif engine.report != report:
                paused |= report.paused and not engine.paused
                self._update(engine, report, here)
            kept[report.name] = engine
        node.engines = kept
        for engine in gone.values():
            if here:
                self._unlist(engine, engine.names())
        variants = variants_of(reports)
        new = self._known.add(node.id, variants, self._clock(), variants)
        self.room(node)
        if paused:
            self.on_paused(node)
        return new

    def _update(self, engine: Engine, report: EngineReport, here: bool) -> None:
        """Take in another report of an engine."""
        last, before = engine.report, engine.offers
        if report.models == last.models and report.kind == last.kind:
            engine.update(report, before)
            return
        offers = offers_of(report, before)
        if here:
            self._unlist(engine, before.keys() - offers.keys())
        engine.update(report, offers)
        if here:
            self._list(engine, offers.keys() - before.keys())

    def _list(self, engine: Engine, names: Iterable[str]) -> None:
        """Make an engine a candidate for models of these names."""
        for name in names:
            found = self._candidates.get(name)
            if found is None:
                found = self._candidates[name] = Candidates(name)
            found.add(engine)

    def _unlist(self, engine: Engine, names: Iterable[str]) -> None:
        for name in names:
            self._candidates[name].remove(engine)
            if not self._candidates[name]:
                del self._candidates[name]

    def _unlist_all(self, node: Node) -> None:
        for engine in node.engines.values():
            self._unlist(engine, engine.names())

    def _on_breakers(self, engine: Engine, model: str) -> None:
        found = self._candidates.get(model)
        if found is not None:
            found.on_breakers(engine)

    def room(self, node: Node) -> None:
        """Announce room: a tunnel came up, or slots were added."""
        node.refresh()
        self.on_room(node)

    def take(self, engine: Engine, key_id: str, now: float) -> None:
        """Give a slot to a request of this key."""
        engine.take(key_id, now)
        self.held.take(key_id, now)
        if self.on_load is not None:
            self.on_load(engine)

    def release(self, engine: Engine, key_id: str) -> None:
        """Take back the slot of a request of this key."""
        engine.give_back(key_id)
        self.held.give_back(key_id)
        node = engine.node
        for one in node.engines.values():  # not only this one: its tunnels may have been full
            if one.standing.segment != ROOM:
                one.refresh()
        if self.on_load is not None:
            self.on_load(engine)
        self.on_room(node)
