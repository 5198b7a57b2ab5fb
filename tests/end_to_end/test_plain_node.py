"""Nodes on Windows, as on gaming PCs: without uvloop, without anything POSIX-only."""

from __future__ import annotations

import sys
from pathlib import Path

import aiohttp

from tests.engine import ScriptedEngine
from tests.fabric import Fabric
from tests.programs import running

ABSENT = ("uvloop", "fcntl", "pwd", "grp", "resource", "termios", "tty", "pty", "syslog", "crypt")

WITHOUT = f"""
import asyncio, sys
import psutil  # the Linux build of it needs some of them; that for Windows does not

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
for name in {ABSENT!r}:
    sys.modules.pop(name, None)

# As on Windows: the loop knows no signal handlers, and files no modes.
def no_signals(*_):
    raise NotImplementedError
asyncio.AbstractEventLoop.add_signal_handler = no_signals
asyncio.unix_events._UnixSelectorEventLoop.add_signal_handler = no_signals

from fabric_client.__main__ import main
main()
"""


async def test_a_node_runs_on_the_plain_loop_without_posix_modules(tmp_path: Path) -> None:
    async with ScriptedEngine() as engine, Fabric(tmp_path) as fabric:
        directory = await fabric.enrol()
        command = [sys.executable, "-c", WITHOUT, "run", "--data", str(directory)]
        with running([*command, "--engine", engine.url, "--log-json"]):
            node = (await fabric.app.backends.store.nodes())[0]
            await fabric.routed(node.id)
            body = {"model": "tiny", "messages": []}
            async with fabric.user() as user:
                answer: aiohttp.ClientResponse
                async with user.post("/v1/chat/completions", json=body) as answer:
                    assert answer.status == 200
                    assert "Hello" in await answer.text()
