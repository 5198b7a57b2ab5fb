"""A request's body while it arrives."""

from __future__ import annotations

import asyncio
from typing import Protocol

from fabric_server.dialects.errors import ApiError


class Connection(Protocol):
    """The one method that a body needs of its connection."""

    def want_body(self) -> None: ...


class Body:
    """The bytes of a request's body, in the order in which they arrive.

    The connection adds to it while the handler takes from it.  The connection reads on only when
    somebody waits for data, so what is buffered is bounded.
    """

    __slots__ = ("_connection", "_data", "_waiter", "complete", "discarded", "error", "length",
                 "received", "replay_buffer")  # fmt: skip

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._data = bytearray()  # not a list of chunks: a chunk may be one byte
        self._waiter: asyncio.Future[None] | None = None
        self.length: int | None = None
        """Bytes announced; None for a chunked body."""
        self.received = 0
        self.complete = False
        self.discarded = False
        """The bytes that still come are thrown away."""
        self.error: ApiError | None = None
        """Why the rest will not come."""
        self.replay_buffer = b""
        """Bytes that were taken and may be needed for another attempt, until an engine has begun
        to answer."""

    @property
    def buffered(self) -> int:
        return len(self._data)

    def take(self) -> bytes:
        """Return the bytes that have arrived since the last call."""
        data = bytes(self._data)
        self._data.clear()
        return data

    async def more(self) -> None:
        """Wait until there is something to take, or the body is complete.

        Raises ``ApiError`` when the body is too large or too slow.
        """
        while not self._data and not self.complete:
            if self.error is not None:
                raise self.error
            self._waiter = asyncio.get_running_loop().create_future()
            self._connection.want_body()
            await self._waiter

    def put_back(self, data: bytes) -> None:
        """Put ``data`` in front, to be taken again; it may differ from what was taken."""
        self._data[:0] = data

    def add(self, data: bytes) -> None:
        self.received += len(data)
        if not self.discarded:
            self._data += data
            self._wake()

    def end(self, error: ApiError | None = None) -> None:
        """Mark the body as complete, or as broken off because of ``error``."""
        self.error = error
        self.complete = error is None
        self._wake()

    def discard(self) -> None:
        """Throw away what is buffered and what still comes."""
        self.discarded = True
        self._data.clear()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
