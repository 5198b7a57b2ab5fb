"""Background tasks that fail."""

from __future__ import annotations

import asyncio
import errno
import logging
from random import Random

import pytest

from runtime.background import BackgroundTasks, in_own_task, log_failure


class Work:
    """Fails so many times, then goes on."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.runs = 0
        self.sound = asyncio.Event()
        self.cancelled = False

    async def __call__(self) -> None:
        self.runs += 1
        if self.errors:
            raise self.errors.pop(0)
        self.sound.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


FULL = OSError(errno.EMFILE, "Too many open files", "spool")
FAILURES = [
    FULL,
    OSError(errno.ENOSPC, "No space left on device"),
    MemoryError(),
    ValueError("a defect"),
    ExceptionGroup("several", [ValueError("a defect"), FULL]),
    BaseExceptionGroup("several", [ValueError("a defect")]),
    TimeoutError(),
    asyncio.CancelledError(),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
async def test_work_that_fails_is_done_again_and_shows(
    failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    tasks, work, other = BackgroundTasks(Random(1), first_pause=0.001), Work(failure), Work()
    tasks.start("work", work)
    tasks.start("other", other)
    async with asyncio.timeout(5):
        await work.sound.wait()
    assert other.runs == 1
    assert tasks.failures == {"work": 1, "other": 0}
    assert list(tasks.problems) == ["work"]
    assert tasks.problems["work"]
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert "requests go on" in record.getMessage()
    await tasks.stop()
    assert work.cancelled and other.cancelled


async def test_the_same_failure_again_has_no_second_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks, work = BackgroundTasks(Random(1), first_pause=0.001), Work(*[FULL] * 4)
    tasks.start("work", work)
    async with asyncio.timeout(5):
        await work.sound.wait()
    await tasks.stop()
    assert [record.exc_info is not None for record in caplog.records] == [True, *[False] * 3]
    assert work.runs == 5


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "fs.file-max"),
        (errno.ENOMEM, "memory"),
        (errno.ENOSPC, "disk"),
    ],
)
async def test_a_lack_of_resources_is_told_with_what_to_do(
    number: int, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    tasks, work = BackgroundTasks(Random(1), first_pause=0.001), Work(OSError(number, "lack"))
    tasks.start("work", work)
    async with asyncio.timeout(5):
        await work.sound.wait()
    await tasks.stop()
    assert remedy in caplog.records[0].__dict__["reason"]


async def test_one_task_of_several_is_stopped_and_work_that_ends_is_done() -> None:
    tasks, first, second = BackgroundTasks(Random(1)), Work(), Work()

    async def short() -> None: ...

    tasks.start("first", first)
    tasks.start("second", second)
    tasks.start("short", short)
    await asyncio.gather(first.sound.wait(), second.sound.wait())
    await tasks.stop("first", "unknown")
    assert first.cancelled and not second.cancelled
    await tasks.stop()
    assert second.cancelled
    assert not tasks.problems


async def test_work_that_fails_as_it_is_stopped_is_not_started_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A group of tasks whose child fails at that moment raises that, before Python 3.13."""
    starts = 0

    async def work() -> None:
        nonlocal starts
        starts += 1
        try:
            await asyncio.Event().wait()
        finally:
            raise ExceptionGroup("several", [FULL])

    tasks = BackgroundTasks(Random(1), first_pause=0.001)
    tasks.start("work", work)
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await tasks.stop()
    assert starts == 1
    assert "at its end" in caplog.records[0].getMessage()


async def test_a_timeout_in_the_cleanup_of_a_cancelled_task_is_one() -> None:
    ended = []

    async def clean_up() -> None:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError:
            ended.append("timeout")

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await in_own_task(clean_up())

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert (ended, task.cancelled()) == (["timeout"], True)


async def test_work_in_its_own_task_is_cancelled_with_its_caller() -> None:
    work = Work()
    task = asyncio.create_task(in_own_task(work()))
    await work.sound.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() and work.cancelled


async def test_the_failure_of_a_task_that_nobody_waits_for_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> None:
        raise FULL

    task = asyncio.create_task(fail())
    task.add_done_callback(log_failure)
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert "Too many open files" in caplog.records[0].__dict__["reason"]
