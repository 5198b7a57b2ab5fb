"""The memory that clients make the server hold: bodies on their way in, and answers not yet read.

Each request counts what it holds in a ``Holding``, in coarse pieces, so that small requests cost
nothing.  A piece over the bound of a key or of all is refused before more is read:

    budget  1 GiB in all, 256 MiB a key
      key_a   |#######------|    Holding 3 MiB, Holding 12 MiB, …
      key_b   |#------------|    Holding 64 KiB
      ""      |-------------|    connections whose key is not known yet

What a connection costs in any case, up to ``UNCOUNTED`` bytes of a body, is bounded by the number
of connections and not counted here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from fabric_server.dialects import errors

UNCOUNTED = 16 * 1024
"""Bytes of a request that are not counted: a connection itself costs more."""
PIECE = 64 * 1024
"""Bytes that are counted at once."""
RETRY_AFTER = 2.0
"""Seconds after which a refused request may be sent again: others have got their answers."""
NOBODY = ""
"""Stands for the key of connections that have shown none yet."""


@dataclass(frozen=True, slots=True)
class BudgetLimits:
    """Bounds of a ``MemoryBudget``, in bytes."""

    in_all: int
    per_key: int


UNLIMITED = BudgetLimits(1 << 62, 1 << 62)


class MemoryBudget:
    """Bytes held for clients, by key; ``open`` a ``Holding`` for each request that holds some."""

    def __init__(self, limits: BudgetLimits = UNLIMITED) -> None:
        self.limits = limits
        """Bounds for what is counted from now on."""
        self.held = 0
        self.closed = False
        """The process itself has used nearly all of its memory: no request begins."""
        self.refused: Counter[str] = Counter({"per_key": 0, "in_all": 0, "process": 0})
        """Pieces refused, by the bound; of ``process``, requests."""
        self._by_key: dict[str, int] = {}
        """Only keys for which something is held."""

    def __repr__(self) -> str:
        return f"<MemoryBudget held={self.held} of={self.limits.in_all} keys={len(self._by_key)}>"

    def held_by(self, key: str) -> int:
        return self._by_key.get(key, 0)

    def admit(self) -> None:
        """Let a request begin.  Raises ``ApiError`` 503 while the budget is closed."""
        if self.closed:
            self.refused["process"] += 1
            raise errors.overloaded("The server has too little memory left.", RETRY_AFTER)

    def open(self, key: str) -> Holding:
        """Return an empty holding of the key; ``release`` it on every path."""
        return Holding(self, key)

    def take(self, key: str, size: int) -> None:
        """Count bytes.  Raises ``ApiError``: 429 for a key over its bound, 503 for all."""
        limits = self.limits
        mine = self._by_key.get(key, 0) + size
        if self.held + size > limits.in_all or (not key and mine > limits.per_key):
            self.refused["in_all"] += 1
            raise errors.overloaded("The server holds too much data of requests.", RETRY_AFTER)
        if mine > limits.per_key:
            self.refused["per_key"] += 1
            raise errors.too_much_held(limits.per_key, RETRY_AFTER)
        self._by_key[key] = mine
        self.held += size

    def give_back(self, key: str, size: int) -> None:
        """Count bytes that are held no more."""
        left = self._by_key[key] - size
        if left:
            self._by_key[key] = left
        else:
            del self._by_key[key]
        self.held -= size


class Holding:
    """The bytes that one request holds."""

    __slots__ = ("_budget", "_key", "counted")

    def __init__(self, budget: MemoryBudget, key: str) -> None:
        self._budget = budget
        self._key = key
        self.counted = 0
        """Bytes that the budget counts for it, in whole pieces."""

    def reach(self, size: int) -> None:
        """Count ``size`` bytes in all, if that is more than is counted.

        Raises ``ApiError`` as ``MemoryBudget.take`` does; what was counted still is.
        """
        if size > self.counted:
            pieces = -(-size // PIECE) * PIECE
            self._budget.take(self._key, pieces - self.counted)
            self.counted = pieces

    def move(self, key: str) -> None:
        """Count it for another key from now on.  Raises ``ApiError`` as ``reach`` does; it is empty
        then."""
        counted = self.counted
        self.release()
        self._key = key
        self.reach(counted)

    def release(self) -> None:
        """Give everything back; the holding is empty then, and may be used again."""
        counted, self.counted = self.counted, 0
        if counted:
            self._budget.give_back(self._key, counted)
