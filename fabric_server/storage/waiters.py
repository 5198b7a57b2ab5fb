"""Waiting at a bus: the consumer for more records, publishers until their records are stored."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence


class Waiters:
    """Futures of one event loop.  Positions only grow; there is one for each topic."""

    def __init__(self) -> None:
        self.flushing = False
        """Something waits in ``committed``: the consumer should not wait for more records."""
        self._missing = 0  # records until the consumer is woken; below, none waits
        self._consumer: asyncio.Future[None] | None = None
        self._publishers: list[tuple[tuple[int, ...], asyncio.Future[None]]] = []

    def on_record(self) -> None:
        """Count one more record that can be taken."""
        self._missing -= 1
        if self._missing == 0:
            self._wake()

    async def records(self, missing: int, seconds: float) -> None:
        """Wait until so many more records are there, a flush is requested, or the time is up."""
        self._missing = missing
        loop = asyncio.get_running_loop()
        self._consumer = loop.create_future()
        timer = loop.call_later(seconds, self._wake)
        try:
            await self._consumer
        finally:
            timer.cancel()
            self._consumer = None

    async def committed(self, positions: Sequence[int]) -> None:
        """Wait until these positions are committed; request a flush.  Cancelled by ``close``."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._publishers.append((tuple(positions), future))
        self.flushing = True
        self._wake()
        await future

    def on_commit(self, positions: Sequence[int]) -> None:
        """All before these positions is stored."""
        still = []
        for wanted, future in self._publishers:
            if future.done():  # its caller was cancelled
                continue
            if is_committed(wanted, positions):
                future.set_result(None)
            else:
                still.append((wanted, future))
        self._publishers = still
        self.flushing = bool(still)

    def close(self) -> None:
        for _, future in self._publishers:
            future.cancel()
        self._publishers.clear()

    def _wake(self) -> None:
        if self._consumer is not None and not self._consumer.done():
            self._consumer.set_result(None)


def is_committed(wanted: Sequence[int], committed: Sequence[int]) -> bool:
    return all(w <= c for w, c in zip(wanted, committed, strict=True))
