"""Exponential back-off with full jitter, so that nodes don't reconnect in step.

While nobody answers at all, attempts cost nobody anything, so waits stay short for some minutes:
the network is away, and no event need tell when it is back.

Source: AWS Architecture Blog, "Exponential Backoff And Jitter": full jitter spreads retries best.
"""

from __future__ import annotations

from random import Random

BASE_SECONDS = 0.5
CAP_SECONDS = 30.0
UNANSWERED_CAP_SECONDS = 2.0
UNANSWERED_SECONDS = 300.0
"""Time for which waits have the lower limit while nobody answers."""
SUCCESS_SECONDS = 60.0
"""An attempt that has lasted so long was a success: the next wait is short again."""


class Backoff:
    """Computes the waits between attempts.  Pure."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._tries = 0
        self._unanswered = 0.0

    def reset(self) -> None:
        """Begin again with short waits: what failed before says nothing about the next attempt."""
        self._tries = 0
        self._unanswered = 0.0

    def wait(self, lasted: float = 0.0, *, unanswered: bool = False) -> float:
        """Return the seconds to wait after an attempt that lasted ``lasted`` seconds.

        ``unanswered``: it failed, and nobody has answered.
        """
        if lasted >= SUCCESS_SECONDS:
            self.reset()
        cap = CAP_SECONDS
        if unanswered and self._unanswered < UNANSWERED_SECONDS:
            cap = UNANSWERED_CAP_SECONDS
        limit = min(cap, BASE_SECONDS * 2.0 ** min(self._tries, 16))
        if limit < cap:
            self._tries += 1
        seconds = self._rng.uniform(0.0, limit)
        if unanswered:
            self._unanswered += lasted + seconds
        return seconds
