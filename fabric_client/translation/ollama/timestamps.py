"""Times as Ollama writes them."""

from __future__ import annotations

import time
from functools import lru_cache


def stamp(nanoseconds: int) -> str:
    """Since 1970, as RFC 3339 in UTC."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{_second(seconds)}.{rest:09d}Z"


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    """The many chunks of one second have it in common."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
