"""The retry budget: retries are a share of all requests, so that they never become the load."""

from __future__ import annotations

SHARE = 0.1
"""Retries earned by each request."""
RESERVE = 10.0
"""Retries that can be saved up."""


class RetryBudget:
    """Each request earns ``SHARE`` of a retry, up to ``RESERVE`` retries; each retry costs one.

    That is enough when nodes fail one by one; when all fail at once, clients get errors at once.
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
