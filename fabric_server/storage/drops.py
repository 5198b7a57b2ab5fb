"""Counting and logging of records that a bus had to drop."""

from __future__ import annotations

import logging


class DropCounter:
    """Logs the first record dropped of a run at once, and the run's count when it is over."""

    def __init__(self, topic: str, log: logging.Logger) -> None:
        self.count = 0
        """Records dropped since the start."""
        self._topic = topic
        self._log = log
        self._logged = 0

    def add(self, count: int, **fields: object) -> None:
        """Count so many more; ``fields`` go with the log line."""
        if count and self.count == self._logged:
            self._log.error("records are being dropped", extra={"topic": self._topic, **fields})
        self.count += count

    def log_run(self) -> None:
        """Log how many were dropped since the last call, if any: records are taken again."""
        if self.count != self._logged:
            dropped = {"topic": self._topic, "count": self.count - self._logged}
            self._log.warning("records were dropped", extra=dropped)
            self._logged = self.count
