"""Shares of an engine's slots: which of the keys that wait is the next to get one.

Keys are compared by the slots that they hold now, not by how often they were served: neither long
requests nor many, nor many models, give a key more than its share.
"""

from __future__ import annotations

import math
from itertools import count

from fabric_server.nodes.held_slots import HeldSlots
from fabric_server.routing.criteria import Priority

HIGH_WEIGHT = 4
"""A request of high priority counts as so much of a key's share less."""
ORDINARY = 1
"""The last figure in the standing of requests that are not of high priority."""
_MAX_KEYS = 10_000

Standing = tuple[int, int, int]
"""Slots held at the engine and at all, by weight, and whether others go first; the smaller is
served first."""


class Shares:
    """The slots that keys hold when one of an engine is given away."""

    __slots__ = ("_at_engine", "_in_all", "_most")

    def __init__(
        self, at_engine: HeldSlots, in_all: HeldSlots, most_per_key: float = math.inf
    ) -> None:
        """``most_per_key`` are the slots of the engine that one key may hold."""
        self._at_engine = at_engine
        self._in_all = in_all
        self._most = most_per_key

    def is_full(self, key_id: str) -> bool:
        """Return whether the key may hold no more slots of the engine."""
        return self._at_engine.of(key_id) >= self._most

    def standing(self, key_id: str, priority: Priority) -> Standing:
        """Return the standing of a key's request.

        Of requests that are equal otherwise, those of high priority go first, but only
        ``HIGH_WEIGHT`` times in a row.
        """
        at_engine, in_all = self._at_engine.of(key_id), self._in_all.of(key_id)
        if priority != Priority.HIGH:
            return at_engine, in_all, ORDINARY
        enough = self._at_engine.high_in_a_row >= HIGH_WEIGHT
        last = ORDINARY + 1 if enough else ORDINARY - 1
        return at_engine // HIGH_WEIGHT, in_all // HIGH_WEIGHT, last


class Turns:
    """Numbers of turns, and which one each key had last, for all queues together."""

    def __init__(self, start: int = 1) -> None:
        self._numbers = count(start)
        self._last: dict[str, int] = {}
        """The least recently served first."""

    def next(self) -> int:
        return next(self._numbers)

    def last(self, key_id: str) -> int:
        """Return the number of the key's last turn; 0 when it had none, or long ago."""
        return self._last.get(key_id, 0)

    def serve(self, key_id: str) -> None:
        """Note that it is the end of this key's turn."""
        self._last.pop(key_id, None)
        self._last[key_id] = self.next()
        if len(self._last) > _MAX_KEYS:
            del self._last[next(iter(self._last))]
