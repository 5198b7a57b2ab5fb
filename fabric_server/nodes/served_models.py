"""The names of models that nodes have served: known, though perhaps no node serves them now.

A node may invent names, and register anew as often as its budget allows: what is kept of each node
is bounded in number and over time, whatever its registrations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from protocol.messages import EngineReport, ModelReport
from protocol.token_bucket import TokenBucket

MAX_SERVED = 2_000
"""Names that are kept of one node: those that it reported last."""
NAMES_PER_HOUR = 2_000
"""New names of one node that are kept in an hour; as many at once, at first."""


Variants = Mapping[str, tuple[str, str]]
"""Quantisation and digest by the model's name."""
NO_VARIANTS: Variants = MappingProxyType({})
_UNKNOWN = ("", "")


def variants_of(reports: Iterable[EngineReport]) -> dict[str, tuple[str, str]]:
    """Return what a node's engines tell of the weights of each model that they serve."""
    found: dict[str, list[ModelReport]] = {}
    for report in reports:
        for model in report.models:
            found.setdefault(model.name, []).append(model)
    return {
        name: (
            ", ".join(dict.fromkeys(one.quantization for one in models if one.quantization)),
            ", ".join(dict.fromkeys(one.digest for one in models if one.digest)),
        )
        for name, models in found.items()
    }


class ServedModels:
    """The names by node, and how many nodes have each.  Times are event-loop seconds."""

    def __init__(self, stored: Iterable[str] = ()) -> None:
        """``stored`` are those of the store, from before this process."""
        self._stored = frozenset(stored)
        self._by_node: dict[str, dict[str, tuple[str, str]]] = {}
        self._budgets: dict[str, TokenBucket] = {}
        self._nodes_of: Counter[str] = Counter()

    def __contains__(self, model: object) -> bool:
        return model in self._nodes_of or model in self._stored

    def add(
        self, node_id: str, names: Iterable[str], now: float, variants: Variants = NO_VARIANTS
    ) -> list[str]:
        """Add what a node serves; return the names to store: those that are new or have other
        weights than before, as far as the node may have them."""
        known = self._by_node.setdefault(node_id, {})
        new = sorted({name for name in names if known.get(name) != variants.get(name, _UNKNOWN)})
        if not new:
            return new
        budget = self._budgets.get(node_id)
        if budget is None:
            budget = TokenBucket(NAMES_PER_HOUR, NAMES_PER_HOUR / 3600.0, now)
            self._budgets[node_id] = budget
        del new[max(0, int(budget.level(now))) :]
        budget.take(len(new), now)
        for name in new:
            self._nodes_of[name] += name not in known
            known[name] = variants.get(name, _UNKNOWN)
        while len(known) > MAX_SERVED:
            oldest = next(iter(known))
            del known[oldest]
            self._nodes_of[oldest] -= 1
            if not self._nodes_of[oldest]:
                del self._nodes_of[oldest]
        return new
