"""The most that a node sends of its answers: a token bucket that all of them share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol


class Bucket:
    """Pure.  What is spent beyond what it holds is owed, and paid back at ``rate`` a second."""

    def __init__(self, rate: float, *, now: float) -> None:
        """Holds one second's worth, and begins full."""
        self._rate = rate
        self._level = rate
        self._at = now

    def spend(self, count: int, now: float) -> None:
        """Whether or not it holds as much."""
        self._level = min(self._rate, self._level + (now - self._at) * self._rate) - count
        self._at = now

    def owes(self, now: float) -> float:
        """The seconds after which nothing is owed any more; 0 when nothing is."""
        return max(0.0, -self._level / self._rate - (now - self._at))


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
        self._bucket = Bucket(rate, now=clock())
        self._waiting: dict[Sender, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def allows(self, sender: Sender) -> bool:
        """False: ``sender`` is to send nothing until its ``may_send`` is called."""
        wait = self._bucket.owes(self._clock())
        if not wait:
            return True
        self._waiting[sender] = None
        self._wait(wait)
        return False

    def sent(self, count: int) -> None:
        self._bucket.spend(count, self._clock())

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
            wait = self._bucket.owes(self._clock())
            if wait:
                self._wait(wait)
                return
            sender = next(iter(self._waiting))
            del self._waiting[sender]
            sender.may_send()
