"""For all tests: a scripted engine, and the servers of tests/lab/backends.py, each started by its
first use.

A shell that runs the tests in the background has told them to ignore Ctrl-C, and nohup that a
terminal hangs up, and so every program that they start: those that press Ctrl-C, or hang up, would
wait for ever.
"""

import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from tests.engine import ScriptedEngine

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

pytest_plugins = ("tests.lab.backends", "tests.end_to_end.clients.matrix_report")


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine() as engine:
        yield engine


class FilesInProcesses(LoadFileScheduling):
    """Gives whole files to processes, and the clients' folder as one.

    The scripted engines of that folder answer only while its tests run: with other files between
    them, the nodes would report their engines as away.
    """

    TOGETHER = "tests/end_to_end/clients/"

    def _split_scope(self, nodeid: str) -> str:
        return self.TOGETHER if nodeid.startswith(self.TOGETHER) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesInProcesses | None:
    loadfile = config.getoption("dist") == "loadfile"
    return FilesInProcesses(config, log) if loadfile else None
