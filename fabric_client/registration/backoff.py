"""How long to wait before trying again: full jitter, so that nodes don't come back in step.

Source: the "full jitter" variant of exponential back-off, which spreads retries best.
"""

from __future__ import annotations

from random import Random

BASE_SECONDS = 0.5
CAP_SECONDS = 30.0
CALM_SECONDS = 60.0
"""What has lasted so long counts as success: the next wait is short again."""


class Backoff:
    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._tries = 0

    def wait(self, lasted: float = 0.0) -> float:
        """Seconds to wait after an attempt that lasted ``lasted`` seconds."""
        if lasted >= CALM_SECONDS:
            self._tries = 0
        most = min(CAP_SECONDS, BASE_SECONDS * 2.0 ** min(self._tries, 16))
        self._tries += 1
        return self._rng.uniform(0.0, most)
