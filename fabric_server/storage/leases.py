"""The SQL condition under which the lease of a job or a batch has ended."""

from __future__ import annotations

MAX_LEASE_SECONDS = 600
"""Longer than any lease."""


def lease_has_ended(now: str) -> str:
    """Return the SQL condition; ``now`` is the placeholder of the time.

    A lease that ends later than any can was made while a clock was ahead, and has ended, too.
    """
    return f"(lease_until <= {now} OR lease_until > {now} + {MAX_LEASE_SECONDS})"
