"""Which nodes are here now, what their engines serve, and how busy they are."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from fabric_server.dialects.endpoints import UNTOLD
from fabric_server.nodes.circuit_breaker import CircuitBreaker
from protocol.messages import EngineReport, Heartbeat, ModelReport, Register

if TYPE_CHECKING:
    from protocol.aio.link import LinkDriver
    from protocol.aio.server import ServerTunnel

MAX_SERVED = 10_000
"""Different models that one registration may report in its life."""


class Engine:
    """One engine of one node, with its slots: what routing chooses among."""

    __slots__ = (
        "active",
        "breakers",
        "elsewhere",
        "healthy",
        "kind",
        "models",
        "name",
        "node",
        "paths",
        "problem",
        "slots",
    )

    def __init__(self, node: Node, report: EngineReport) -> None:
        self.node = node
        self.name = report.name
        self.active = 0
        """Requests that hold a slot, until the node says that their work has stopped."""
        self.breakers: dict[str, CircuitBreaker] = {}
        """By model, of those that have failed lately."""
        self.update(report)

    def update(self, report: EngineReport) -> None:
        self.kind = report.kind
        self.healthy = report.healthy
        self.problem = report.problem
        self.slots = report.slots
        self.paths: frozenset[str] = frozenset(report.paths) or UNTOLD
        """What it can be asked, by itself or translated on its node."""
        self.elsewhere = report.elsewhere
        """Slots that its node's requests of another server hold."""
        self.models: dict[str, ModelReport] = {model.name: model for model in report.models}

    @property
    def has_room(self) -> bool:
        return self.healthy and self.active + self.elsewhere < self.slots and self.node.reachable

    def allows(self, model: str, now: float) -> bool:
        """Whether it has not failed too often for this model lately."""
        breaker = self.breakers.get(model)
        return breaker is None or breaker.allows(now)

    def serves(self, model: str) -> bool:
        """Busy or not.  Ollama's ``:latest`` may be left out."""
        return model in self.models or (
            self.kind == "ollama" and ":" not in model and f"{model}:latest" in self.models
        )

    def __repr__(self) -> str:
        return f"<Engine {self.node.id}/{self.name} {self.active}/{self.slots}>"


class Node:
    """One registration of a node: a new one, with a new epoch, is a new object."""

    def __init__(
        self, id: str, epoch: int, register: Register, link: LinkDriver, at: float
    ) -> None:
        self.id = id
        self.epoch = epoch
        self.name = register.name
        self.platform = register.platform
        self.region = register.region
        """Where it says it is; empty when it does not."""
        self.release = register.release
        self.session = secrets.token_bytes(16)
        self.link: LinkDriver | None = link
        self.tunnels: list[ServerTunnel] = []
        self.engines: dict[str, Engine] = {}
        self.served: set[str] = set()
        """Models it has reported so far."""
        self.draining = False
        """It has said that it leaves."""
        self.drained = False
        """The operator wants it to be given nothing new."""
        self.connected_at = at
        """Unix seconds."""
        self.heartbeat: Heartbeat | None = None

    @property
    def connected(self) -> bool:
        """Whether it will take streams: if not this very moment, then when its tunnels stand."""
        return self.link is not None and not self.draining and not self.drained

    @property
    def reachable(self) -> bool:
        """Whether a new stream could be opened now."""
        if self.link is not None and not self.draining and not self.drained:
            for tunnel in self.tunnels:  # a loop, for it is asked for each candidate
                if tunnel.connection.usable:
                    return True
        return False

    def tunnel(self) -> ServerTunnel | None:
        """The usable tunnel with the fewest streams; of several, the one last heard from, which is
        the least likely to be dead without knowing it."""
        best, fewest, heard = None, 1 << 30, 0.0
        for tunnel in self.tunnels:
            connection = tunnel.connection
            active = connection.active
            if active > fewest or not connection.usable:
                continue
            if active < fewest or connection.keepalive.last_received > heard:
                best, fewest, heard = tunnel, active, connection.keepalive.last_received
        return best

    @property
    def active(self) -> int:
        return sum(engine.active for engine in self.engines.values())

    @property
    def slots(self) -> int:
        return sum(engine.slots for engine in self.engines.values())

    @property
    def problem(self) -> str:
        """Why none of its engines is asked, as it says itself; empty when one is."""
        engines = self.engines.values()
        if any(engine.healthy and engine.slots > 0 for engine in engines):
            return ""
        said = dict.fromkeys(engine.problem or "an engine is down" for engine in engines)
        return "; ".join(said)[:1024] or "no engine"

    def __repr__(self) -> str:
        leaves = self.draining or self.drained
        state = "gone" if self.link is None else "draining" if leaves else "here"
        return f"<Node {self.id} epoch {self.epoch} {state} tunnels={len(self.tunnels)}>"


class Registry:
    """The one owner of who is here.  Every change compares epochs by comparing the object."""

    def __init__(self, known_models: Iterable[str] = ()) -> None:
        self._nodes: dict[str, Node] = {}
        self._sessions: dict[bytes, Node] = {}
        self._candidates: dict[str, tuple[Engine, ...]] = {}
        self._known: dict[str, None] = dict.fromkeys(known_models)
        self.on_room: Callable[[Node], None] = lambda node: None
        """Called when an engine of this node may be able to take one request more."""

    # ── questions ─────────────────────────────────────────────────────────────────────────────

    def nodes(self) -> Sequence[Node]:
        return tuple(self._nodes.values())

    def node(self, id: str) -> Node | None:
        return self._nodes.get(id)

    def engine(self, node_id: str, name: str) -> Engine | None:
        node = self._nodes.get(node_id)
        return node.engines.get(name) if node is not None else None

    def by_session(self, session: bytes) -> Node | None:
        return self._sessions.get(session)

    def candidates(self, model: str) -> tuple[Engine, ...]:
        """Engines that serve ``model``, busy or not."""
        found = self._candidates.get(model)
        if found is None:
            found = tuple(
                engine
                for node in self._nodes.values()
                for engine in node.engines.values()
                if engine.serves(model)
            )
            if found:  # names that nobody serves are users' inventions: not worth keeping
                self._candidates[model] = found
        return found

    def able(self, model: str, now: float) -> Sequence[Engine]:
        """Candidates without those that have failed too often for it lately."""
        candidates = self.candidates(model)
        for engine in candidates:
            if engine.breakers and not engine.allows(model, now):
                return [engine for engine in candidates if engine.allows(model, now)]
        return candidates

    def is_known(self, model: str) -> bool:
        """Whether some node served it before, though perhaps none does now."""
        return model in self._known or f"{model}:latest" in self._known

    def models(self) -> dict[str, list[Engine]]:
        """What is served now, by name."""
        models: dict[str, list[Engine]] = {}
        for node in self._nodes.values():
            for engine in node.engines.values():
                for name in engine.models:
                    models.setdefault(name, []).append(engine)
        return models

    # ── changes ───────────────────────────────────────────────────────────────────────────────

    def add(self, node: Node) -> Node | None:
        """A registration begins.  Returns the older one of the same node that it supersedes."""
        older = self._nodes.pop(node.id, None)
        if older is not None:
            self._sessions.pop(older.session, None)
        self._nodes[node.id] = node
        self._sessions[node.session] = node
        self._candidates.clear()
        return older

    def remove(self, node: Node) -> bool:
        """A registration ends.  False when a newer one has taken its place already."""
        self._sessions.pop(node.session, None)
        node.link = None
        if self._nodes.get(node.id) is not node:
            return False
        del self._nodes[node.id]
        self._candidates.clear()
        return True

    def report(self, node: Node, reports: Sequence[EngineReport]) -> set[str]:
        """A node's whole present list of engines.  Returns the models it had not before."""
        kept: dict[str, Engine] = {}
        for report in reports:
            engine = node.engines.get(report.name)
            if engine is None:
                engine = Engine(node, report)
            else:
                engine.update(report)
            kept[report.name] = engine
        node.engines = kept
        self._candidates.clear()
        new = {name for engine in kept.values() for name in engine.models} - node.served
        if len(node.served) + len(new) > MAX_SERVED:
            new = set()  # a node that invents names must not fill our memory or the store
        node.served |= new
        self._known.update(dict.fromkeys(new))
        self.room(node)
        return new

    def room(self, node: Node) -> None:
        """A tunnel came up, or slots were added."""
        self.on_room(node)

    def release(self, engine: Engine) -> None:
        """A request has given its slot back."""
        engine.active -= 1
        self.on_room(engine.node)  # not only the engine: its tunnels may have been full of streams
