"""How many requests may be tried again: a share of all, so that retries never become the load."""

from __future__ import annotations

SHARE = 0.1
RESERVE = 10.0


class RetryBudget:
    """Each request earns a tenth of a retry, up to ``RESERVE`` retries; each retry costs one.

    When nodes fail one by one that is plenty; when all fail at once, users are told at once.
    """

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = RESERVE

    @property
    def allows(self) -> bool:
        return self._left >= 1.0

    def earn(self) -> None:
        self._left = min(RESERVE, self._left + SHARE)

    def spend(self) -> None:
        self._left -= 1.0
