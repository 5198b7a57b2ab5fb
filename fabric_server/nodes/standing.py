"""Standing: what the lists of candidates know of an engine, and what an engine is to them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from fabric_server.nodes.circuit_breaker import Breakers
from fabric_server.nodes.offers import Offer

ROOM, FULL, CUT_OFF, RESTING, TROUBLED, NO_USE = range(6)
"""The segments: it has room; all its slots are taken; it has room, but no tunnel that could take a
stream; it gets no requests for a while, because it had too much to do; one of its breakers for
the model is open or half open; it is down, paused or drained."""


class Standing(NamedTuple):
    """The state of an engine, as far as the lists of candidates know it."""

    segment: int
    """The one where it belongs, but for its breakers."""
    slots: int
    """Slots that it has, while it may serve."""
    paths: frozenset[str] | None
    """Its paths, while it could serve a request if it had room; None otherwise."""

    @property
    def has_room(self) -> bool:
        return self.segment == ROOM


NOTHING = Standing(NO_USE, 0, None)
UNLISTED = Standing(ROOM, 0, None)
"""Standing of an engine that is in no list which is sorted: whoever looks at it, looks closely."""


@lru_cache(1024)
def make_standing(segment: int, slots: int, paths: frozenset[str] | None) -> Standing:
    """Return the standing, which engines in the same state share."""
    return Standing(segment, slots, paths)


class Listed(Protocol):
    """An engine, as the lists of candidates see it."""

    slots: int
    breakers: Breakers
    standing: Standing

    @property
    def offers(self) -> Mapping[str, Offer]: ...
    @property
    def may_serve(self) -> bool: ...
    def is_able(self, path: str) -> bool:
        """Return whether it could serve a request for this path if it had room."""

    def allows(self, model: str, now: float, path: str = "") -> bool: ...
    def join(self, segments: Any) -> None:
        """Join a list, whose ``update`` is called from now on."""

    def part(self, segments: Any) -> None: ...
