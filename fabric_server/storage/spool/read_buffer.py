"""The records of a log that are in memory, to be taken next."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

R = TypeVar("R")


class ReadBuffer(Generic[R]):
    """Decoded records from position ``taken`` to ``loaded``."""

    __slots__ = ("_ends", "_max_bytes", "_records", "loaded", "taken")

    def __init__(self, position: int, max_bytes: int) -> None:
        self.taken = position
        self.loaded = position
        self._max_bytes = max_bytes
        self._records: deque[R] = deque()
        self._ends: deque[int] = deque()  # the position behind each record

    def add(self, record: R, start: int, end: int) -> bool:
        """Add a record just published; False when it has to be read back from disk later."""
        if self.loaded != start or start - self.taken > self._max_bytes:
            return False
        self._records.append(record)
        self._ends.append(end)
        self.loaded = end
        return True

    def fill(self, records: list[R], ends: list[int], loaded: int) -> None:
        """Add records read back, with the positions behind them."""
        self._records += records
        self._ends += ends
        self.loaded = loaded

    def take(self, limit: int) -> list[R]:
        records, ends = self._records, self._ends
        if len(records) <= limit:
            taken = list(records)
            records.clear()
            ends.clear()
            # Also behind damage, or frames of another release, that came after the last record.
            self.taken = self.loaded
            return taken
        taken = [records.popleft() for _ in range(limit)]
        for _ in taken:
            self.taken = ends.popleft()
        return taken

    def drop_until(self, position: int) -> int:
        """Drop what is before that position; return the number of records."""
        count = 0
        while self._ends and self._ends[0] <= position:
            self._ends.popleft()
            self._records.popleft()
            count += 1
        self.loaded = max(self.loaded, position)
        self.taken = max(self.taken, position)
        return count
