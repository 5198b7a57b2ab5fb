"""Offers: what an engine offers under each name by which its models can be asked for.

An offer has all that a choice looks at beside the engine itself, because among thousands of nodes
each object that is looked at has to come from memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from msgspec import Struct

from protocol.messages import EngineReport, ModelReport

LATEST = ":latest"
"""Tag of Ollama's models that may be left out."""


class Card(NamedTuple):
    """The hints in an engine's report of a model, which many engines share."""

    kind: str
    """The engine's kind."""
    context_length: int | None
    capabilities: frozenset[str]


class Latency(Struct, gc=False):
    """Measurements of one engine and one of its models, smoothed."""

    first_byte: float
    """Seconds."""
    rate: float
    """Tokens a second."""
    load: float
    """Seconds to load the model."""
    at: float
    """Time of the last measurement, in event-loop seconds."""


class Estimate(Struct, frozen=True, gc=False):
    """Expected latency of one engine for one of its models."""

    first_byte: float
    """Seconds."""
    rate: float
    """Tokens a second."""
    load: float
    """Seconds more if the model has to be loaded first."""
    known: bool
    """Measured at this engine; otherwise it is the mean over all engines."""


class Offer(Struct, gc=False):
    """A model of an engine, for all of its names."""

    report: ModelReport
    card: Card
    cold: bool
    """The model has to be loaded first, as far as the engine reports that."""
    latency: Latency | None = None
    """Measurements of the model at this engine; None: nobody has looked yet, or none exist."""


@lru_cache(256)
def _card(kind: str, context_length: int | None, capabilities: tuple[str, ...]) -> Card:
    return Card(kind, context_length, frozenset(capabilities))


def offers_of(report: EngineReport, before: Mapping[str, Offer]) -> dict[str, Offer]:
    """Return an engine's offers by their names: Ollama's ``:latest`` may be left out.

    What was measured of the offers that the engine had ``before`` is still true.
    """
    offers: dict[str, Offer] = {}
    for model in report.models:
        card = _card(report.kind, model.context_length, tuple(model.capabilities))
        known = before.get(model.name)
        offer = offers[model.name] = Offer(model, card, model.loaded is False)
        if known is not None and known.report.name == model.name:
            offer.latency = known.latency
    if report.kind == "ollama":
        for name, offer in list(offers.items()):
            short = name.removesuffix(LATEST)
            if short != name and ":" not in short:
                offers.setdefault(short, offer)
    return offers
