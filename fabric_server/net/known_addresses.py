"""The addresses from which somebody known connects, or did until lately.

A valid key or a node's registration makes a connection known.  The kernel must not block such an
address, whatever else comes from there: an office, or a provider's customers, may share it.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable

SECONDS = 3600.0
"""How long an address stays known after its last known connection was closed."""
MAX_LEFT = 65_536
"""Addresses without a connection that are remembered: those whose users left last."""


class KnownAddresses:
    """Known connections of all ports, by ``addresses.origin_of``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` gives monotonic seconds."""
        self._clock = clock
        self._open: Counter[str] = Counter()
        self._left: OrderedDict[str, float] = OrderedDict()

    def __repr__(self) -> str:
        return f"<KnownAddresses open={len(self._open)} left={len(self._left)}>"

    def __contains__(self, origin: str) -> bool:
        left = self._left.get(origin)
        return origin in self._open or (left is not None and self._clock() < left + SECONDS)

    def opened(self, origin: str) -> None:
        self._open[origin] += 1

    def closed(self, origin: str) -> None:
        self._open[origin] -= 1
        if self._open[origin]:
            return
        del self._open[origin]
        self._left[origin] = self._clock()
        self._left.move_to_end(origin)
        if len(self._left) > MAX_LEFT:
            self._left.popitem(last=False)
