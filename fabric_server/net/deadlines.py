"""Deadlines checked by one periodic tick, instead of a timer for each connection and request.

A connection or request sets ``deadline`` (event-loop seconds, ``inf`` for none) as often as it
likes, at the cost of an attribute; a few times a second all are checked.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

log = logging.getLogger("fabric.deadlines")

TICK_SECONDS = 0.25
NEVER = float("inf")


class Waiting(Protocol):
    """An object with a deadline."""

    deadline: float

    def expire(self, now: float) -> None:
        """Handle the passed deadline; set a new one, or ``expire`` is not called again."""


class Deadlines:
    """The objects whose deadlines are checked."""

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
        """Check all deadlines periodically, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.check(loop.time())
