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

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from random import Random

from fabric_server.nodes.candidates import UNSORTED, Candidates
from fabric_server.nodes.node import KEPT_FREE, Engine
from fabric_server.nodes.offers import Card, Offer
from fabric_server.routing.choice import Choice
from fabric_server.routing.criteria import EngineTerms, Requirements
from fabric_server.routing.latency import LatencyEstimates
from fabric_server.routing.prefix_affinity import Place, PrefixAffinity
from fabric_server.routing.scores import Able, best_of, prefers_cache
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
MIN_SHARED = 0.1
"""A smaller share of a prompt in a cache is ignored."""
MIN_CONTEXT = 512
"""Prompts of fewer tokens fit everywhere."""
_UNREPORTED = frozenset(
    {("llama-server", "tools"), ("lm-studio", "tools"), ("llama-server", "embeddings")}
)
"""Capabilities that these kinds of engine have without reporting them beside others."""
_SPELLINGS = {"embeddings": "embedding"}


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
    engines, count, more = candidates.with_room(now, requirements.path)
    many = count + len(more) > COMPARE_ALL
    cached: Able | None = None
    if not many:
        few = engines if count == len(engines) and not more else (*engines[:count], *more)
        able = [
            (engine, engine.offers[requirements.model])
            for engine in few
            if engine.has_room_for(requirements.key_id, now) and filter_engine(engine, requirements)
        ]
        if place is not None:
            cached = _find_place(place, able)
    else:
        able = _draw(candidates, requirements, rng, now, check=again)
        if place is not None:
            cached = _at_place(state.find(*place), requirements, now)
    if not able:  # if any engine had room, one was found
        return None
    if len(able) == 1 and (cached is None or cached[0] is able[0][0]):
        best = able[0]
        reason = "the only one that can" if cached is None else _affinity_reason(shared)
    else:
        best, least = best_of(able, requirements.model, rng, state, now)
        if cached is not None and (
            cached[0] is best[0]
            or prefers_cache(cached, best, shared, requirements.model, state, now)
        ):
            best, reason = cached, _affinity_reason(shared)
        elif least < 0:
            reason = "not known yet"
        else:
            reason = f"best of {len(able)}, {least:.3g} s expected"
    engine, offer = best
    if many and not again and not engine.has_room:  # all streams of its tunnels are taken, say
        engine.refresh()
        return pick(candidates, requirements, rng, state=state, now=now, again=True)
    return _choice(engine, offer, requirements, reason)


# ── filter ────────────────────────────────────────────────────────────────────────────────────


def model_report(engine: Engine, model: str) -> ModelReport | None:
    """Return what the engine reports of this model; None when it does not serve it."""
    offer = engine.offers.get(model)
    return None if offer is None else offer.report


def reports_of(engines: Iterable[Engine], model: str) -> list[ModelReport]:
    """Return the reports of this model by the engines that serve it."""
    return [one for engine in engines if (one := model_report(engine, model)) is not None]


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
    if terms.here and engine.node.remote:
        return False
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


def filter_engine(engine: Engine, requirements: Requirements, offer: Offer | None = None) -> bool:
    """Return whether the engine could take the request once it has room, as far as it reports.

    ``offer`` is the engine's offer of the model, where it is at hand.
    """
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
    if offer is None:
        offer = engine.offers.get(requirements.model)
    return offer is not None and _meets_hints(offer.card, requirements)


def _meets_hints(card: Card, requirements: Requirements) -> bool:
    if card.context_length and requirements.tokens > card.context_length:
        return False
    reported = card.capabilities
    if not reported or requirements.capabilities <= reported:
        return True
    for capability in requirements.capabilities - reported:
        has_it = _SPELLINGS.get(capability) in reported
        if not has_it and (card.kind, capability) not in _UNREPORTED:
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
        if not any(_meets_hints(card, requirements) for card in candidates.cards()):
            continue  # so a hint that no engine meets costs nobody a walk over all of them
        for engine in candidates:
            if filter_engine(engine, requirements):
                return


# ── sample ────────────────────────────────────────────────────────────────────────────────────


def _draw(
    candidates: Candidates[Engine],
    requirements: Requirements,
    rng: Random,
    now: float,
    *,
    check: bool,
) -> list[Able]:
    """Return up to ``SAMPLE`` engines that could take the request; none when none can.

    With ``check``, each engine is asked whether it has room, and those that have lost it unnoticed
    are refreshed.
    """
    engines, count, more = candidates.with_room(now, requirements.path)
    offers, model = candidates.offers, requirements.model
    random, key_id, total = rng.random, requirements.key_id, count + len(more)
    able: list[Able] = []
    drawn: list[int] = []
    stale: set[Engine] = set()
    enough = MAX_DRAWS + MAX_LOOKS
    first = int(random() * total)
    for look in range(MAX_DRAWS + total):
        place = int(random() * total) if look < MAX_DRAWS else (first + look) % total
        if place in drawn:
            continue
        if place < count:
            engine, offer = engines[place], offers[place]
        else:
            engine = more[place - count]
            offer = engine.offers[model]
        if (engine.slots < KEPT_FREE or engine.lets(key_id, now)) and filter_engine(
            engine, requirements, offer
        ):
            if check and not engine.has_room:
                stale.add(engine)
                continue
            able.append((engine, offer))
            if len(able) == SAMPLE:
                break
            drawn.append(place)
        if look > enough and able:
            break
    for engine in stale:  # only now, because it moves them within the list
        engine.refresh()
    return able


def _find_place(place: Place, able: Iterable[Able]) -> Able | None:
    for one in able:
        if one[0].node.id == place[0] and one[0].name == place[1]:
            return one
    return None


def _at_place(engine: Engine | None, requirements: Requirements, now: float) -> Able | None:
    """Return the engine that has the prompt in its cache, if it could take the request now."""
    offer = None if engine is None else engine.offers.get(requirements.model)
    if (
        engine is not None
        and offer is not None
        and engine.has_room_for(requirements.key_id, now)
        and engine.allows(requirements.model, now, requirements.path)
        and filter_engine(engine, requirements, offer)
    ):
        return engine, offer
    return None


def can_pick(candidates: Candidates[Engine], requirements: Requirements, now: float) -> bool:
    """Return whether ``pick`` would find an engine."""
    engines, count, more = candidates.with_room(now, requirements.path)
    return any(
        engine.has_room_for(requirements.key_id, now) and filter_engine(engine, requirements)
        for engine in chain(islice(engines, count), more)
    )


def _affinity_reason(shared: float) -> str:
    return f"affinity {int(shared * 100 + 0.5)}% of the prompt"


def _choice(engine: Engine, offer: Offer, requirements: Requirements, reason: str) -> Choice:
    loading = ", cold start" if offer.cold else ""
    reason = f"{reason}, {engine.active}/{engine.slots} slots{loading}"
    return Choice(engine, reason, offer.cold, offer.report, requirements.key_id)


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
