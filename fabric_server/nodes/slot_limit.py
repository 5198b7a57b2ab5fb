"""A lower limit for an engine's slots, after it has answered that it has too much to do.

The limit falls to half of what runs there, and doubles every few seconds until it is what the node
reports.  An engine that answers so to a single request rests, ever longer, and then gets one.
"""

from __future__ import annotations

RAISE_SECONDS = 5.0
"""Seconds after which the limit is doubled."""
FIRST_REST, LONGEST_REST = 1.0, 15.0
"""Seconds without any request, after the first single request and at most."""


class SlotLimit:
    """The limit of one engine.  Pure: whoever holds it calls ``grow`` after the seconds given."""

    __slots__ = ("_lowered_at", "_rest", "slots")

    def __init__(self) -> None:
        self.slots = 0
        self._rest = FIRST_REST
        self._lowered_at = float("-inf")

    def __repr__(self) -> str:
        return f"<SlotLimit {self.slots}>"

    def lower(self, active: int, began: float, now: float, *, alone: bool) -> float | None:
        """Lower the limit; return the seconds until ``grow``, or None where it stays.

        ``active`` are the requests that run there.  The one that was too much ``began`` at a time;
        if that was before the limit was lowered last, it says nothing new.  An engine that is
        ``alone`` for a model keeps one slot: nobody else could take its requests.
        """
        if began <= self._lowered_at:
            return None
        self._lowered_at = now
        self.slots = active // 2
        if self.slots:
            return RAISE_SECONDS
        if alone:
            self.slots = 1
            return RAISE_SECONDS
        rest = self._rest
        self._rest = min(rest * 2, LONGEST_REST)
        return rest

    def grow(self) -> None:
        self.slots = self.slots * 2 or 1
