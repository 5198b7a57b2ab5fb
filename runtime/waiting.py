"""Waiting for back ends that are not up yet, as those of a whole stack that starts together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from runtime.errors import Unreachable

log = logging.getLogger("fabric.start")

FIRST_SECONDS = 0.25
LONGEST_SECONDS = 5.0

T = TypeVar("T")


async def reached(opening: Callable[[], Awaitable[T]], *, wait: bool) -> T:
    """What ``opening`` gives.  With ``wait``, it is tried until somebody answers there.

    Whatever else is wrong (a password, a version) ends the wait at once: time does not cure it.
    """
    delay = FIRST_SECONDS
    while True:
        try:
            return await opening()
        except Unreachable as error:
            if not wait:
                raise
            log.info("waiting", extra={"reason": str(error), "seconds": delay})
        await asyncio.sleep(delay)
        delay = min(delay * 2, LONGEST_SECONDS)
