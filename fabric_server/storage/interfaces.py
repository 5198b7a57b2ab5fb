"""The interfaces of caches and buses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

from ledger.batch_writer import Source

MAX_REVOKED = 20_000
"""Revocations that a cache remembers: the newest ones."""
KEEP_REVOKED_SECONDS = 400 * 86_400.0
"""How long it remembers them: no older backup is expected to be put back."""


class Cache(Protocol):
    """Keeps bytes for a while, perhaps shorter, and carries notices between processes.

    Raises ``BackendError`` when it can't.
    """

    async def get(self, name: str) -> bytes | None: ...

    async def set(self, name: str, value: bytes, seconds: float) -> None: ...

    async def revoked(self) -> dict[str, float]:
        """Return when keys and nodes were revoked, by their ids, as far as it is remembered."""

    async def add_revoked(self, revoked: Mapping[str, float]) -> None:
        """Remember revocations, perhaps only the newest ones (``MAX_REVOKED``)."""

    async def check(self) -> None:
        """Raise ``BackendError`` if values can't be read or written now."""

    async def notify(self) -> None:
        """Have all processes that share this cache poll the store now.  A notice may be lost."""

    async def wait_for_notice(self) -> None:
        """Return when a notice came since the last call, or one may have been missed.

        Raises nothing, and waits while the cache is away.  For one caller at a time; may be
        cancelled.
        """

    async def close(self) -> None: ...


class Bus(Source, Protocol):
    """Accepts records at once and keeps them for a ``ledger.batch_writer.BatchWriter``."""

    @property
    def waiting(self) -> Mapping[str, int]:
        """Records published and not yet taken, by topic."""

    @property
    def dropped(self) -> Mapping[str, int]:
        """Records lost for lack of space since the start, by topic."""

    @property
    def full(self) -> bool:
        """Accept no more requests: there is no space for their ledger entries."""

    @property
    def problem(self) -> str | None:
        """The reason, in one line, if records can't be held as they should be."""

    def publish(self, topic: str, record: Struct) -> None:
        """Never block and never raise; ``ledger.records`` names the topics."""

    async def close(self) -> None: ...
