"""Load balancing: a pure choice of one engine among the candidates, with the reason for it.

filter      the engine serves the model, is healthy, reachable, not drained, has a free slot, is not
            excluded, is in an allowed region, has the weights asked for, and has the capabilities,
            as far as it reports them
sample      few that have room are all compared, of many a random sample; and the engine that has
            the prompt in its cache
score       least expected time: until the first byte, and for the beginning of the answer; more on
            busy engines, more still where the model must be loaded first
explore     an idle engine without (recent) measurements goes before all others, but not before a
            cache
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from random import Random

from msgspec import Struct

from fabric_server.nodes.candidates import UNSORTED, Candidates
from fabric_server.nodes.node import Engine, Node
from fabric_server.nodes.standing import Card
from fabric_server.routing.criteria import EngineTerms, Requirements
from fabric_server.routing.latency import Estimate, LatencyEstimates
from fabric_server.routing.prefix_affinity import Place, PrefixAffinity
from fabric_server.routing.weights import REGION
from protocol.messages import ModelReport

COMPARE_ALL = UNSORTED
"""Up to so many candidates with room are all compared."""
SAMPLE = 4
"""Candidates that are compared where there are more.  With two (the power of two choices),
p99 of the first byte was a third to a half longer (benchmarks/simulation.py, 2026-11-21), for 3 µs
less."""
MAX_DRAWS = 8
"""Random draws after which the candidates with room are looked at in their order instead."""
MAX_LOOKS = 64
"""Candidates that are looked at so, once one was found that meets the requirements: rare ones, such
as a region with few nodes, or draws would have found it."""
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
MIN_SHARED = 0.1
"""A smaller share of a prompt in a cache is ignored."""
CACHE_SAVING = 0.9
"""Share of the time until the first byte that a whole prompt in the cache saves."""

MIN_CONTEXT = 512
"""Prompts of fewer tokens fit everywhere."""
_UNREPORTED = frozenset(
    {("llama-server", "tools"), ("lm-studio", "tools"), ("llama-server", "embeddings")}
)
"""Capabilities that these kinds of engine have without reporting them beside others."""
_SPELLINGS = {"embeddings": "embedding"}


class Choice(Struct, frozen=True, gc=False):
    """The engine that was picked, and why."""

    engine: Engine
    route_reason: str
    """Explanation for people: ASCII, short, without names or addresses."""
    cold_start: bool = False
    """The model has to be loaded first."""
    report: ModelReport | None = None
    """The engine's report of the model when it was chosen."""
    key_id: str = ""
    """The key of the request that holds the slot."""


@dataclass(slots=True)
class RoutingState:
    """Measurements from earlier requests, and the operator's preferences."""

    find: Callable[[str, str], Engine | None] = lambda node_id, name: None
    """Returns the engine of this node and name, if it is connected."""
    affinity: PrefixAffinity = field(default_factory=PrefixAffinity)
    latency: LatencyEstimates = field(default_factory=LatencyEstimates)
    weights: Mapping[str, float] = field(default_factory=dict)
    """Weights by the node's id or name, or by ``region:`` and its region, the first match of these:
    2 counts as twice as fast."""


def pick(
    candidates: Candidates[Engine] | tuple[()],
    requirements: Requirements,
    rng: Random,
    *,
    state: RoutingState,
    now: float,
    again: bool = False,
) -> Choice | None:
    """Return the best of ``candidates``, all of which serve the model; None if none can now.

    ``again`` is for the second look, after a node that has lost its tunnels unnoticed was picked.
    """
    if not isinstance(candidates, Candidates):  # no engine serves the model
        return None
    found = state.affinity.find(requirements.prefix) if requirements.prefix else None
    if found is not None and found[1] < MIN_SHARED:
        found = None
    place, shared = found or (None, 0.0)
    engines, count, more = room = candidates.with_room(now, requirements.path)
    many = count + len(more) > COMPARE_ALL
    if not many:
        few = engines if count == len(engines) and not more else (*engines[:count], *more)
        able = [
            engine
            for engine in few
            if engine.has_room_for(requirements.key_id, now) and filter_engine(engine, requirements)
        ]
        cached = _find_place(place, able) if place is not None else None
    else:
        able = _draw(room, requirements, rng, now, check=again)
        cached = state.find(*place) if place is not None else None
        if cached is not None and not (
            model_report(cached, requirements.model)
            and cached.has_room_for(requirements.key_id, now)
            and cached.allows(requirements.model, now, requirements.path)
            and filter_engine(cached, requirements)
        ):
            cached = None
    if not able:  # if any engine had room, one was found
        return None
    if len(able) == 1 and (cached is None or cached is able[0]):
        best = able[0]
        reason = "the only one that can" if cached is None else _affinity_reason(shared)
    else:
        best, least = _best(able, requirements, rng, state, now)
        if cached is not None and (
            cached is best or _prefers_cache(cached, best, shared, requirements, state, now)
        ):
            best, reason = cached, _affinity_reason(shared)
        elif least[0] < 0:
            reason = "not known yet"
        else:
            reason = f"best of {len(able)}, {least[0]:.3g} s expected"
    if many and not again and not best.has_room:  # all streams of its tunnels are taken, say
        best.refresh()
        return pick(candidates, requirements, rng, state=state, now=now, again=True)
    return _choice(best, requirements, reason)


# ── filter ────────────────────────────────────────────────────────────────────────────────────


def model_report(engine: Engine, model: str) -> ModelReport | None:
    """Return what the engine reports of this model; None when it does not serve it."""
    found = engine.models.get(model)
    if found is None and engine.kind == "ollama" and ":" not in model:
        found = engine.models.get(f"{model}:latest")
    return found


def reports_of(engines: Iterable[Engine], model: str) -> list[ModelReport]:
    """Return the reports of this model by the engines that serve it."""
    return [one for engine in engines if (one := model_report(engine, model)) is not None]


def is_cold(engine: Engine, model: str) -> bool:
    """Return whether the engine has to load the model first, as far as it reports that."""
    report = model_report(engine, model)
    return report is not None and report.loaded is False


def supports(engine: Engine, requirements: Requirements, model: str = "") -> bool:
    """Return whether the engine's kind, weights, region and paths allow the request at all, for
    the required model or for another one."""
    return (
        meets_terms(engine, requirements.terms, model or requirements.model)
        and in_region(engine, requirements)
        and (not requirements.path or requirements.path in engine.paths)
    )


def meets_terms(engine: Engine, terms: EngineTerms | None, model: str) -> bool:
    """Return whether the engine is of a kind, and has weights of the model, that meet the terms."""
    if terms is None:
        return True
    if terms.kinds is not None and engine.kind not in terms.kinds:
        return False
    if terms.variant is None and terms.begun is None:
        return True
    report = model_report(engine, model)
    return (
        report is not None
        and (terms.variant is None or terms.variant.matches(report))
        and (terms.begun is None or terms.begun.may_continue(engine.kind, report))
    )


def in_region(engine: Engine, requirements: Requirements) -> bool:
    """Return whether the node is in an allowed region; a node that reports no region is in none."""
    return requirements.regions is None or engine.node.region in requirements.regions


def filter_engine(engine: Engine, requirements: Requirements) -> bool:
    """Return whether the engine could take the request once it has room, as far as it reports."""
    if requirements.path and requirements.path not in engine.paths:
        return False
    if requirements.regions is not None and engine.node.region not in requirements.regions:
        return False
    if requirements.excluded_nodes and engine.node.id in requirements.excluded_nodes:
        return False
    if requirements.terms is not None and not meets_terms(
        engine, requirements.terms, requirements.model
    ):
        return False
    if not requirements.capabilities and requirements.tokens < MIN_CONTEXT:
        return True
    report = model_report(engine, requirements.model)
    return report is not None and _meets_hints(engine, report, requirements)


def _meets_hints(
    engine: Engine | Card, report: ModelReport | Card, requirements: Requirements
) -> bool:
    if report.context_length and requirements.tokens > report.context_length:
        return False
    reported = report.capabilities
    if reported:
        for capability in requirements.capabilities:
            has_it = capability in reported or _SPELLINGS.get(capability) in reported
            if not has_it and (engine.kind, capability) not in _UNREPORTED:
                return False
    return True


def relax_hints(candidates: Candidates[Engine], requirements: Requirements) -> None:
    """Drop the hints that no candidate satisfies: capabilities, and the prompt's length.

    The engine's own error is the clearest, and an estimate is no reason to refuse a request.
    Regions are never relaxed.
    """
    if not requirements.capabilities and requirements.tokens < MIN_CONTEXT:
        return
    tokens, capabilities, none = requirements.tokens, requirements.capabilities, frozenset[str]()
    for requirements.tokens, requirements.capabilities in (
        (tokens, capabilities),
        (0, capabilities),
        (tokens, none),
        (0, none),
    ):
        if not requirements.tokens and not requirements.capabilities:
            return
        if not any(_meets_hints(card, card, requirements) for card in candidates.cards()):
            continue  # so a hint that no engine meets costs nobody a walk over all of them
        for engine in candidates:
            if filter_engine(engine, requirements):
                return


# ── sample ────────────────────────────────────────────────────────────────────────────────────


def _draw(
    room: tuple[Sequence[Engine], int, Sequence[Engine]],
    requirements: Requirements,
    rng: Random,
    now: float,
    *,
    check: bool,
) -> list[Engine]:
    """Return up to ``SAMPLE`` engines that could take the request; none when none can.

    ``room`` is what ``Candidates.with_room`` returns.  With ``check``, each engine is asked, and
    those that have lost their room unnoticed are refreshed.
    """
    engines, count, more = room
    random, key_id, total = rng.random, requirements.key_id, count + len(more)
    able: list[Engine] = []
    stale: set[Engine] = set()
    enough = MAX_DRAWS + MAX_LOOKS
    first = int(random() * total)
    for look in range(MAX_DRAWS + total):
        place = int(random() * total) if look < MAX_DRAWS else (first + look) % total
        engine = engines[place] if place < count else more[place - count]
        if engine not in able and engine.lets(key_id, now) and filter_engine(engine, requirements):
            if check and not engine.has_room:
                stale.add(engine)
                continue
            able.append(engine)
            if len(able) == SAMPLE:
                break
        if look > enough and able:
            break
    for engine in stale:  # only now, because it moves them within ``room``
        engine.refresh()
    return able


def _find_place(place: Place, engines: Sequence[Engine]) -> Engine | None:
    for engine in engines:
        if engine.node.id == place[0] and engine.name == place[1]:
            return engine
    return None


def can_pick(candidates: Candidates[Engine], requirements: Requirements, now: float) -> bool:
    """Return whether ``pick`` would find an engine."""
    engines, count, more = candidates.with_room(now, requirements.path)
    return any(
        engine.has_room_for(requirements.key_id, now) and filter_engine(engine, requirements)
        for engine in chain(islice(engines, count), more)
    )


# ── score ─────────────────────────────────────────────────────────────────────────────────────


def _best(
    able: Sequence[Engine], requirements: Requirements, rng: Random, state: RoutingState, now: float
) -> tuple[Engine, tuple[float, float]]:
    """Return the engine with the least score, of equal ones any, and its score."""
    best, least = able[0], _score(able[0], requirements, state, now)
    ties = 1
    for engine in able[1:]:
        score = _score(engine, requirements, state, now)
        if score < least:
            best, least, ties = engine, score, 1
        elif score == least:
            ties += 1
            if rng.random() * ties < 1.0:
                best = engine
    return best, least


def _score(
    engine: Engine, requirements: Requirements, state: RoutingState, now: float
) -> tuple[float, float]:
    """Return expected seconds and load; less is better.

    An idle engine without measurements comes first: one request will measure it, and while that
    runs it counts as average.
    """
    estimate = state.latency.estimate(engine, requirements.model, now)
    cold, active = is_cold(engine, requirements.model), engine.active
    if not (active or estimate.known or cold):
        return -1.0, 0.0
    load = active / engine.slots
    return _expected_seconds(engine, estimate, load, 0.0, cold, state.weights), load


def _expected_seconds(
    engine: Engine,
    estimate: Estimate,
    load: float,
    shared: float,
    cold: bool,
    weights: Mapping[str, float],
) -> float:
    """Return the seconds until the first byte, plus those for ``ANSWER_TOKENS``."""
    first_byte, rate, loading, _ = estimate
    seconds = first_byte * (1.0 - CACHE_SAVING * shared) + ANSWER_TOKENS / rate
    seconds *= 1.0 + LOAD_PENALTY * load
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


def _prefers_cache(
    cached: Engine,
    best: Engine,
    shared: float,
    requirements: Requirements,
    state: RoutingState,
    now: float,
) -> bool:
    """Return whether the cache outweighs that its engine is busier, or slower."""
    loads = cached.active / cached.slots, best.active / best.slots
    if loads[0] - loads[1] > MAX_LOAD_DIFFERENCE * shared:
        return False
    with_cache, without = (
        _expected_seconds(
            engine,
            state.latency.estimate(engine, requirements.model, now),
            load,
            its_share,
            is_cold(engine, requirements.model),
            state.weights,
        )
        for engine, load, its_share in zip((cached, best), loads, (shared, 0.0), strict=True)
    )
    return with_cache <= MAX_SLOWDOWN * without


def _affinity_reason(shared: float) -> str:
    return f"affinity {int(shared * 100 + 0.5)}% of the prompt"


def _choice(engine: Engine, requirements: Requirements, reason: str) -> Choice:
    report = model_report(engine, requirements.model)
    cold = report is not None and report.loaded is False
    loading = ", cold start" if cold else ""
    reason = f"{reason}, {engine.active}/{engine.slots} slots{loading}"
    return Choice(engine, reason, cold, report, requirements.key_id)


def choose_waited_for(engine: Engine, requirements: Requirements) -> Choice:
    """Return the choice of an engine that a request has waited for."""
    report = model_report(engine, requirements.model)
    cold = report is not None and report.loaded is False
    why = "the first free one after a wait"
    return Choice(engine, why, cold, report, requirements.key_id)


class LoadBalancer:
    """Picks engines, and holds the state that ``pick`` uses from one request to the next."""

    def __init__(
        self,
        find: Callable[[str, str], Engine | None],
        rng: Random,
        *,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """``find`` is as in ``RoutingState``."""
        self.state = RoutingState(find, weights=weights or {})
        self._rng = rng

    def pick(
        self, candidates: Candidates[Engine] | tuple[()], requirements: Requirements, now: float
    ) -> Choice | None:
        return pick(candidates, requirements, self._rng, state=self.state, now=now)
