"""The names of models that nodes have served: known, though perhaps no node serves them now.

A node may invent names, and register anew as often as its budget allows: what is kept of each node
is bounded in number and over time, whatever its registrations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from protocol.token_bucket import TokenBucket

MAX_SERVED = 2_000
"""Names that are kept of one node: those that it reported last."""
NAMES_PER_HOUR = 2_000
"""New names of one node that are kept in an hour; as many at once, at first."""


class ServedModels:
    """The names by node, and how many nodes have each.  Times are event-loop seconds."""

    def __init__(self, stored: Iterable[str] = ()) -> None:
        """``stored`` are those of the store, from before this process."""
        self._stored = frozenset(stored)
        self._by_node: dict[str, dict[str, None]] = {}
        self._budgets: dict[str, TokenBucket] = {}
        self._nodes_of: Counter[str] = Counter()

    def __contains__(self, model: object) -> bool:
        return model in self._nodes_of or model in self._stored

    def add(self, node_id: str, names: Iterable[str], now: float) -> list[str]:
        """Add what a node serves; return the names to store: new ones, as far as it may have."""
        known = self._by_node.setdefault(node_id, {})
        new = sorted({name for name in names if name not in known})
        if not new:
            return new
        budget = self._budgets.get(node_id)
        if budget is None:
            budget = TokenBucket(NAMES_PER_HOUR, NAMES_PER_HOUR / 3600.0, now)
            self._budgets[node_id] = budget
        del new[max(0, int(budget.level(now))) :]
        budget.take(len(new), now)
        for name in new:
            known[name] = None
            self._nodes_of[name] += 1
        while len(known) > MAX_SERVED:
            oldest = next(iter(known))
            del known[oldest]
            self._nodes_of[oldest] -= 1
            if not self._nodes_of[oldest]:
                del self._nodes_of[oldest]
        return new
