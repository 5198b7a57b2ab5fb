"""Notices what other processes change in the store, in less than a second."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from consumer.errors import StoreError
from fabric_server.backends.rows import Changes

log = logging.getLogger("fabric.store")


class Changing(Protocol):
    """The part of the store that is watched."""

    @property
    def revision_at_open(self) -> int: ...

    async def changes(self, since: int) -> Changes: ...


class Watch:
    """Asks the store every half second what has changed and tells each listener.

    Begins where the store was opened, so nothing that was read from it can be stale unnoticed.
    Listeners are called in the event loop and must not raise.
    """

    def __init__(
        self,
        store: Changing,
        listeners: Sequence[Callable[[Changes], None]],
        *,
        every: float = 0.5,
    ) -> None:
        self._store = store
        self._listeners = listeners
        self._every = every
        self._revision = store.revision_at_open
        self.problem: str | None = None
        """Why changes can't be seen at the moment."""

    async def run(self) -> None:
        """Until cancelled.  While the store is away it goes on asking."""
        while True:
            await self.look()
            await asyncio.sleep(self._every)

    async def look(self) -> None:
        """Once, now: what this process has just changed itself takes effect at once."""
        try:
            changes = await self._store.changes(self._revision)
        except StoreError as error:
            if self.problem is None:
                log.error("the store can't be watched", extra={"reason": str(error)})
            self.problem = str(error)
            return
        if self.problem is not None:
            log.info("the store is watched again")
            self.problem = None
        if changes.revision != self._revision:
            self._revision = changes.revision
            for listener in self._listeners:
                listener(changes)
