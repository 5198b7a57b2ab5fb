"""Slots that are held now, counted by the key of the request that holds each."""

from __future__ import annotations

import math

SHARED_SECONDS = 60.0
"""An engine counts as shared for so long after a key has taken a slot that did not take the last
one."""


class HeldSlots:
    """The held slots of one engine, or of all."""

    __slots__ = ("_by_key", "_last_key", "_shared_until", "high_in_a_row")

    def __init__(self) -> None:
        self._by_key: dict[str, int] = {}
        """Keys that hold slots: not more than there are slots."""
        self._last_key: str | None = None
        self._shared_until = -math.inf
        self.high_in_a_row = 0
        """How many of the last slots that were waited for went to requests of high priority."""

    def of(self, key_id: str) -> int:
        """Return how many slots the key holds."""
        return self._by_key.get(key_id, 0)

    def is_shared(self, now: float) -> bool:
        """Return whether several keys have taken slots lately."""
        return now < self._shared_until

    def take(self, key_id: str, now: float) -> None:
        """Count a slot that the key has been given."""
        self._by_key[key_id] = self._by_key.get(key_id, 0) + 1
        if key_id != self._last_key:
            if self._last_key is not None:
                self._shared_until = now + SHARED_SECONDS
            self._last_key = key_id

    def serve(self, high: bool) -> None:
        """Note that a slot goes to a request that waited, and whether its priority is high."""
        self.high_in_a_row = self.high_in_a_row + 1 if high else 0

    def give_back(self, key_id: str) -> None:
        """Count a slot that the key has given back.  Raises ``KeyError`` when it holds none."""
        left = self._by_key[key_id] - 1
        if left:
            self._by_key[key_id] = left
        else:
            del self._by_key[key_id]
