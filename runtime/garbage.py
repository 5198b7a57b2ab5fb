"""Garbage collection of programs that run for long: rare, and not of what they started with."""

from __future__ import annotations

import gc

THRESHOLD = (10_000, 20, 50)
"""Requests leave no reference cycles behind, so rare collections cost little memory."""


def collect_rarely() -> None:
    """Leave what exists now out of all later collections, and make these rare.

    Call it once a program has started: a full collection of what its imports have left takes 30 ms,
    in which every stream waits.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLD)
