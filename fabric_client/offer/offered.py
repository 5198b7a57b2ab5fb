"""One engine's models as they are offered: those that the owner chose, by their public names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import msgspec
from msgspec import Struct

from fabric_client.offer.names import public_name
from fabric_client.offer.patterns import Offer, other_spelling
from fabric_client.offer.private_text import PrivateText
from protocol.messages import ModelReport

MAX_MODELS = 512
"""The most that a report may list."""
OTHERS_NAME = "another model of this engine has the same name: give one an alias at the engine"
_NAMELESS = "it is known by a place that has no name: give it an alias at the engine"
_TOO_MANY = f"the engine lists more than {MAX_MODELS} models"


class HeldBack(Struct, frozen=True):
    """A model that is not offered, for its owner only."""

    name: str
    reason: str


class Offered:
    """The models that one engine offers, until its next report.  Made by ``choose``."""

    def __init__(
        self,
        models: list[ModelReport],
        own: Mapping[str, str],
        held_back: Mapping[str, HeldBack],
        *,
        chosen: bool,
        secret: str = "",
    ) -> None:
        """``own`` has the engine's name for each public one, ``held_back`` has the others by the
        engine's names; ``chosen``: the owner has chosen what is offered; ``secret`` is the key that
        the engine wants."""
        self.models = models
        """Reports of the models, with their public names."""
        self.own = own
        self._held_back = held_back
        self._secret = secret
        self.restricted = chosen or bool(held_back)
        """The engine may have models that are not offered."""
        self.renamed = {name: public for public, name in own.items() if public != name}
        """Public names by the engine's, where they differ."""

    @property
    def held_back(self) -> list[HeldBack]:
        return list(self._held_back.values())

    @cached_property
    def private(self) -> PrivateText:
        """Hides the engine's own names, those of the models that are not offered, and its key."""
        return PrivateText(self.renamed, self.hidden_names, self._secret)

    @property
    def hidden_names(self) -> set[str]:
        """Names of the models that are not offered, except those that others have as well."""
        names = {*self._held_back, *(one.name for one in self._held_back.values())}
        return names - self.own.keys()

    def find(self, asked: str) -> str | None:
        """Return the name to ask the engine by; None if no such model is offered."""
        own = self.own.get(asked)
        if own is None and asked not in self.hidden_names:
            own = self.own.get(other_spelling(asked))
            # Ollama knows a model by both names, and answers with the one that it was asked by.
            return own if own in self.renamed else own and asked
        return own


NOTHING = Offered([], {}, {}, chosen=False)
"""The offer of an engine that has not said what it has."""


def choose(
    models: Sequence[ModelReport],
    kind: str,
    offer: Offer,
    before: Offered = NOTHING,
    secret: str = "",
) -> Offered:
    """Return what is offered of an engine's ``models``, which have the engine's names.

    Of two with the same public name the one that had it ``before`` keeps it, and the other is held
    back; otherwise one whose name needs no change comes first.  ``secret`` is the engine's key.
    """
    listed = {model.name: public_name(model.name, kind) for model in models}
    held: dict[str, HeldBack] = {}
    claims: dict[str, list[str]] = {}
    for own, public in listed.items():
        if public is None:
            held[own] = HeldBack(own, _NAMELESS)
        elif reason := offer.reason_against(public, own):
            held[own] = HeldBack(public, reason)
        else:
            claims.setdefault(public, []).append(own)
    names: dict[str, str] = {}
    for public, owns in claims.items():
        if len(names) == MAX_MODELS:
            held |= {own: HeldBack(public, _TOO_MANY) for own in owns}
            continue
        kept = public if public in owns else before.own.get(public)
        names[public] = kept if kept in owns else owns[0]
        held |= {own: HeldBack(own, OTHERS_NAME) for own in owns if own != names[public]}
    public_of = {own: public for public, own in names.items()}
    reports = {
        public_of[model.name]: msgspec.structs.replace(model, name=public_of[model.name])
        for model in models
        if model.name in public_of
    }
    chosen = offer.patterns is not None
    return Offered(list(reports.values()), names, held, chosen=chosen, secret=secret)
