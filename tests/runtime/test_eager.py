"""Tasks that begin in the turn in which they are started."""

from __future__ import annotations

import asyncio
import sys

from runtime.eager import start_now


async def test_work_begins_at_once_where_python_can_and_goes_on_as_a_task() -> None:
    loop = asyncio.get_running_loop()
    steps: list[str] = []
    gate = asyncio.Event()

    async def work() -> str:
        steps.append("begun")
        own = asyncio.current_task()
        await gate.wait()
        assert asyncio.current_task() is own
        return "done"

    task = start_now(work(), loop)
    assert steps == (["begun"] if sys.version_info >= (3, 12) else [])
    gate.set()
    assert await task == "done"
    assert asyncio.current_task() is not task


async def test_an_exception_before_the_first_wait_is_the_tasks() -> None:
    async def work() -> None:
        raise ValueError("scripted")

    task = start_now(work(), asyncio.get_running_loop())
    await asyncio.wait([task])
    assert isinstance(task.exception(), ValueError)
