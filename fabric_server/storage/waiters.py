"""Who waits at a bus: the one who takes, for more; others, until what they published is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence


class Waiting:
    """For the event loop of one thread.  Positions only grow; there is one for each topic."""

    def __init__(self) -> None:
        self.hurried = False
        """Somebody waits in ``until``: whoever takes should not wait for more."""
        self._missing = 0  # records until the one who sleeps is woken; below, nobody cares
        self._sleeper: asyncio.Future[None] | None = None
        self._settling: list[tuple[tuple[int, ...], asyncio.Future[None]]] = []

    def arrived(self) -> None:
        """One more record can be taken."""
        self._missing -= 1
        if self._missing == 0:
            self._wake()

    async def for_records(self, missing: int, seconds: float) -> None:
        """Returns when so many more have arrived, somebody hurries, or the time is up."""
        self._missing = missing
        loop = asyncio.get_running_loop()
        self._sleeper = loop.create_future()
        alarm = loop.call_later(seconds, self._wake)
        try:
            await self._sleeper
        finally:
            alarm.cancel()
            self._sleeper = None

    async def until(self, positions: Sequence[int]) -> None:
        """Returns when ``settle`` was told of these positions or later ones; hurries the taker.
        Cancelled by ``close``."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._settling.append((tuple(positions), future))
        self.hurried = True
        self._wake()
        await future

    def settle(self, positions: Sequence[int]) -> None:
        """All before these positions is stored."""
        still = []
        for wanted, future in self._settling:
            if future.done():  # cancelled: nobody waits for it any more
                continue
            if is_settled(wanted, positions):
                future.set_result(None)
            else:
                still.append((wanted, future))
        self._settling = still
        self.hurried = bool(still)

    def close(self) -> None:
        for _, future in self._settling:
            future.cancel()
        self._settling.clear()

    def _wake(self) -> None:
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)


def is_settled(wanted: Sequence[int], settled: Sequence[int]) -> bool:
    return all(w <= s for w, s in zip(wanted, settled, strict=True))
