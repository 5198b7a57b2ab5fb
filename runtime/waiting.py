"""Waiting for back ends that are not up yet, as when a whole stack starts together."""

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


async def retry_until_reachable(open: Callable[[], Awaitable[T]], *, wait: bool) -> T:
    """Return what ``open`` returns.  With ``wait``, retry until the back end answers.

    Any other error (a wrong password, an old version) is raised at once: waiting would not help.
    """
    delay = FIRST_SECONDS
    while True:
        try:
            return await open()
        except Unreachable as error:
            if not wait:
                raise
            log.info("waiting", extra={"reason": str(error), "seconds": delay})
        await asyncio.sleep(delay)
        delay = min(delay * 2, LONGEST_SECONDS)
