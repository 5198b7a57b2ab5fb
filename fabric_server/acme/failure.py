"""A certificate that was not issued: why, and what to do."""

from __future__ import annotations

from random import Random

MINUTE, HOUR = 60.0, 3600.0
SHORT, LONG = (MINUTE, 15 * MINUTE), (5 * MINUTE, 6 * HOUR)
"""Pauses after the first failure and at most: for what the CA never saw, and for what it counts.
Let's Encrypt takes five failed checks of a name in an hour."""
AFTER_RATE_LIMIT = HOUR
MAX_REASON = 600
"""Characters of what a CA says that are kept."""


class AcmeFailure(Exception):
    """No certificate was issued; the text says why, and ``remedy`` what to do."""

    def __init__(self, code: str, reason: str, remedy: str) -> None:
        super().__init__(reason[:MAX_REASON])
        self.code = code
        """``unreachable``, ``port``, ``store``, ``files``, ``refused``, ``check``, ``rate_limited``
        or ``interrupted``."""
        self.remedy = remedy


def pause_after(failures: int, code: str, rng: Random) -> float:
    """Return how long to wait after so many failures in a row, the last of which has the code."""
    first, most = SHORT if code in ("unreachable", "port", "store", "files") else LONG
    seconds = min(first * 2.0 ** min(failures - 1, 20), most)
    if code == "rate_limited":
        seconds = max(seconds, AFTER_RATE_LIMIT)
    return seconds * rng.uniform(1.0, 1.25)
