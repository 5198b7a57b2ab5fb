"""Queued requests, and the limits and figures of their queues."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fabric_server.nodes.node import Engine
from fabric_server.routing.criteria import Requirements


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Limits of each model's queue."""

    length: int
    """Requests that may wait for one model."""
    length_per_key: int
    """Requests of one key among them."""
    timeout: float
    """Seconds that a request may wait."""


class Waiter:
    """A queued request."""

    __slots__ = ("future", "request_id", "requirements", "since")

    def __init__(
        self,
        requirements: Requirements,
        since: float,
        request_id: str,
        future: asyncio.Future[Engine],
    ) -> None:
        self.requirements = requirements
        self.since = since
        """Event-loop seconds."""
        self.request_id = request_id
        self.future = future


@dataclass(frozen=True, slots=True)
class QueueStats:
    """Figures of one model's queue."""

    model: str
    length: int
    by_priority: tuple[int, ...]
    keys: int
    oldest: float
    """Seconds that the oldest request has waited."""
    slots: int
    """Slots of the engines that may serve it."""
    service: float
    """Seconds that an answer takes on average."""
    estimate: float | None
    """Seconds that one more request would wait at most; None when no engine may serve it."""


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """One request's place in the queue."""

    waiter: Waiter
    position: int
    """1 is next."""
    waited: float
    estimate: float | None
