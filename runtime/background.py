"""Background tasks: work that goes on beside the requests, and whose failure must not end those.

A task that fails is logged, counted, and started again after a pause; meanwhile ``problems`` has
the reason, for health checks.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeVar

log = logging.getLogger("fabric.background")

FIRST_PAUSE = 0.2
LAST_PAUSE = 30.0
"""Seconds before a failed task is started again; each pause is twice the one before."""
SOUND_SECONDS = 60.0
"""A task that has run for so long since its failure counts as sound again."""

_REMEDIES = {
    errno.EMFILE: "raise this process's limit of open files (ulimit -n)",
    errno.ENFILE: "raise this machine's limit of open files (fs.file-max)",
    errno.ENOMEM: "give this process more memory",
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room on the disk, or raise the quota",
}

Work = Callable[[], Coroutine[Any, Any, None]]
T = TypeVar("T")


class BackgroundTasks:
    """Tasks by name, each of which runs until it is stopped."""

    def __init__(self, rng: Random, *, first_pause: float = FIRST_PAUSE) -> None:
        self.failures: Counter[str] = Counter()
        """Failures since the start, by name; all names are there."""
        self._rng = rng
        self._first_pause = first_pause
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._problems: dict[str, tuple[str, float]] = {}

    @property
    def problems(self) -> dict[str, str]:
        """The tasks that fail at the moment, each with the reason."""
        now = asyncio.get_running_loop().time()
        return {name: reason for name, (reason, until) in self._problems.items() if now < until}

    def start(self, name: str, work: Work) -> None:
        """Run ``work``, again whenever it fails, until it ends by itself or by ``stop``."""
        self.failures[name] += 0
        self._tasks[name] = asyncio.get_running_loop().create_task(self._keep(name, work))

    async def stop(self, *names: str) -> None:
        """Cancel these tasks, by default all, and wait until they have ended."""
        tasks = [
            self._tasks.pop(name) for name in names or tuple(self._tasks) if name in self._tasks
        ]
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                log.error("a background task failed at its end", exc_info=result)

    async def _keep(self, name: str, work: Work) -> None:
        loop = asyncio.get_running_loop()
        pause = self._first_pause
        while True:
            began = loop.time()
            failure: BaseException
            try:
                return await work()
            except asyncio.CancelledError as error:
                if is_cancelled():
                    raise
                failure = error  # what it waited for was cancelled, not the task itself
            except Exception as error:
                if is_cancelled():  # it failed as it was ended: see ``stop``
                    raise
                failure = error
            if loop.time() - began > SOUND_SECONDS:
                pause = self._first_pause
            seconds = pause * self._rng.uniform(0.5, 1.0)
            self._on_failure(name, failure, seconds)
            await asyncio.sleep(seconds)
            pause = min(2 * pause, LAST_PAUSE)

    def _on_failure(self, name: str, error: BaseException, again_in: float) -> None:
        """Log the failure, the first of its kind with a traceback."""
        reason = _reason(error)
        known = self._problems.get(name, ("", 0.0))[0] == reason
        until = asyncio.get_running_loop().time() + again_in + SOUND_SECONDS
        self.failures[name] += 1
        self._problems[name] = reason, until
        log.error(
            "a background task failed and is started again; requests go on",
            extra={"task": name, "reason": reason, "again_in": round(again_in, 1)},
            exc_info=None if known else error,
        )


def is_cancelled() -> bool:
    """Return whether somebody wants the task that runs to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def in_own_task(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of ``work``, which has a task of its own; cancelling the caller cancels it.

    For work that is done because the caller was cancelled, and that has a timeout: before Python
    3.11.3, ``asyncio.timeout`` raises CancelledError in a cancelled task, not TimeoutError
    (CPython's issue 102780).
    """
    return await asyncio.get_running_loop().create_task(work)


def log_failure(task: asyncio.Task[None]) -> None:
    """Log the exception of a task that nobody waits for; a callback for ``add_done_callback``."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a task failed", extra={"reason": _reason(error)}, exc_info=error)


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, asyncio.CancelledError):
        return "what it waited for was cancelled"
    reason = str(error) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0) if isinstance(error, OSError) else None
    return f"{reason}: {remedy}" if remedy else reason
