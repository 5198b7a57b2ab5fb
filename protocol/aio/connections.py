"""All connections of a program, which may not end before they are closed."""

from __future__ import annotations

import asyncio

from protocol.aio.driver import Driver

LAST_FRAMES_SECONDS = 1.0
"""Time in which the peers may take the last frames, and close their sides."""


class Connections:
    """Connections that are open or being closed."""

    def __init__(self) -> None:
        self._open: set[Driver] = set()
        self._closed = asyncio.Event()

    def watch(self, driver: Driver) -> None:
        """Count the connection of a new driver until it is closed."""
        driver.among = self._open

    async def close(self) -> None:
        """Drop those that are open, and wait for those that are being closed, but not for long.

        An event loop that ends earlier leaves their sockets to the garbage collector.
        """
        for driver in list(self._open):
            driver.on_lost = self._on_lost
            if not driver.closed:
                driver.hang_up()
        self._on_lost()
        try:
            async with asyncio.timeout(LAST_FRAMES_SECONDS):
                await self._closed.wait()
        except TimeoutError:
            for driver in list(self._open):
                driver.hang_up()

    def _on_lost(self) -> None:
        if not self._open:
            self._closed.set()
