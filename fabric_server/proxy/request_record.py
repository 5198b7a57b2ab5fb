"""What is known of a request so far; when it is over, that becomes its ledger entry."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import time
from typing import Any

from fabric_server.auth.keys import Key
from fabric_server.dialects.errors import ApiError
from fabric_server.edge.request import Request
from fabric_server.metering.openai import Usage
from fabric_server.proxy.attempt import Attempt
from ledger.records import LedgerEntry

MAX_ROUTE = 200
"""Characters of a route that the ledger keeps."""


@dataclass(slots=True, eq=False)
class RequestRecord:
    key: Key
    request: Request
    task: asyncio.Task[Any] | None
    """Which answers it."""
    model: str = ""
    stream: bool = False
    engine: str | None = None
    node_id: str | None = None
    route: str = ""
    """Why the engine was chosen."""
    attempts: int = 0
    continued: int = 0
    """How many times the answer went on at another node."""
    queued: float = 0.0
    """Seconds waited for slots, all attempts together."""
    first_byte_at: float | None = None
    """Event-loop seconds."""
    outcome: str = "failed"
    error: str | None = None
    usage: Usage | None = None
    exchange: Attempt | None = None
    """The attempt under way."""
    cut: ApiError | None = None
    """Why it may not go on."""
    recorded: bool = False
    """It is in the ledger."""

    def asks(self, exchange: Attempt) -> None:
        """Whose answer is waited for now."""
        self.exchange, self.route = exchange, exchange.route
        self.node_id, self.engine = exchange.engine.node.id, exchange.engine.name

    def end(self, refusal: ApiError) -> None:
        """It may not go on, wherever it is: waiting for its body, in line, or answered already in
        part."""
        if self.cut is not None or self.recorded:
            return
        self.cut = refusal
        if self.exchange is not None:
            self.exchange.cut(refusal)
        elif self.task is not None:
            self.task.cancel()

    def entry(self, now: float) -> LedgerEntry:
        """``now`` in event-loop seconds."""
        request = self.request
        total = now - request.arrived
        first = self.first_byte_at
        usage = self.usage or Usage()
        return LedgerEntry(
            request_id=request.id,
            at=time() - total,
            account=self.key.account,
            key_id=self.key.id,
            node_id=self.node_id,
            engine=self.engine,
            model=self.model,
            path=request.path,
            stream=self.stream,
            status=request.response.status,
            outcome=self.outcome,
            error=self.error,
            attempts=self.attempts,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            queue_ms=self.queued * 1000,
            first_byte_ms=None if first is None else (first - request.arrived) * 1000,
            total_ms=total * 1000,
            bytes_in=request.body.received,
            bytes_out=request.response.bytes_out,
            route=self.route[:MAX_ROUTE],
            continued=self.continued,
        )
