"""Which engine takes a request: a pure choice among candidates."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from random import Random

from fabric_server.nodes import Engine


def choose(
    candidates: Sequence[Engine], rng: Random, exclude: Collection[str] = ()
) -> Engine | None:
    """The engine with the smallest share of its slots taken, ties at random; None when all are
    full, unhealthy, out of reach, or on nodes named in ``exclude``."""
    best: list[Engine] = []
    least = 1.0
    for engine in candidates:
        if not engine.has_room or engine.node.id in exclude:
            continue
        load = engine.active / engine.slots
        if load < least:
            best, least = [engine], load
        elif load == least:
            best.append(engine)
    if len(best) > 1:
        return best[int(rng.random() * len(best))]
    return best[0] if best else None
