"""Processes beside the loop: what they return, and what is left when work ends badly."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from runtime.workers import LARGE, TooMuchWork, WorkerLost, Workers
from tests.loops import on_both_loops
from tests.runtime import work

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    workers = Workers()
    yield workers
    workers.close()


async def holds(condition: Callable[[], bool]) -> None:
    """Wait for what other processes do, of which no event tells."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def written(path: Path) -> str:
    return path.read_text() if path.exists() else ""


async def pid_in(path: Path) -> int:
    await holds(lambda: written(path).endswith("\n"))
    return int(written(path))


@on_both_loops
async def test_a_worker_returns_a_value_and_bytes() -> None:
    workers = Workers()
    pieces = [bytes([at % 256]) * 70_000 for at in range(100)]
    size = 70_000 * 100
    count, rest = await workers.run(work.count, pieces, size)
    assert count == size
    assert b"".join(rest) == b"".join(pieces)[::-1]
    workers.close()


async def test_the_loop_goes_on_while_a_worker_reads(workers: Workers) -> None:
    body = b"[" + b",".join([b"{}"] * 4_000_000) + b"]"
    reading = asyncio.create_task(workers.run(work.read, [body], len(body)))
    turns = 0
    while not reading.done():
        turns += 1
        await asyncio.sleep(0)
    assert (await reading)[0] == 4_000_000
    assert turns > 1000


async def test_two_processes_serve_all(workers: Workers) -> None:
    sizes = [1, LARGE + 1] * 4
    found = await asyncio.gather(*(workers.run(work.pid, [b""], size) for size in sizes))
    assert len({pid for pid, _ in found}) == 2
    assert {pid for pid, _ in found} == set(workers.pids)


async def test_large_work_holds_up_no_other(workers: Workers, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    large = asyncio.create_task(workers.run(work.take_long, [str(path).encode()], LARGE + 1))
    await pid_in(path)
    assert (await workers.run(work.count, [b"abc"], 3))[0] == 3
    large.cancel()


async def test_what_work_raises_is_raised_here(workers: Workers) -> None:
    first, _ = await workers.run(work.pid, [b""], 1)
    with pytest.raises(ValueError, match="no good"):
        await workers.run(work.refuse, [b"no good"], 1)
    assert (await workers.run(work.pid, [b""], 1))[0] == first


async def test_work_that_is_cancelled_ends_with_its_process(
    workers: Workers, tmp_path: Path
) -> None:
    path = tmp_path / "pid"
    running = asyncio.create_task(workers.run(work.take_long, [str(path).encode()], 1))
    pid = await pid_in(path)
    in_line = asyncio.create_task(workers.run(work.count, [b"abc"], 1))
    given_up = asyncio.create_task(workers.run(work.take_long, [b"/nowhere/at all"], 1))
    await asyncio.sleep(0)
    given_up.cancel()
    running.cancel()
    for task in (running, given_up):
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (await in_line)[0] == 3
    await holds(lambda: gone(pid))


async def test_a_process_that_is_killed_loses_its_work_and_no_other(workers: Workers) -> None:
    with pytest.raises(WorkerLost, match="-9"):
        await workers.run(work.die, [b""], 1)
    assert (await workers.run(work.count, [b"abc"], 1))[0] == 3


async def test_a_process_that_is_killed_while_idle_is_replaced(workers: Workers) -> None:
    first, _ = await workers.run(work.pid, [b""], 1)
    os.kill(first, signal.SIGKILL)
    second, _ = await workers.run(work.pid, [b""], 1)
    assert second != first


async def test_too_much_memory_is_refused(workers: Workers) -> None:
    with pytest.raises(TooMuchWork, match="512 MiB of memory"):
        await workers.run(work.swallow_memory, [b""], 1)
    assert (await workers.run(work.count, [b"abc"], 1))[0] == 3


async def test_too_much_time_is_refused(tmp_path: Path) -> None:
    workers = Workers(seconds=0.3)
    with pytest.raises(TooMuchWork, match=r"0\.3 s"):
        await workers.run(work.take_long, [str(tmp_path / "pid").encode()], 1)
    workers.close()


async def test_what_work_prints_is_no_result(workers: Workers) -> None:
    assert await workers.run(work.speak, [b""], 1) == (1, [b"said"])


async def test_a_process_ends_when_it_has_had_no_work() -> None:
    workers = Workers(idle_seconds=0.01)
    pid, _ = await workers.run(work.pid, [b""], 1)
    await holds(lambda: gone(pid))
    assert workers.pids == []
    assert (await workers.run(work.count, [b"abc"], 1))[0] == 3
    workers.close()


async def test_closing_ends_what_runs_and_takes_nothing_more(tmp_path: Path) -> None:
    workers = Workers()
    path = tmp_path / "pid"
    running = asyncio.create_task(workers.run(work.take_long, [str(path).encode()], 1))
    pid = await pid_in(path)
    workers.close()
    with pytest.raises(WorkerLost):
        await running
    with pytest.raises(WorkerLost):
        await workers.run(work.count, [b"abc"], 1)
    await holds(lambda: gone(pid))


async def test_a_program_that_dies_takes_its_workers_along() -> None:
    program = (
        "import asyncio, os\n"
        "from runtime.workers import Workers\n"
        "from tests.runtime import work\n"
        "async def main():\n"
        "    pid, _ = await Workers().run(work.pid, [b''], 1)\n"
        "    os.write(1, b'%d' % pid)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    await holds(lambda: gone(int(output)))
