"""The clock by which all servers of one store judge leases: the store's own."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

MAX_DRIFT = 1.0
"""Seconds by which two readings may disagree with the time that passed between them."""


class LeaseClock:
    """Unix seconds by the store's clock, carried on by this machine's monotonic clock.

    So neither a server whose clock is wrong nor one whose clock is set takes jobs that run
    elsewhere, or keeps those of a lost server for ever.
    """

    def __init__(self, read: Callable[[], Awaitable[float]]) -> None:
        """``read`` asks the store for the time; until the first ``refresh``, it is ours."""
        self._read = read
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        return time.monotonic() + self._offset

    async def refresh(self) -> bool:
        """Read the store's clock; return whether it was set since.  Raises ``BackendError``."""
        offset = await self._read() - time.monotonic()
        moved = abs(offset - self._offset) > MAX_DRIFT
        self._offset = offset
        return moved
