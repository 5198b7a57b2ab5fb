"""The models of nodes that have left lately, which perhaps no node serves now.

A node may invent names; what is kept is bounded for each node, in all, and in time.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

KEPT_SECONDS = 3600.0
"""Time after which a node that does not come back is forgotten."""
MAX_NODES = 1_000
"""Nodes that are kept: those that left last."""
MAX_NAMES_PER_NODE = 512
MAX_NAMES = 20_000
"""Names of all nodes together; the node that left first is forgotten."""


class _Departure(NamedTuple):
    at: float
    names: frozenset[str]


class Departures:
    """The nodes that have left, the first one first.  ``now`` is in monotonic seconds."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Departure] = {}
        self._by_name: dict[str, dict[str, float]] = {}
        """The nodes that had a model, and when they left, the last one last."""
        self._names = 0

    def add(self, node_id: str, names: Iterable[str], now: float) -> None:
        """Add a node that left, with the models that it served."""
        self.forget(node_id)
        kept = frozenset(islice(names, MAX_NAMES_PER_NODE))
        self._nodes[node_id] = _Departure(now, kept)
        for name in kept:
            self._by_name.setdefault(name, {})[node_id] = now
        self._names += len(kept)
        while len(self._nodes) > MAX_NODES or self._names > MAX_NAMES:
            self.forget(next(iter(self._nodes)))
        self._expire(now)

    def forget(self, node_id: str) -> None:
        """Forget a node, because it is back or revoked."""
        departure = self._nodes.pop(node_id, None)
        if departure is None:
            return
        self._names -= len(departure.names)
        for name in departure.names:
            nodes = self._by_name[name]
            del nodes[node_id]
            if not nodes:
                del self._by_name[name]

    def models(self, now: float) -> set[str]:
        self._expire(now)
        return set(self._by_name)

    def last(self, model: str, now: float) -> float | None:
        """Return when the last node with the model left; Ollama's ``:latest`` may be left out."""
        self._expire(now)
        found = (self._by_name.get(name) for name in (model, f"{model}:latest"))
        return max((next(reversed(nodes.values())) for nodes in found if nodes), default=None)

    def _expire(self, now: float) -> None:
        while self._nodes:
            node_id, departure = next(iter(self._nodes.items()))
            if now - departure.at < KEPT_SECONDS:
                break
            self.forget(node_id)
