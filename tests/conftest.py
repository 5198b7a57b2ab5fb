"""For all tests: a scripted engine, and the servers of tests/lab/backends.py, each started by its
first use.

A shell that runs the tests in the background has told them to ignore Ctrl-C, and nohup that a
terminal hangs up, and so every program that they start: those that press Ctrl-C, or hang up, would
wait for ever.
"""

import signal
from collections.abc import AsyncIterator

import pytest

from tests.engine import ScriptedEngine

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

pytest_plugins = ("tests.lab.backends", "tests.end_to_end.clients.matrix_report")


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine() as engine:
        yield engine
