"""Starts a task in this turn of the event loop, where Python can (3.12 and newer)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def start_now(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> asyncio.Task[T]:
    """Run ``work`` up to where it waits for the first time, and the rest as a task.

    Call it from the running loop's thread.  On Python 3.11 nothing runs before the loop's next
    turn.
    """
    if sys.version_info >= (3, 12):
        return asyncio.Task(work, loop=loop, eager_start=True)
    return loop.create_task(work)
