"""A request's body while it arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from fabric_server.auth.keys import Key
from fabric_server.dialects.errors import ApiError
from fabric_server.dialects.large_body import LargeBody, LargeForm
from fabric_server.net.memory_budget import NOBODY, UNCOUNTED, Holding, MemoryBudget

READ_AHEAD = 256 * 1024
"""Bytes taken from the socket before a handler has asked for them, once the request's key is
known; before, ``UNCOUNTED``."""


Preparation = Callable[[Key], Awaitable[None]]
"""Reads a body, and puts another one back; raises ``ApiError`` to refuse the request."""


class Connection(Protocol):
    """Parts of its connection that a body needs."""

    @property
    def memory(self) -> MemoryBudget: ...
    def want_body(self) -> None: ...


class Body:
    """The bytes of a request's body, in the order in which they arrive.

    The connection adds to it while the handler takes from it.  The connection reads on only when
    somebody waits for data, so what is buffered is bounded.

    What was received and not ``passed_on`` is held, by the body or its handler, and counted in the
    connection's memory budget until ``release``.
    """

    __slots__ = ("_beside", "_connection", "_data", "_holding", "_waiter", "complete",
                 "discarded", "error", "key", "length", "passed_on", "preparations", "reader",
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
        self.passed_on = 0
        """Bytes that its handler has taken and holds no more."""
        self.replay_buffer = b""
        """Bytes that were taken and may be needed for another attempt, until an engine has begun
        to answer."""
        self.reader: LargeBody | LargeForm | None = None
        """Reads a large body, and holds what has not been taken of it."""
        self.key = NOBODY
        """Id of the key whose request it is, once that is known: ``owned_by``."""
        self._holding: Holding | None = None
        self._beside = 0
        """Bytes that its handler holds beside it."""
        self.preparations: tuple[Preparation, ...] = ()
        """What is done to it, in order, once its key's limits have let the request begin."""

    @property
    def read_ahead(self) -> int:
        """Bytes that may be taken from the socket before a handler has asked for them."""
        return READ_AHEAD if self.key else UNCOUNTED

    @property
    def flowing(self) -> LargeBody | None:
        """The reader of what is still to be taken, if ``replay_buffer`` has only the beginning."""
        reader = self.reader
        if reader is None:  # as for nearly all
            return None
        return reader if isinstance(reader, LargeBody) and reader.flows else None

    @property
    def _free(self) -> int:
        """Bytes of the body that may be held without counting more."""
        holding = self._holding
        if holding is None or not holding.counted:
            return UNCOUNTED
        return holding.counted - self._beside

    @property
    def buffered(self) -> int:
        return len(self._data)

    def take(self) -> bytes:
        """Return the bytes that have arrived since the last call."""
        data = bytes(self._data)
        self._data.clear()
        return data

    async def take_all(self) -> bytes:
        """Return all that has not been taken, when it has arrived.  Raises ``ApiError`` as ``more``
        does."""
        return self.take() if self.complete else await self._take_rest()

    async def _take_rest(self) -> bytes:
        pieces = bytearray(self.take())
        while not self.complete:
            await self.more()
            pieces += self.take()
        return bytes(pieces)

    async def more(self) -> None:
        """Wait until there is something to take, or the body is complete.

        Raises ``ApiError`` when the body is too large or too slow, or when what the key's requests
        hold, or all, is too much: nothing more is read then.
        """
        while not self._data and not self.complete:
            if self.error is not None:
                raise self.error
            self._waiter = asyncio.get_running_loop().create_future()
            self._connection.want_body()
            await self._waiter
        if self.received - self.passed_on > self._free:
            self.hold(0)

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

    # ── the memory that it takes ──────────────────────────────────────────────────────────────

    def owned_by(self, key: str) -> None:
        """Count what is held for the key with this id; call it when the request's key is known.

        Raises ``ApiError`` as ``hold`` does.
        """
        self.key = key
        if self._holding is not None:
            self._holding.move(key)
        elif self.received > UNCOUNTED:
            self.hold(0)

    def hold(self, more: int) -> None:
        """Count what is held now, and ``more`` bytes that its handler holds beside it.

        Raises ``ApiError``: 429 when the key's requests hold too much, 503 when all do.
        """
        if self._holding is None:
            self._holding = self._connection.memory.open(self.key)
        self._beside += more
        self._holding.reach(self.received - self.passed_on + self._beside)

    def forget(self) -> None:
        """Drop what was kept for another attempt: an engine answers."""
        self.replay_buffer = b""
        if self.complete:
            self.release()

    def release(self) -> None:
        """Count nothing any more; call it once nothing of the body is held, however often."""
        if self._holding is not None:
            self._holding.release()
            self._beside = 0

    def drop(self) -> None:
        """Let go of all that is held, at the request's end.

        Tracebacks and callbacks make circles with the body, so it may be long until the garbage
        collector comes round to it.
        """
        self._data.clear()
        self.replay_buffer, self.preparations = b"", ()
        if self.reader is not None:
            self.reader.drop()
        self.release()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
