"""Which engine takes a request: a pure choice among candidates, and why it was made.

who may     it serves the model, is healthy, reachable, not drained, has a slot, was not tried
            yet, is in a region that its user allows, and can do what is needed, so far as it tells
who is seen few candidates all, of many some at random; and who has the prompt in its cache
who is best least time expected: until the first byte, and for the beginning of the answer;
            more on whoever is busy, more still where the model must be loaded first
who is not  forgotten: an idle engine of which nothing is known (any more) goes before all
            others, but before a cache
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from msgspec import Struct

from fabric_server.nodes.registry import Engine, Node
from fabric_server.routing.criteria import Requirements
from fabric_server.routing.latency import Expected, LatencyEstimates
from fabric_server.routing.prefix_affinity import Place, PrefixAffinity
from fabric_server.routing.weights import REGION
from protocol.messages import ModelReport

FEW = 8
"""So many candidates are all compared."""
SEEN = 4
"""Of more, so many that have room are.  With the two of the power of two choices, p99 of the first
byte was a third to a half longer (benchmarks/simulation.py, 2026-11-21), for 3 µs less."""
MAX_DRAWS = 8
"""Then those with room are listed, instead of drawing on."""
ANSWER_TOKENS = 100
"""How much of the answer counts beside its first byte."""
CROWD = 1.0
"""An engine with all slots but none taken is expected to take that much longer, as a share."""
MARGIN = 0.75
"""The most by which whoever has a whole prompt in its cache may be busier than another, as a share
of its slots; less for part of a prompt."""
PATIENCE = 3.0
"""How many times as long it may take, cache and all.  With 1.5 an eighth to a quarter less was
found in caches: who moves a conversation for its own good makes others wait (simulated)."""
MIN_SHARED = 0.1
"""A smaller share of a prompt in a cache counts for nothing."""
CACHED = 0.9
"""How much of the first byte's time a whole prompt in the cache saves."""

MIN_CONTEXT = 512
"""Prompts of fewer tokens fit everywhere."""
_SILENT = frozenset(
    {("llama-server", "tools"), ("lm-studio", "tools"), ("llama-server", "embeddings")}
)
"""What these kinds of engine can do without saying so, though they tell of other capabilities."""
_SPELLINGS = {"embeddings": "embedding"}


class Choice(Struct, frozen=True, gc=False):
    engine: Engine
    why: str
    """For people: ASCII, short, without names or addresses."""
    cold: bool = False
    """The model has to be loaded first."""


@dataclass(slots=True)
class Knowledge:
    """What was learnt from earlier requests, and what the operator prefers."""

    find: Callable[[str, str], Engine | None] = lambda node_id, name: None
    """The engine of this name on this node, if it is here."""
    affinity: PrefixAffinity = field(default_factory=PrefixAffinity)
    latency: LatencyEstimates = field(default_factory=LatencyEstimates)
    weights: Mapping[str, float] = field(default_factory=dict)
    """By the node's id or name, or ``region:`` and its region, the first of these that has one: 2
    counts as twice as fast."""


def choose(
    candidates: Sequence[Engine],
    requirements: Requirements,
    rng: Random,
    *,
    knowledge: Knowledge,
    now: float,
    seen: int = SEEN,
) -> Choice | None:
    """Who of ``candidates``, all that serve the model, is best; None when none can take it now."""
    found = knowledge.affinity.find(requirements.prefix) if requirements.prefix else None
    if found is not None and found[1] < MIN_SHARED:
        found = None
    place, shared = found or (None, 0.0)
    if len(candidates) <= FEW:
        able = [engine for engine in candidates if engine.has_room and suits(engine, requirements)]
        affine = _at(place, able) if place is not None else None
    else:
        able = _some(candidates, requirements, rng, seen)
        affine = knowledge.find(*place) if place is not None else None
        if affine is not None and not (
            card(affine, requirements.model)
            and affine.has_room
            and affine.allows(requirements.model, now)
            and suits(affine, requirements)
        ):
            affine = None
    if not able:  # if anybody had room, somebody was found
        return None
    if len(able) == 1 and (affine is None or affine is able[0]):
        why = "the only one that can" if affine is None else _cached(shared)
        return _choice(able[0], requirements, why)
    best, quickest = able[0], _rank(able[0], requirements, knowledge, now)
    ties = 1
    for engine in able[1:]:
        rank = _rank(engine, requirements, knowledge, now)
        if rank < quickest:
            best, quickest, ties = engine, rank, 1
        elif rank == quickest:
            ties += 1
            if rng.random() * ties < 1.0:
                best = engine
    if affine is not None and (
        affine is best or _worth_it(affine, best, shared, requirements, knowledge, now)
    ):
        return _choice(affine, requirements, _cached(shared))
    if quickest[0] < 0:
        return _choice(best, requirements, "not known yet")
    return _choice(best, requirements, f"best of {len(able)}, {quickest[0]:.3g} s expected")


def card(engine: Engine, model: str) -> ModelReport | None:
    """What it reports of this model; None when it does not serve it."""
    found = engine.models.get(model)
    if found is None and engine.kind == "ollama" and ":" not in model:
        found = engine.models.get(f"{model}:latest")
    return found


def is_cold(engine: Engine, model: str) -> bool:
    """Whether it has to load the model first, so far as it tells."""
    report = card(engine, model)
    return report is not None and report.loaded is False


def speaks(engine: Engine, requirements: Requirements) -> bool:
    """Whether it can be asked this at all."""
    if requirements.kinds is not None and engine.kind not in requirements.kinds:
        return False
    return within(engine, requirements) and (
        not requirements.path or requirements.path in engine.paths
    )


def within(engine: Engine, requirements: Requirements) -> bool:
    """Whether its node is where the request may go; one that does not say where it is, is not."""
    return requirements.regions is None or engine.node.region in requirements.regions


def suits(engine: Engine, requirements: Requirements) -> bool:
    """Whether it could take the request once it has room, so far as it tells."""
    if requirements.path not in engine.paths and requirements.path:
        return False
    if requirements.regions is not None and engine.node.region not in requirements.regions:
        return False
    if requirements.tried and engine.node.id in requirements.tried:
        return False
    if requirements.kinds is not None and engine.kind not in requirements.kinds:
        return False
    if not requirements.needs and requirements.tokens < MIN_CONTEXT:
        return True
    report = card(engine, requirements.model)
    if report is None:
        return False
    if report.context_length and requirements.tokens > report.context_length:
        return False
    able = report.capabilities
    if able:
        for need in requirements.needs:
            told = need in able or _SPELLINGS.get(need) in able
            if not told and (engine.kind, need) not in _SILENT:
                return False
    return True


def relax(candidates: Sequence[Engine], requirements: Requirements) -> None:
    """Strike from the wish what nobody who serves the model can do: the engine itself will say so
    best, and an estimate is nothing to refuse a request for.  Never a region: that is an order."""
    if not requirements.needs and requirements.tokens < MIN_CONTEXT:
        return
    tokens, needs, nothing = requirements.tokens, requirements.needs, frozenset[str]()
    for requirements.tokens, requirements.needs in (
        (tokens, needs),
        (0, needs),
        (tokens, nothing),
        (0, nothing),
    ):
        if not requirements.tokens and not requirements.needs:
            return
        for engine in candidates:
            if suits(engine, requirements):
                return


# ── who is seen ───────────────────────────────────────────────────────────────────────────────


def _some(
    candidates: Sequence[Engine], requirements: Requirements, rng: Random, seen: int
) -> list[Engine]:
    """Up to ``seen`` engines that could take the request, none when nobody can."""
    count, random = len(candidates), rng.random
    able: list[Engine] = []
    for _ in range(MAX_DRAWS):
        engine = candidates[int(random() * count)]
        if (
            engine.active < engine.slots
            and engine not in able
            and engine.has_room
            and suits(engine, requirements)
        ):
            able.append(engine)
            if len(able) == seen:
                return able
    free = [
        engine
        for engine in candidates
        if engine.active < engine.slots and engine.healthy and not engine.node.draining
    ]
    first = int(random() * len(free))
    for engine in (*free[first:], *free[:first]):
        if engine.has_room and engine not in able and suits(engine, requirements):
            able.append(engine)
            if len(able) >= seen:
                break
    return able


def _at(place: Place, engines: Sequence[Engine]) -> Engine | None:
    for engine in engines:
        if engine.node.id == place[0] and engine.name == place[1]:
            return engine
    return None


# ── who is best ───────────────────────────────────────────────────────────────────────────────


def _rank(
    engine: Engine, requirements: Requirements, knowledge: Knowledge, now: float
) -> tuple[float, float]:
    """Less is better.  An idle engine of which nothing is known comes first: one request will tell;
    while that runs it counts as one like all."""
    expected = knowledge.latency.of(engine, requirements.model, now)
    cold = is_cold(engine, requirements.model)
    if not (expected.known or engine.active or cold):
        return -1.0, 0.0
    load = engine.active / engine.slots
    return _seconds(engine, expected, load, 0.0, cold, knowledge.weights), load


def _seconds(
    engine: Engine,
    expected: Expected,
    load: float,
    cached: float,
    cold: bool,
    weights: Mapping[str, float],
) -> float:
    """Until the first byte, and for the next ``ANSWER_TOKENS``."""
    first_byte, rate, loading, _ = expected
    seconds = first_byte * (1.0 - CACHED * cached) + ANSWER_TOKENS / rate
    seconds *= 1.0 + CROWD * load
    if cold:
        seconds += loading
    if weights:
        seconds /= _weight(engine.node, weights)
    return seconds


def _weight(node: Node, weights: Mapping[str, float]) -> float:
    for name in (node.id, node.name, REGION + node.region):
        if name in weights:
            return weights[name]
    return 1.0


def _worth_it(
    affine: Engine,
    best: Engine,
    shared: float,
    requirements: Requirements,
    knowledge: Knowledge,
    now: float,
) -> bool:
    """Whether a cache is worth that its engine is busier, or slower."""
    loads = affine.active / affine.slots, best.active / best.slots
    if loads[0] - loads[1] > MARGIN * shared:
        return False
    slower, quicker = (
        _seconds(
            engine,
            knowledge.latency.of(engine, requirements.model, now),
            load,
            cached,
            is_cold(engine, requirements.model),
            knowledge.weights,
        )
        for engine, load, cached in zip((affine, best), loads, (shared, 0.0), strict=True)
    )
    return slower <= PATIENCE * quicker


def _cached(shared: float) -> str:
    return f"affinity {int(shared * 100 + 0.5)}% of the prompt"


def _choice(engine: Engine, requirements: Requirements, why: str) -> Choice:
    cold = is_cold(engine, requirements.model)
    loading = ", cold start" if cold else ""
    return Choice(engine, f"{why}, {engine.active}/{engine.slots} slots{loading}", cold)


class LoadBalancer:
    """The choice, with what it has to remember from one request to the next."""

    def __init__(
        self,
        find: Callable[[str, str], Engine | None],
        rng: Random,
        *,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """``find`` as in ``Knowledge``."""
        self.knowledge = Knowledge(find, weights=weights or {})
        self._rng = rng

    def choose(
        self, candidates: Sequence[Engine], requirements: Requirements, now: float
    ) -> Choice | None:
        return choose(candidates, requirements, self._rng, knowledge=self.knowledge, now=now)
