"""The log of requests that did not end well: who got which error, one line for many of a kind."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from ledger.records import LedgerEntry

log = logging.getLogger("fabric.requests")

WINDOW_SECONDS = 60.0
MAX_KINDS = 1000
"""Pairs of key and error that are counted apart in one window."""
_OTHERS = "", ""


@dataclass(slots=True)
class _Kind:
    began: float
    entry: LedgerEntry
    """The latest."""
    unsaid: int = 0
    """Requests since the last line."""


class FailureLog:
    """Logs the first request of a key that gets an error at once, and counts the others.

    There is one line at most for each key, error and minute, with the ``count`` of requests since
    the line before.  The counts are logged when their minute is over and another request of any
    key fails.  Clients that hang up are no failures.
    """

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], _Kind] = {}
        self._oldest = 0.0

    def add(self, entry: LedgerEntry, now: float) -> None:
        """Take in an entry whose outcome is not ``ok``; ``now`` is in event-loop seconds."""
        if entry.outcome == "cancelled" and entry.error is None:
            return
        if now - self._oldest >= WINDOW_SECONDS:
            self._end_windows(now)
        name = entry.key_id, entry.error or entry.outcome
        if name not in self._kinds and len(self._kinds) >= MAX_KINDS:
            name = _OTHERS
        kind = self._kinds.get(name)
        if kind is None:
            self._kinds[name] = _Kind(now, entry)
            _say(name, entry, 1)
        else:
            kind.unsaid += 1
            kind.entry = entry

    def _end_windows(self, now: float) -> None:
        """Log the counts of the windows that are over, and forget those in which nothing came."""
        for name, kind in list(self._kinds.items()):
            if now - kind.began < WINDOW_SECONDS:
                continue
            if kind.unsaid:
                _say(name, kind.entry, kind.unsaid)
                kind.began, kind.unsaid = now, 0
            else:
                del self._kinds[name]
        self._oldest = min((kind.began for kind in self._kinds.values()), default=now)


def _say(name: tuple[str, str], entry: LedgerEntry, count: int) -> None:
    """Log a request that stands for ``count`` of its kind."""
    message = "requests refused" if entry.outcome == "refused" else "requests failed"
    log.info(
        f"{message}, of keys that are not listed one by one" if name == _OTHERS else message,
        extra={
            "key": entry.key_id,
            "account": entry.account,
            "code": entry.error or entry.outcome,
            "status": entry.status,
            "model": entry.model,
            "node": entry.node_id,
            "request": entry.request_id,
            "count": count,
        },
    )
