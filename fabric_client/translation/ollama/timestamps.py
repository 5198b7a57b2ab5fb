"""Timestamps in Ollama's format."""

from __future__ import annotations

import time
from functools import lru_cache


def timestamp(nanoseconds: int) -> str:
    """Format nanoseconds since 1970 as RFC 3339 in UTC."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{_second(seconds)}.{rest:09d}Z"


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    """Format whole seconds; cached, since many chunks share one."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
