"""A limit on the bytes of answers that a node sends: one token bucket that all answers share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from protocol.token_bucket import TokenBucket

PIECE = 16 * 1024
"""Bytes that are sent at once when there is a limit."""


class Sender(Protocol):
    def may_send(self) -> None: ...


class UploadLimit:
    """The bucket, and who waits for it: one timer for all, none while nobody waits.

    Those who wait take no more from their engines, which feel it as a slow reader; they go on in
    turn, one piece each.
    """

    def __init__(
        self,
        rate: float,
        *,
        clock: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], asyncio.TimerHandle],
    ) -> None:
        self._clock = clock
        self._call_later = call_later
        self._bucket = TokenBucket(rate, rate, clock())
        self._waiting: dict[Sender, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def allows(self, sender: Sender) -> bool:
        """False: ``sender`` is to send nothing until its ``may_send`` is called."""
        wait = self._bucket.seconds_until(0, self._clock())
        if not wait:
            return True
        self._waiting[sender] = None
        self._wait(wait)
        return False

    def sent(self, count: int) -> None:
        self._bucket.take(count, self._clock())

    def forget(self, sender: Sender) -> None:
        self._waiting.pop(sender, None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self._call_later(seconds, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        while self._waiting:
            wait = self._bucket.seconds_until(0, self._clock())
            if wait:
                self._wait(wait)
                return
            sender = next(iter(self._waiting))
            del self._waiting[sender]
            sender.may_send()
