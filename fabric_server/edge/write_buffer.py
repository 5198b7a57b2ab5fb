"""Joins the small writes of one turn of the event loop."""

from __future__ import annotations

import asyncio


class WriteBuffer:
    """Collects what is sent in one turn of the event loop and writes it at once."""

    __slots__ = ("_due", "_loop", "_pending", "_transport")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._pending: list[bytes] = []
        self._due = False

    def open(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def send(self, data: bytes) -> None:
        self._pending.append(data)
        if not self._due:
            self._due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write now what was sent; does nothing once closed."""
        self._due = False
        if self._pending and self._transport is not None:
            pending = self._pending
            self._transport.write(pending[0] if len(pending) == 1 else b"".join(pending))
            pending.clear()

    def close(self) -> None:
        """Drop what was not written: the connection is gone."""
        self._transport = None
        self._pending.clear()
