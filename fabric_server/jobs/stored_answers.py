"""Storing of answers, shared by the handlers of responses and of chat completions."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fabric_server.auth.keys import Key
from fabric_server.edge.request import Request
from fabric_server.edge.router import Handler
from fabric_server.jobs.files import DAY
from fabric_server.jobs.held_answer import HeldAnswer
from fabric_server.net.memory_budget import Holding, MemoryBudget
from fabric_server.storage.answers import OVERHEAD_BYTES, AnswerRow, AnswerStore, Kind
from runtime.errors import BackendError, RecordError

log = logging.getLogger("fabric.responses")

WRITE_SECONDS = 5.0
SLOW_SECONDS = 1.0
"""Seconds after which a failure of the store counts as one that clients have to wait for."""
RETRY_SECONDS = 10.0
"""Seconds after such a failure in which no client waits for the store, and nothing is stored."""
MAX_STORED = 4 * 2**20
"""Bytes of one stored answer with its input; SQLite has one writer, which all must wait for."""
MAX_INLINE = 1024 * 1024
"""Bytes that are read on the event loop; more are read in a thread."""
LOST: Mapping[Kind, str] = {
    "response": "a response was not stored",
    "chat": "a chat completion was not stored",
}
"""Log events."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StoredLimits:
    """Bounds of what is stored, and the time for which it is."""

    account_bytes: int
    """Bytes of all answers of an account."""
    days: float
    write_seconds: float = WRITE_SECONDS
    """Timeout for storing; the client waits for it, and gets its answer in any case."""

    @property
    def answer_bytes(self) -> int:
        """Bytes of one answer with its input."""
        return min(MAX_STORED, self.account_bytes - OVERHEAD_BYTES)


@dataclass(frozen=True, kw_only=True)
class NewAnswer:
    """An answer that is to be stored; see ``AnswerRow``."""

    account: str
    kind: Kind
    id: str
    given: bytes
    answer: bytes
    model: str = ""
    metadata: str = ""


class StoredAnswers:
    """Stores answers within their bounds, and finds them for their account."""

    def __init__(
        self,
        store: AnswerStore,
        memory: MemoryBudget,
        limits: StoredLimits,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.limits = limits
        self.clock = clock
        self.too_large = f"with its conversation it is larger than {limits.answer_bytes} bytes"
        self._memory = memory
        self._monotonic = monotonic
        self._retry_at: float | None = None
        """When the store is tried again; None while nobody waits for it in vain."""
        self._lost = 0
        """Answers that were not stored since it has failed."""

    # ── storing ───────────────────────────────────────────────────────────────────────────────

    def open(self, key: Key, size: int) -> Holding:
        """Count bytes that are kept for a row.  Raises ``ApiError``: 429 when the key's requests
        hold too much, 503 when all do."""
        holding = self._memory.open(key.id)
        holding.reach(size)
        return holding

    async def answer(
        self, request: Request, complete: Handler, store: Callable[[], Awaitable[None]]
    ) -> None:
        """Have ``complete`` answer, and ``store`` what is held of the answer before its end goes to
        the client."""
        try:
            await complete(request)
            if isinstance(request.response, HeldAnswer):
                await store()
        except asyncio.CancelledError:
            if isinstance(request.response, HeldAnswer):
                request.response.drop()
            raise
        finally:
            if isinstance(request.response, HeldAnswer):
                request.response.release()

    async def add(self, request: Request, new: NewAnswer) -> None:
        """Store an answer.  A failure is logged: the client has what it asked for.

        The store's failure is logged once, and nobody waits for it meanwhile but one answer in
        ``RETRY_SECONDS``.
        """
        kind, now = new.kind, self.clock()
        size = len(new.given) + len(new.answer) + len(new.metadata)
        if size > self.limits.answer_bytes:
            self.log_loss(request, kind, self.too_large)
            return
        row = AnswerRow(
            account=new.account,
            id=new.id,
            kind=kind,
            size=size,
            created_at=now,
            expires_at=now + self.limits.days * DAY,
            model=new.model,
            metadata=new.metadata,
            input=new.given,
            answer=new.answer,
        )
        began = self._monotonic()
        if self._retry_at is not None:
            if began < self._retry_at:
                self._lost += 1
                return
            self._retry_at = began + RETRY_SECONDS  # one tries, the others do not wait for it
        try:
            async with asyncio.timeout(self.limits.write_seconds):
                added = await self.store.add(row, max_bytes=self.limits.account_bytes)
        except RecordError as error:  # the store is there
            self._on_success()
            self.log_loss(request, kind, str(error))
        except TimeoutError:
            self._on_failure(request, kind, "the store took too long", slow=True)
        except BackendError as error:
            slow = self._monotonic() - began > SLOW_SECONDS
            self._on_failure(request, kind, str(error), slow=slow)
        except asyncio.CancelledError:
            if self._retry_at is not None:
                self._retry_at = began  # the next one tries
            raise
        else:
            self._on_success()
            if not added:
                self.log_loss(request, kind, "its id is stored already")

    def _on_failure(self, request: Request, kind: Kind, reason: str, *, slow: bool) -> None:
        if not self._lost:
            self.log_loss(request, kind, reason)
        self._lost += 1
        self._retry_at = self._monotonic() + RETRY_SECONDS if slow else None

    def _on_success(self) -> None:
        if self._lost:
            log.warning("answers are stored again", extra={"not_stored": self._lost})
        self._retry_at, self._lost = None, 0

    @staticmethod
    def log_loss(request: Request, kind: Kind, reason: str) -> None:
        """Log that an answer was not stored, and why."""
        log.warning(LOST[kind], extra={"request": request.id, "reason": reason})

    # ── reading ───────────────────────────────────────────────────────────────────────────────

    async def load(self, request: Request, key: Key, kind: Kind, id: str) -> AnswerRow | None:
        """Return the answer of this id of the key's account, counted as held by the request; None
        when there is none.

        Raises ``ApiError``: 429 or 503 when there is no memory for it.
        """
        now = self.clock()
        size = await self.store.size(key.account, kind, id, now)
        if size is None:
            return None
        request.body.hold(size)
        return await self.store.find(key.account, kind, id, now)


async def off_loop(size: int, work: Callable[..., T], *arguments: Any) -> T:
    """Return what ``work`` returns, called in a thread if it reads so many bytes."""
    if size <= MAX_INLINE:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)
