"""Paces attempts to reach the server; a change of the network cuts waits and attempts short."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from random import Random

from fabric_client.registration.backoff import Backoff

REPEAT_SECONDS = 60.0
"""Time before a failure that goes on for the same reason is told again."""
SHORT_SECONDS = 10.0
"""What lasted longer was connected, so its end is told in any case."""
_CHANGED = "the network has changed"


class NetworkSignal:
    """Tells everything that waits for the server that the network has changed."""

    def __init__(self) -> None:
        self.changes = 0
        self._waiting: set[asyncio.Timeout] = set()

    def changed(self) -> None:
        """End all that waits now."""
        self.changes += 1
        now = asyncio.get_running_loop().time()
        waiting, self._waiting = self._waiting, set()
        for timeout in waiting:
            timeout.reschedule(now)

    @contextlib.asynccontextmanager
    async def interrupts(self) -> AsyncIterator[None]:
        """End the block with TimeoutError when the network changes."""
        try:
            async with asyncio.timeout(None) as timeout:
                self._waiting.add(timeout)
                try:
                    yield
                finally:
                    self._waiting.discard(timeout)
        except TimeoutError:
            if timeout.expired():
                raise TimeoutError(_CHANGED) from None
            raise


class Pace:
    """The waits between the attempts at one connection."""

    def __init__(self, rng: Random, signal: NetworkSignal) -> None:
        self._backoff = Backoff(rng)
        self._signal = signal
        self._seen = signal.changes
        self._told = ""
        self._told_at = float("-inf")

    def log_level(self, reason: str, lasted: float) -> int:
        """Return the level at which to log a failure: one that only goes on is of no interest.

        Nor is an attempt that a change of the network has ended: the change itself is logged.
        """
        if reason == _CHANGED:
            return logging.DEBUG
        now = asyncio.get_running_loop().time()
        repeats = reason == self._told and now - self._told_at < REPEAT_SECONDS
        if repeats and lasted < SHORT_SECONDS:
            return logging.DEBUG
        self._told, self._told_at = reason, now
        return logging.WARNING

    def next_wait(self, lasted: float, *, unanswered: bool = False) -> float:
        """Return the seconds until the next attempt, as ``Backoff.wait``."""
        self._notice_change()
        return self._backoff.wait(lasted, unanswered=unanswered)

    async def sleep(self, seconds: float) -> None:
        """Wait so long; after a change of the network, only as long as nodes must be spread."""
        with contextlib.suppress(TimeoutError):
            async with self._signal.interrupts():
                await asyncio.sleep(seconds)
        if self._notice_change():
            await asyncio.sleep(self._backoff.wait())

    def _notice_change(self) -> bool:
        changed = self._seen != self._signal.changes
        if changed:
            self._seen = self._signal.changes
            self._backoff.reset()
        return changed
