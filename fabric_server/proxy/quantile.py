"""What a share of the latest measurements did not exceed: exact, over a bounded window."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

MAX_SAMPLES = 200
"""Measurements; older ones are forgotten."""
MIN_SAMPLES = 20
"""With fewer nothing is told."""


class Window:
    __slots__ = ("_latest", "_sorted")

    def __init__(self) -> None:
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._latest)

    def add(self, value: float) -> None:
        """``value`` is a number, not NaN."""
        if len(self._latest) == MAX_SAMPLES:
            del self._sorted[bisect_left(self._sorted, self._latest.popleft())]
        self._latest.append(value)
        insort(self._sorted, value)

    def quantile(self, share: float) -> float | None:
        """The smallest measurement that at least ``share`` of them do not exceed, 0 < share ≤ 1;
        None while there are too few."""
        count = len(self._sorted)
        if count < MIN_SAMPLES:
            return None
        return self._sorted[math.ceil(share * count) - 1]
