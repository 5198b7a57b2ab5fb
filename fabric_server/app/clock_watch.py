"""Notices that this machine's clock was set, and has what depends on it looked at again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

log = logging.getLogger("fabric.server")

EVERY_SECONDS = 1.0
MIN_JUMP = 5.0
"""Seconds; a smaller one is the work of a time service, and less than what caches tolerate."""


class ClockWatch:
    """Compares the wall clock with the monotonic clock."""

    def __init__(
        self, on_jump: Sequence[Callable[[], object]], *, clock: Callable[[], float] = time.time
    ) -> None:
        """``on_jump`` are called after the clock was set, or the machine was asleep."""
        self._on_jump = on_jump
        self._clock = clock
        self._offset = clock() - time.monotonic()

    def check(self) -> bool:
        """Return whether the clock was set since the last call."""
        offset = self._clock() - time.monotonic()
        jump, self._offset = offset - self._offset, offset
        if abs(jump) < MIN_JUMP:
            return False
        log.warning(
            "the clock was set, or the machine was asleep: cached keys are looked up again",
            extra={"seconds": round(jump)},
        )
        for call in self._on_jump:
            call()
        return True

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            self.check()
