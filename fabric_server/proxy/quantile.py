"""Exact quantiles over a bounded window of the latest measurements."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

MAX_SAMPLES = 200
"""Measurements in a window; older ones are forgotten."""
MIN_SAMPLES = 20
"""Measurements without which there is no quantile."""


class Window:
    """A sliding window of measurements, kept in order of time and of size."""

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
        """Return the smallest measurement that at least ``share`` of them do not exceed.

        0 < share ≤ 1; None while there are too few.
        """
        count = len(self._sorted)
        if count < MIN_SAMPLES:
            return None
        return self._sorted[math.ceil(share * count) - 1]
