"""Joins the small writes of one turn of the event loop."""

from __future__ import annotations

import asyncio

from fabric_server.dialects.errors import ApiError
from fabric_server.net.memory_budget import NOBODY, Holding

ON_ITS_WAY = 256 * 1024
"""Bytes of an answer that still come when its client stops reading: a stream's credit."""


class WriteBuffer:
    """Collects what is sent in one turn of the event loop and writes it at once."""

    __slots__ = ("_due", "_loop", "_pending", "_transport", "reader", "unread")

    def __init__(self, loop: asyncio.AbstractEventLoop, unread: Holding) -> None:
        """``unread`` is empty; it gets what waits for a client that does not read."""
        self._loop = loop
        self.unread = unread
        self.reader = NOBODY
        """Id of the key whose answers are written."""
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

    def count_unread(self) -> bool:
        """Count what waits for the client as held; False when there is no room for it."""
        size = 0 if self._transport is None else self._transport.get_write_buffer_size()
        try:
            self.unread.move(self.reader)
            self.unread.reach(size + ON_ITS_WAY)
        except ApiError:
            return False
        return True

    def close(self) -> None:
        """Drop what was not written: the connection is gone."""
        self._transport = None
        self._pending.clear()
        self.unread.release()
