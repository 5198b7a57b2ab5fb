"""Large bodies are read in slices, which together get half of the loop's time: others go on.

What nobody wants of refused ones is read more slowly.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Protocol
from weakref import WeakKeyDictionary

from fabric_server.dialects.json_scanner import SLICE

SECONDS = 0.002
"""How long readers work, all together, before others have their turn."""
SHARE = 0.5
"""Of the loop's time, for all readers of large bodies together."""

UNWANTED_RATE = 64 * 2**20
"""Bytes a second that are read only to be thrown away, of all connections together."""


class Reader(Protocol):
    """A reader of a body, which takes its pieces in order."""

    def feed(self, data: bytes) -> None: ...


class LoopShare:
    """Gives turns to the readers of large bodies on one event loop, one after the other.

    A token bucket of seconds: each slice takes the time that it took, and the next one waits while
    the bucket is empty.  So the work of many bodies delays others no longer than that of one.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = monotonic
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._seconds = SECONDS
        self._at = clock()
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def feed(self, reader: Reader, data: bytes) -> None:
        for start in range(0, len(data), SLICE):
            if self._waiting or self._refill() <= 0:
                await self._wait()
            began = self._clock()
            try:
                reader.feed(data[start : start + SLICE])
            finally:
                self._seconds -= self._clock() - began

    async def _wait(self) -> None:
        turn = self._loop.create_future()
        self._waiting.append(turn)
        if len(self._waiting) == 1:
            self._grant_later()
        await turn

    def _grant_later(self) -> None:
        """Grant a turn once the bucket has something; afterwards the next, until nobody waits."""
        missing = -self._refill()
        if missing < 0:
            self._loop.call_soon(self._grant)
        else:
            self._loop.call_later(missing / SHARE, self._grant)

    def _grant(self) -> None:
        if self._refill() > 0:
            turn = self._waiting.popleft()
            if not turn.done():  # its request was cancelled
                turn.set_result(None)
        if self._waiting:
            # After the reader that has its turn now: its work counts by then.
            self._loop.call_soon(self._grant_later)

    def _refill(self) -> float:
        now = self._clock()
        self._seconds = min(SECONDS, self._seconds + (now - self._at) * SHARE)
        self._at = now
        return self._seconds


class UnwantedBytes:
    """Gives turns to connections whose rest is thrown away, so that all keep to ``UNWANTED_RATE``.

    Their clients are still sending, and could not read their answers if they were cut off.
    """

    def __init__(self) -> None:
        self._free_at = 0.0

    def next_turn(self, size: int, now: float) -> float:
        """Return when one that has just read ``size`` bytes may read on, in the loop's time."""
        self._free_at = max(self._free_at, now) + size / UNWANTED_RATE
        return self._free_at


_shares: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopShare] = WeakKeyDictionary()


async def feed_slices(reader: Reader, data: bytes) -> None:
    """Feed ``data`` to the reader, as its turns come; what that raises ends it."""
    loop = asyncio.get_running_loop()
    share = _shares.get(loop)
    if share is None:
        share = _shares[loop] = LoopShare(loop)
    await share.feed(reader, data)
