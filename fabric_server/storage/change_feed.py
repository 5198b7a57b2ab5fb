"""Notices what other processes change in the store: at once when told, else within a second."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from fabric_server.storage.rows import Changes
from runtime.errors import BackendError

log = logging.getLogger("fabric.store")

LOOK_SECONDS = 2.0
"""A store that has not said in this time what has changed counts as away."""
TELL_SECONDS = 1.0


class Changing(Protocol):
    """The part of the store that is watched."""

    @property
    def revision_at_open(self) -> int: ...

    async def changes(self, since: int) -> Changes: ...

    async def writable(self) -> bool: ...


class Notices(Protocol):
    """How processes tell each other to look.  A notice may be lost: they look anyway, later."""

    async def tell(self) -> None:
        """Raises ``BackendError`` when it can't."""

    async def heard(self) -> None:
        """Returns when somebody has told since the last call; raises nothing."""


class ChangeFeed:
    """Asks the store what has changed, every half second and when told to, and tells each listener.

    Begins where the store was opened, so nothing that was read from it can be stale unnoticed.
    Listeners are called in the event loop and must not raise.
    """

    def __init__(
        self,
        store: Changing,
        listeners: Sequence[Callable[[Changes], None]],
        notices: Notices | None = None,
        every: float = 0.5,
        timeout: float = LOOK_SECONDS,
    ) -> None:
        self._store = store
        self._listeners = listeners
        self._notices = notices
        self._every = every
        self._timeout = timeout
        self._revision = store.revision_at_open
        self._looking = asyncio.Lock()
        self.problem: str | None = None
        """Why changes can't be seen at the moment."""
        self.read_only = False
        """Changes can be seen, and none can be made."""

    async def run(self) -> None:
        """Until cancelled.  While the store is away it goes on asking."""
        while True:
            await self._look()
            await self._pause()

    async def look(self) -> None:
        """Once, now, and the other processes too: what was just changed takes effect at once."""
        await self._look()
        if self._notices is None:
            return
        try:
            async with asyncio.timeout(TELL_SECONDS):
                await self._notices.tell()
        except (BackendError, TimeoutError) as error:  # they will see it by themselves
            reason = str(error) or "no answer"
            log.warning("the other servers could not be told to look", extra={"reason": reason})

    async def _look(self) -> None:
        try:
            # Waiting for whoever looks already is part of it: he waits for the same store.
            async with asyncio.timeout(self._timeout), self._looking:
                writable = await self._store.writable()
                changes = await self._store.changes(self._revision)
                # No await from here on, so what is told is told to the end and in order.
                self._is_writable(writable)
                self._seen(changes)
        except (BackendError, TimeoutError) as error:
            reason = str(error) or "it does not answer"
            if self.problem is None:
                log.error("the store can't be watched", extra={"reason": reason})
            self.problem = reason

    def _is_writable(self, writable: bool) -> None:
        if self.read_only and writable:
            log.info("the store can be written again")
        elif not self.read_only and not writable:
            log.error("the store is read-only: no key can be made and no node can register")
        self.read_only = not writable

    def _seen(self, changes: Changes) -> None:
        if self.problem is not None:
            log.info("the store is watched again")
            self.problem = None
        if changes.revision != self._revision:
            self._revision = changes.revision
            for listener in self._listeners:
                listener(changes)

    async def _pause(self) -> None:
        if self._notices is None:
            await asyncio.sleep(self._every)
            return
        try:
            async with asyncio.timeout(self._every):
                await self._notices.heard()
        except TimeoutError:
            pass
