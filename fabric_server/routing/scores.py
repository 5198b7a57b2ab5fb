"""Scores: which of some engines is expected to answer soonest, and when a cache outweighs that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import Protocol

from fabric_server.nodes.node import Engine, Node
from fabric_server.nodes.offers import Estimate, Offer
from fabric_server.routing.latency import LatencyEstimates
from fabric_server.routing.weights import REGION

ANSWER_TOKENS = 100
"""Tokens of the answer that count beside its first byte."""
LOAD_PENALTY = 1.0
"""Share by which an engine with all slots but none taken is expected to be slower."""
MAX_LOAD_DIFFERENCE = 0.75
"""How much busier, as a share of its slots, an engine with the whole prompt in its cache may be;
less for part of a prompt."""
MAX_SLOWDOWN = 3.0
"""How many times as long an engine with a cache may take.  With 1.5 an eighth to a quarter less was
found in caches: moving a conversation for its own good makes others wait (simulated)."""
CACHE_SAVING = 0.9
"""Share of the time until the first byte that a whole prompt in the cache saves."""

Able = tuple[Engine, Offer]
"""An engine that could take the request, and its offer of the model."""


class Known(Protocol):
    """Measurements of all engines, and the operator's preferences: see ``RoutingState``."""

    latency: LatencyEstimates
    weights: Mapping[str, float]


def best_of(
    able: Sequence[Able],
    model: str,
    rng: Random,
    known: Known,
    now: float,
) -> tuple[Able, float]:
    """Return the engine with the least expected seconds and load, of equal ones any, and its
    expected seconds.

    An idle engine without measurements comes first: one request will measure it, and while that
    runs it counts as average.
    """
    expect, weights = known.latency.expect, known.weights
    best, least, ties = able[0], _WORST, 1
    for one in able:
        engine, offer = one
        estimate, active = expect(engine, offer, model, now), engine.active
        if active or estimate.known or offer.cold:
            load = (active + engine.elsewhere) / engine.slots
            score = _expected_seconds(engine, estimate, load, 0.0, offer.cold, weights), load
        else:
            score = _FIRST
        if score < least:
            best, least, ties = one, score, 1
        elif score == least:
            ties += 1
            if rng.random() * ties < 1.0:
                best = one
    return best, least[0]


_WORST = math.inf, 0.0
_FIRST = -1.0, 0.0
"""Bounds of scores: expected seconds and load; less is better."""


def _expected_seconds(
    engine: Engine,
    estimate: Estimate,
    load: float,
    shared: float,
    cold: bool,
    weights: Mapping[str, float],
) -> float:
    """Return the seconds until the first byte, plus those for ``ANSWER_TOKENS``."""
    seconds = estimate.first_byte * (1.0 - CACHE_SAVING * shared) + ANSWER_TOKENS / estimate.rate
    seconds *= 1.0 + LOAD_PENALTY * load
    if cold:
        seconds += estimate.load
    if weights:
        seconds /= _weight(engine.node, weights)
    return seconds


def _weight(node: Node, weights: Mapping[str, float]) -> float:
    for name in (node.id, node.name, REGION + node.region):
        if name in weights:
            return weights[name]
    return 1.0


def prefers_cache(
    cached: Able,
    best: Able,
    shared: float,
    model: str,
    known: Known,
    now: float,
) -> bool:
    """Return whether the cache outweighs that its engine is busier, or slower."""
    loads = cached[0].active / cached[0].slots, best[0].active / best[0].slots
    if loads[0] - loads[1] > MAX_LOAD_DIFFERENCE * shared:
        return False
    with_cache, without = (
        _expected_seconds(
            engine,
            known.latency.expect(engine, offer, model, now),
            load,
            its_share,
            offer.cold,
            known.weights,
        )
        for (engine, offer), load, its_share in zip(
            (cached, best), loads, (shared, 0.0), strict=True
        )
    )
    return with_cache <= MAX_SLOWDOWN * without
