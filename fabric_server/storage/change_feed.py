"""The feed of changes that other processes make in the store: polled, at once when notified."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from fabric_server.storage.rows import Changes
from runtime.errors import BackendError
from runtime.outage import Outages, unwatched

log = logging.getLogger("fabric.store")

POLL_SECONDS = 0.5
POLL_TIMEOUT_SECONDS = 2.0
"""A store that does not answer within this time counts as away."""
NOTIFY_SECONDS = 1.0
"""Longest time that notifying the other processes may take."""


_WITHOUT_WRITING = (
    "requests with known keys go on, and ledger entries wait in the spool; neither nodes register "
    "nor jobs begin, nor is anything changed"
)


class Store(Protocol):
    """The part of the store that is polled."""

    @property
    def revision_at_open(self) -> int: ...

    async def changes(self, since: int) -> Changes: ...

    async def writable(self) -> bool: ...


class Notices(Protocol):
    """Prompts between processes to poll now.  One may be lost: all poll anyway, later."""

    async def notify(self) -> None:
        """Prompt the other processes.  Raises ``BackendError`` when it can't."""

    async def wait_for_notice(self) -> None:
        """Return when a notice came since the last call; raises nothing."""


class ChangeFeed:
    """Polls the store every half second, and when notified, and passes changes to its listeners.

    It begins at the revision of the store when that was opened, so nothing read from the store can
    go stale unnoticed.  Listeners are called in the event loop and must not raise.
    """

    def __init__(
        self,
        store: Store,
        listeners: Sequence[Callable[[Changes], None]],
        notices: Notices | None = None,
        every: float = POLL_SECONDS,
        timeout: float = POLL_TIMEOUT_SECONDS,
        *,
        outages: Outages | None = None,
    ) -> None:
        """``notices`` are the cache's."""
        self._store = store
        self._listeners = listeners
        self._notices = notices
        self._every = every
        self._timeout = timeout
        self._revision = store.revision_at_open
        self._polling = asyncio.Lock()
        self._outage, self._notices_outage = outages or unwatched()
        self.problem: str | None = None
        """Why changes can't be seen at the moment."""
        self.read_only = False
        """True when changes can be seen but not made."""

    async def run(self) -> None:
        """Poll until cancelled, also while the store is away."""
        while True:
            await self._poll()
            await self._pause()

    async def sync(self) -> None:
        """Poll now, and notify the other processes: call it after making a change."""
        await self._poll()
        if self._notices is None:
            return
        try:
            async with asyncio.timeout(NOTIFY_SECONDS):
                await self._notices.notify()
        except (BackendError, TimeoutError) as error:  # they will see it when they poll next
            reason = str(error) or "no answer"
            event = "could not notify the other servers of a change"
            self._notices_outage.note(log, event, reason=reason)

    async def _poll(self) -> None:
        try:
            # Waiting for the lock counts: its holder waits for the same store.
            async with asyncio.timeout(self._timeout), self._polling:
                writable = await self._store.writable()
                changes = await self._store.changes(self._revision)
                # No await from here on, so that listeners get all changes, and in order.
                self._set_writable(writable)
                self._on_changes(changes)
        except (BackendError, TimeoutError) as error:
            self.problem = str(error) or "it does not answer"
            self._outage.failed("changes", self.problem)

    def _set_writable(self, writable: bool) -> None:
        self.read_only = not writable
        if writable:
            self._outage.worked("writing")
        else:
            self._outage.failed(
                "writing",
                "it is read-only: make it writable, or name the primary",
                state="read-only",
                meanwhile=_WITHOUT_WRITING,
            )

    def _on_changes(self, changes: Changes) -> None:
        self.problem = None
        self._outage.worked("changes")
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
                await self._notices.wait_for_notice()
        except TimeoutError:
            pass
