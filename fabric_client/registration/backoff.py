"""Exponential back-off with full jitter, so that nodes don't reconnect in step.

Source: AWS Architecture Blog, "Exponential Backoff And Jitter": full jitter spreads retries best.
"""

from __future__ import annotations

from random import Random

BASE_SECONDS = 0.5
CAP_SECONDS = 30.0
SUCCESS_SECONDS = 60.0
"""An attempt that has lasted so long was a success: the next wait is short again."""


class Backoff:
    """Computes the waits between attempts.  Pure."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._tries = 0

    def wait(self, lasted: float = 0.0) -> float:
        """Return the seconds to wait after an attempt that lasted ``lasted`` seconds."""
        if lasted >= SUCCESS_SECONDS:
            self._tries = 0
        limit = min(CAP_SECONDS, BASE_SECONDS * 2.0 ** min(self._tries, 16))
        self._tries += 1
        return self._rng.uniform(0.0, limit)
