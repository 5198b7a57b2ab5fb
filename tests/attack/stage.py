"""The fabric under attack: a server with few descriptors, a node, and users' keys."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tests.attack.wire import Target
from tests.stack import Alone, Process

DESCRIPTORS = 1024
SLOTS = 64
KEY_MEMORY = 256 * 2**20
"""Bytes that the requests of one key may hold: ``bodies_limit_per_key``."""


_SETTINGS = {"bodies_limit_per_key": str(KEY_MEMORY)}


class Stack(Alone):
    server_words = ("tests.attack.limited", str(DESCRIPTORS), "up")


@dataclass(frozen=True)
class Stage:
    stack: Stack
    target: Target
    node: Process

    def sizes(self) -> tuple[int, int]:
        """Return the server's resident memory in bytes, and its open descriptors; 0 once ended."""
        if self.stack.server.code is not None:
            return 0, 0
        proc = Path(f"/proc/{self.stack.server.pid}")
        pages = int((proc / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE"), len(list((proc / "fd").iterdir()))

    def processor(self) -> float:
        """Return the seconds of processor time that the server has used; 0 once ended."""
        if self.stack.server.code is not None:
            return 0.0
        stat = Path(f"/proc/{self.stack.server.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def peak(self) -> int:
        """Return the most memory that the server ever had, in bytes."""
        status = Path(f"/proc/{self.stack.server.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@asynccontextmanager
async def stage(directory: Path, **settings: str) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as exits:
        stack = await exits.enter_async_context(
            Stack(directory, host="0.0.0.0", **_SETTINGS, **settings)
        )
        engine = await exits.enter_async_context(_engine())
        node = await stack.join(engine, "attic", "--slots", str(SLOTS))
        keys = {}
        for name in ("victim", "attacker"):
            keys[name] = (await stack.command("keys", "create", name))["text"]
        keys["boss"] = (await stack.command("keys", "create", "boss", "--management"))["text"]
        _pin(0, os.getpid(), stack.server.pid, node.pid)
        yield Stage(stack, Target(stack.ports, keys), node)


@asynccontextmanager
async def _engine() -> AsyncIterator[str]:
    """Run the engine; give its URL."""
    process = await program("tests.attack.engine")
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.terminate()
        await process.wait()


def _pin(core: int, *processes: int) -> None:
    for process in processes:
        os.sched_setaffinity(process, {core})


async def program(module: str, *words: str) -> asyncio.subprocess.Process:
    """Start a user or an attacker on the last core, away from the fabric where there are two."""
    cores = os.cpu_count() or 1
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *words,
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, {cores - 1}),
    )


def as_word(target: Target) -> str:
    return msgspec.json.encode(target).decode()


async def watched(target: Target, seconds: float, rate: float) -> dict[str, Any]:
    """Let the user beside the attack ask for a while."""
    user = await program("tests.attack.victim", as_word(target), str(seconds), str(rate))
    out, _ = await user.communicate()
    found: dict[str, Any] = json.loads(out)
    return found
