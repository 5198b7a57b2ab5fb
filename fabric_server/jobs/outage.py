"""Log lines of one part of the jobs while the store is away: one, not one at each attempt."""

from __future__ import annotations

import logging

from runtime.errors import BackendError
from runtime.outage import Outage


class OutageLog:
    """Hands each new problem on once; an outage of the store that all see has lines of its own."""

    def __init__(self, log: logging.Logger, event: str, outage: Outage | None) -> None:
        self._log = log
        self._event = event
        self._outage = outage or Outage("the store")
        self._told: tuple[str, int] | None = None
        """The problem, and how many outages were over when it was told."""

    @property
    def ongoing(self) -> bool:
        return self._told is not None

    def failed(self, error: BackendError) -> None:
        """Log the error, unless it is the same as the last and no outage has ended since."""
        problem = str(error), self._outage.over
        if problem != self._told:
            self._told = problem
            self._outage.note(self._log, self._event, reason=problem[0])

    def recovered(self) -> None:
        """End the outage, if there is one."""
        if self._told is not None:
            self._told = None
            self._log.debug("it is over", extra={"problem": self._event})
