"""Refuses new requests before the kernel ends a server that has used up its memory."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import sys
from collections.abc import Callable

from fabric_server.net.machine_memory import resident
from fabric_server.net.memory_budget import MemoryBudget

log = logging.getLogger("fabric.server")

EVERY_SECONDS = 1.0
STOP_SHARE = 0.9
"""Of the limit; above it no request begins."""
GO_ON_SHARE = 0.8
"""Of the limit; below it requests begin again."""


class MemoryGuard:
    """Compares the memory of the process with its limit; closes and opens the budget."""

    def __init__(
        self,
        budget: MemoryBudget,
        limit: int,
        *,
        used: Callable[[], int | None] = resident,
        give_back: Callable[[], None] | None = None,
    ) -> None:
        """``used`` tells the bytes in use, or None where that is unknown: then nothing is refused.
        ``give_back`` returns to the system what is free within the process."""
        self._budget = budget
        self._limit = limit
        self._used = used
        self._give_back = give_back or return_free_memory

    def check(self) -> None:
        """Close the budget above the limit's share, and open it again well below."""
        used = self._used()
        if used is None:
            return
        if not self._budget.closed and used > self._limit * STOP_SHARE:
            self._budget.closed = True
            log.error(
                "the server has used nearly all of its memory: new requests are refused until it "
                "is less (lower connections, queue_length or bodies_limit, or raise memory_limit)",
                extra={"used": used, "limit": self._limit},
            )
        if self._budget.closed:
            self._give_back()
            used = self._used() or 0
            if used < self._limit * GO_ON_SHARE:
                self._budget.closed = False
                log.warning("requests are taken again", extra={"used": used, "limit": self._limit})

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            self.check()
            await asyncio.sleep(EVERY_SECONDS)


def return_free_memory() -> None:
    """Return free memory to the system: otherwise the allocator keeps what bodies once took, and
    the process looks full for ever."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
