"""One clock tick for everything that may take too long, instead of a timer for each.

A connection or request that waits sets ``deadline`` (event-loop seconds, ``inf`` for none) as often
as it likes, which costs an attribute; a few times a second all are looked at.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

log = logging.getLogger("fabric.deadlines")

TICK_SECONDS = 0.25
NEVER = float("inf")


class Waiting(Protocol):
    deadline: float

    def expire(self, now: float) -> None:
        """The deadline has passed.  Set a new one, or be looked at no more."""


class Deadlines:
    def __init__(self) -> None:
        self._waiting: set[Waiting] = set()
        self.add = self._waiting.add
        self.discard = self._waiting.discard

    def check(self, now: float) -> None:
        late = [waiting for waiting in self._waiting if waiting.deadline <= now]
        for waiting in late:
            waiting.deadline = NEVER
            try:
                waiting.expire(now)
            except Exception:
                log.exception("a deadline's handler failed")

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.check(loop.time())
