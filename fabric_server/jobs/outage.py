"""Log lines about a store that is away: one when it begins, not one at each attempt."""

from __future__ import annotations

import logging

from runtime.errors import BackendError


class OutageLog:
    """Logs each new problem once, and the recovery where ``recovered_event`` is given."""

    def __init__(self, log: logging.Logger, event: str, recovered_event: str = "") -> None:
        self._log = log
        self._event = event
        self._recovered_event = recovered_event
        self._problem = ""

    @property
    def ongoing(self) -> bool:
        return bool(self._problem)

    def failed(self, error: BackendError) -> None:
        """Log the error, unless it is the same as the last."""
        if str(error) != self._problem:
            self._problem = str(error)
            self._log.warning(self._event, extra={"reason": self._problem})

    def recovered(self) -> None:
        """End the outage, if there is one."""
        if self._problem:
            self._problem = ""
            if self._recovered_event:
                self._log.info(self._recovered_event)
