"""The digest that a server tells the others of its engines: those that serve the same are a row.

Whatever has changed is told at most five times a second; at once when a row has no free slot any
more, or has one again; all of it every ten seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from fabric_server.mesh.forwarded import NO_FIGURES
from fabric_server.nodes.node import Engine
from fabric_server.nodes.registry import Registry
from protocol import messages
from protocol.aio.node import NodeStream
from protocol.errors import Code
from protocol.mesh import (
    MAX_MESSAGE,
    MAX_ROWS,
    MAX_SLOTS,
    DigestUpdate,
    ForwardedResponse,
    HomeEngine,
    Load,
    QueueLoad,
    pack,
)
from protocol.messages import EngineReport

TICK_SECONDS = 0.2
"""Interval at which changes are told."""
WHOLE_SECONDS = 10.0
"""Interval at which all of it is told."""
ALIVE_SECONDS = 1.0
"""Longest time in which nothing is told."""
MAX_ROWS_BYTES = MAX_MESSAGE * 3 // 4
"""Bytes of all rows: the rest of a message is for the load and the queues."""

_Key = tuple[str, str, frozenset[str], bytes, bool, bool]


def _most_bytes(key: _Key) -> int:
    """Return how long a row with this key is at most in a message."""
    region, kind, paths, models, _, _ = key
    texts = (region, kind, *paths)
    return len(models) + 4 * sum(map(len, texts)) + 8 * len(texts) + 256


class _Row:
    """Engines of one region that serve the same."""

    __slots__ = ("back_at", "busy", "key", "name", "nodes", "report", "slots")

    def __init__(self, name: str, key: _Key, report: EngineReport) -> None:
        self.name = name
        self.key = key
        self.report = report
        self.nodes: set[str] = set()
        self.slots = self.busy = 0
        self.back_at = 0.0

    def add(self, engine: Engine, *, reachable: bool) -> None:
        self.nodes.add(engine.node.id)
        self.back_at = min(filter(None, (self.back_at, engine.back_at)), default=0.0)
        if not engine.may_serve:
            return
        self.slots += engine.slots
        taken = engine.active + engine.elsewhere
        self.busy += taken if reachable else max(taken, engine.slots)

    @property
    def shape(self) -> tuple[object, ...]:
        """Return all of it but the load."""
        return self.name, self.key, self.slots, len(self.nodes), self.back_at

    def told(self, held: int) -> HomeEngine:
        """Return the row for a server whose requests hold some of the slots."""
        report, (region, kind, paths, _, healthy, paused) = self.report, self.key
        return HomeEngine(
            self.name,
            kind,
            healthy,
            slots=min(self.slots, MAX_SLOTS),
            models=report.models,
            paths=sorted(paths),
            elsewhere=max(0, self.busy - held),
            paused=paused,
            back_at=self.back_at,
            region=region,
            nodes=len(self.nodes),
        )


class Digest:
    """The rows as of now, and the queues of this server."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._names: dict[_Key, str] = {}
        """Rows keep their names: what others have measured goes by them."""
        self._count = 0
        self._models: dict[Engine, tuple[EngineReport, bytes]] = {}
        self.rows: dict[str, _Row] = {}
        self.row_of: dict[Engine, str] = {}
        self._taken: dict[Engine, int] = {}
        """The slots that count as taken in the rows, of engines that requests can be sent to."""
        self.nodes = 0
        """Nodes that requests can be sent to."""
        self.left_out = 0
        """Engines that are in no row, because there are as many rows as can be told."""
        self.version = 0
        """Grows with each change of anything but load."""

    def refresh(self) -> None:
        """Look at all engines again."""
        rows, row_of, models = dict[_Key, _Row](), dict[Engine, str](), self._models
        taken = dict[Engine, int]()
        self._models = {}
        self.nodes = self.left_out = size = 0
        for node in self._registry.nodes():
            reachable = node.reachable
            self.nodes += reachable
            for engine in node.engines.values():
                known = models.get(engine)
                if known is None or known[0] is not engine.report:
                    known = engine.report, messages.encode(engine.report.models)
                self._models[engine] = known
                key = (
                    node.region,
                    engine.kind,
                    engine.paths,
                    known[1],
                    engine.may_serve,
                    engine.paused,
                )
                row = rows.get(key)
                if row is None:
                    more = size + _most_bytes(key)
                    if len(rows) == MAX_ROWS or more > MAX_ROWS_BYTES:
                        self.left_out += 1
                        continue
                    size = more
                    row = rows[key] = _Row(self._name(key), key, engine.report)
                row_of[engine] = row.name
                row.add(engine, reachable=reachable)
                if reachable and engine.may_serve:
                    taken[engine] = engine.active + engine.elsewhere
        before = [row.shape for row in self.rows.values()]
        self.rows = {row.name: row for row in rows.values()}
        self.row_of, self._taken = row_of, taken
        if [row.shape for row in self.rows.values()] != before:
            self.version += 1
            self._names = {row.key: row.name for row in self.rows.values()}

    def count(self, engine: Engine) -> bool:
        """Count the load of one engine again, which has changed.

        Returns whether its row has no free slot any more, or has one again.
        """
        before = self._taken.get(engine)
        if before is None:  # the engine is another server's, or counts as full until ``refresh``
            return False
        row = self.rows[self.row_of[engine]]
        taken = self._taken[engine] = engine.active + engine.elsewhere
        was_full = row.busy >= row.slots
        row.busy += taken - before
        return was_full != (row.busy >= row.slots)

    def _name(self, key: _Key) -> str:
        name = self._names.get(key)
        if name is None:
            self._count += 1
            name = f"row-{self._count}"
        return name


class DigestSender:
    """Tells one other server; the handler of the stream that it has opened for this."""

    def __init__(self, stream: NodeStream, held: Counter[str]) -> None:
        """``held`` has the slots that the other server's requests hold, by the names of the rows
        to which it counts them."""
        self.stream = stream
        self._held = held
        self._version = -1
        self._load: dict[str, int] = {}
        self._queues: list[QueueLoad] = []
        self._nodes = 0
        self._whole_at = self._sent_at = float("-inf")
        self._writable = True
        self.ended = False
        stream.send_head(ForwardedResponse(200, []))

    def send(self, digest: Digest, waiting: Mapping[str, tuple[int, float]], now: float) -> None:
        """Tell what has changed; ``waiting`` has the length of each queue, and the seconds of an
        answer, by model."""
        if self.ended or not self._writable:
            return
        held = self._held
        load = {name: max(0, row.busy - held[name]) for name, row in digest.rows.items()}
        queues = [QueueLoad(model, *one) for model, one in list(waiting.items())[:MAX_ROWS]]
        if digest.version != self._version or now - self._whole_at >= WHOLE_SECONDS:
            rows = [row.told(held[name]) for name, row in digest.rows.items()]
            update = DigestUpdate(rows, queues=queues, nodes=digest.nodes)
            self._version, self._whole_at = digest.version, now
        else:
            changed = [
                Load(name, busy) for name, busy in load.items() if self._load.get(name) != busy
            ]
            same = not changed and queues == self._queues and digest.nodes == self._nodes
            if same and now - self._sent_at < ALIVE_SECONDS:
                return
            update = DigestUpdate(load=changed, queues=queues, nodes=digest.nodes)
        self._load, self._queues, self._nodes, self._sent_at = load, queues, digest.nodes, now
        self._writable = self.stream.send(pack(update))

    def repeat(self) -> None:
        """Tell the whole load next time: the other server was mistaken."""
        self._load = {}

    def stop(self) -> None:
        self.ended = True
        self.stream.reset(Code.SUPERSEDED, "another stream has been opened for this")

    def finish(self) -> None:
        """Tell nothing more, because this server leaves."""
        self.ended = True
        self.stream.end(NO_FIGURES)

    # ── events of the stream ──────────────────────────────────────────────────────────────────

    def on_data(self, data: bytes, ended: bool) -> None:
        self.stream.consumed(len(data))

    def on_writable(self) -> None:
        self._writable = True

    def on_reset(self, code: int, reason: str) -> None:
        self.ended = True
        self.stream.confirm_reset()
