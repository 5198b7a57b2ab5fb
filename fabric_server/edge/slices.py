"""Feeds large bodies to their readers in slices, so that other requests go on in between."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Protocol

from fabric_server.dialects.json_scanner import SLICE

SECONDS = 0.005
"""How long a reader works before others have their turn."""


class Reader(Protocol):
    """A reader of a body, which takes its pieces in order."""

    def feed(self, data: bytes) -> None: ...


async def feed_slices(reader: Reader, data: bytes) -> None:
    """Feed ``data`` to the reader; what that raises ends it."""
    if len(data) <= SLICE:
        reader.feed(data)
        return
    turn_ends = monotonic() + SECONDS
    for start in range(0, len(data), SLICE):
        reader.feed(data[start : start + SLICE])
        if monotonic() > turn_ends:
            await asyncio.sleep(0)
            turn_ends = monotonic() + SECONDS
