"""Signals, as programs take them: each test is a program of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

PATIENCE = 30.0

FINISHES = """
async def program(signals):
    print("up", flush=True)
    await signals.stop.wait()
    print("finished", flush=True)
"""
TAKES_LONG = """
async def program(signals):
    print("up", flush=True)
    await signals.stop.wait()
    try:
        print("finishing", flush=True)
        await asyncio.sleep(3600)
    finally:
        print("left", flush=True)
"""
RELOADS = """
async def program(signals):
    signals.on_hangup = lambda: print("reloaded", flush=True)
    print("up", flush=True)
    await signals.stop.wait()
"""
FAILS = """
async def program(signals):
    raise ValueError("a defect")
"""
AS_ON_WINDOWS = """
def none(*_): raise NotImplementedError
asyncio.SelectorEventLoop.add_signal_handler = none
sys.modules["uvloop"] = None
"""
ON_LOOPS = pytest.mark.parametrize("before", ["", AS_ON_WINDOWS], ids=["uvloop", "as on Windows"])


@contextmanager
def running(program: str, before: str = "") -> Iterator[subprocess.Popen[str]]:
    text = f"import asyncio, sys\n{before}\n{program}\n"
    text += "from runtime.run import run\nsys.exit(run(program))"
    process = subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@ON_LOOPS
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_first_signal_lets_it_finish(before: str, number: int, code: int) -> None:
    with running(FINISHES, before) as process:
        assert line(process) == "up"
        process.send_signal(number)
        assert line(process) == "finished"
        assert process.wait(PATIENCE) == code


@ON_LOOPS
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_second_signal_means_now(before: str, number: int, code: int) -> None:
    with running(TAKES_LONG, before) as process:
        assert line(process) == "up"
        process.send_signal(number)
        assert line(process) == "finishing"
        process.send_signal(signal.SIGTERM)
        assert line(process) == "left"
        assert process.wait(PATIENCE) == code


def test_a_hang_up_is_for_the_program_that_wants_it_and_stops_any_other() -> None:
    with running(RELOADS) as process:
        assert line(process) == "up"
        process.send_signal(signal.SIGHUP)
        assert line(process) == "reloaded"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    with running(FINISHES) as process:
        assert line(process) == "up"
        process.send_signal(signal.SIGHUP)
        assert line(process) == "finished"
        assert process.wait(PATIENCE) == 0


def test_a_signal_that_was_ignored_from_the_start_stays_so() -> None:
    """As for what ``nohup`` starts."""
    with running(
        FINISHES, "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    ) as process:
        assert line(process) == "up"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGINT)
        assert line(process) == "finished"
        assert process.wait(PATIENCE) == 130


def test_what_the_program_raises_is_raised() -> None:
    with running(FAILS) as process:
        assert process.wait(PATIENCE) == 1
        assert process.stderr is not None
        assert process.stderr.read().endswith("ValueError: a defect\n")


def test_a_program_may_open_as_many_files_as_the_system_allows() -> None:
    told = subprocess.run(
        [
            "bash",
            "-c",
            f'ulimit -Sn 256; exec "{sys.executable}" -c "$1"',
            "bash",
            "import resource\n"
            "from runtime.run import run\n"
            "async def program(signals): print(resource.getrlimit(resource.RLIMIT_NOFILE))\n"
            "run(program)",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    soft, hard = told.stdout.strip("()\n").split(", ")
    assert soft == hard != "256"
