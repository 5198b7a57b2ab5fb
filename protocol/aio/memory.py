"""Two protocols joined without a socket: for tests, and for a node inside the server's process."""

from __future__ import annotations

import asyncio
from typing import Any

from runtime.asyncio_protocol import AsyncioProtocol


class MemoryTransport(asyncio.Transport):
    """Transport that delivers to the other end in the next turn of the event loop."""

    def __init__(self, protocol: AsyncioProtocol, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._protocol = protocol
        self._loop = loop
        self._other: MemoryTransport | None = None
        self._closing = False

    def join(self, other: MemoryTransport) -> None:
        self._other, other._other = other, self

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if not self._closing and self._other is not None:
            self._loop.call_soon(self._other._receive, bytes(data))

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._finish)

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self._closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Do nothing: a memory transport has no buffer."""

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        raise NotImplementedError("tunnels and links never pause reading")

    def _receive(self, data: bytes) -> None:
        if not self._closing:
            self._protocol.data_received(data)

    def _finish(self) -> None:
        self._protocol.connection_lost(None)
        if self._other is not None and not self._other._closing:
            self._other._closing = True
            self._loop.call_soon(self._other._protocol.connection_lost, None)


def connect(
    a: AsyncioProtocol, b: AsyncioProtocol, loop: asyncio.AbstractEventLoop
) -> tuple[MemoryTransport, MemoryTransport]:
    """Connect two protocols; both have had ``connection_made`` when this returns."""
    left, right = MemoryTransport(a, loop), MemoryTransport(b, loop)
    left.join(right)
    a.connection_made(left)
    b.connection_made(right)
    return left, right
