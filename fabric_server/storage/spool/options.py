"""Sizes and times of a spool."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SpoolOptions:
    segment_bytes: int = 1 << 20
    """Size of a segment, which is also what is read, decoded (4 ms) or dropped at once."""
    memory_bytes: int = 8 << 20
    """Records of each topic, as encoded, that need not be read back.

    Decoded they take twice as much.
    """
    max_unwritten: int = 200_000
    """Ledger entries (some 500 bytes each) kept in memory while the disk fails."""
    retry_seconds: float = 1.0
    """Pause after a write that failed."""
