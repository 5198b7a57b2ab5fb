"""A user who stops reading, and what it costs others: real processes, and their memory."""

from __future__ import annotations

import asyncio
import json
import math
import ssl
import time
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import NamedTuple

import aiohttp
import psutil
import pytest

from tests.engine import Json, Plan, ScriptedEngine
from tests.questions import ask, question, reply
from tests.stack import Alone

MiB = 2**20
PIECE = 64 * 1024
LARGE = 256 * MiB
MAX_SENT = 128 * MiB
"""Until everybody on the way is full: nearly all of it is in the kernel's buffers, of three
connections."""
MAX_KEPT = 24 * MiB
"""In each process; far less than the answer, with room for what Python keeps by the way."""
OTHERS = 8
ROUNDS = 50
LONGEST = 20.0


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine() as engine:

        def answer(asked: Json) -> Plan:
            if "large" in asked:
                return Plan(chunks=["x" * PIECE] * (LARGE // PIECE))
            return reply(asked)

        engine.reply = answer
        yield engine


class SlowUser:
    """A user who requests a large answer, reads its beginning, and then nothing more."""

    async def __aenter__(self) -> SlowUser:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()

    async def ask(self, port: int, key: str, trust: ssl.SSLContext) -> None:
        body = {"model": "tiny", "stream": True, "large": True, "messages": []}
        data = json.dumps(body).encode()
        # Little is read ahead here: what is not read is the server's to keep.
        reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=trust, limit=1024
        )
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\n"
            f"authorization: Bearer {key}\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        self._writer.write(head.encode() + data)
        async with asyncio.timeout(LONGEST):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")


class Cost(NamedTuple):
    """Durations of the others' answers, in milliseconds."""

    p50: float
    p99: float
    processor: float
    """Of server and node together, for each answer: unlike the others it tells little of who else
    uses this machine."""

    def __str__(self) -> str:
        return f"p50 {self.p50:.1f} ms, p99 {self.p99:.1f} ms, {self.processor:.2f} ms of processor"


async def crowd(stack: Alone, key: str, name: str, processes: Collection[psutil.Process]) -> Cost:
    """Let other users request small answers, which must arrive."""
    took: list[float] = []
    spent = processor_seconds(processes)

    async def one(number: int, session: aiohttp.ClientSession) -> None:
        for turn in range(ROUNDS):
            body = question(f"{name}-{number}-{turn}", 30, model="tiny", stream=turn % 2 == 0)
            began = time.monotonic()
            url = f"{stack.public}/v1/chat/completions"
            seen = await ask(session, url, key, body, deadline=LONGEST)
            assert seen.ending == "complete", seen
            took.append(time.monotonic() - began)

    async with stack.session() as session, asyncio.TaskGroup() as group:
        for number in range(OTHERS):
            group.create_task(one(number, session))
    spent = processor_seconds(processes) - spent
    took.sort()
    p50, p99 = (took[math.ceil(len(took) * share) - 1] for share in (0.5, 0.99))
    return Cost(p50 * 1e3, p99 * 1e3, spent / len(took) * 1e3)


def processor_seconds(processes: Collection[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


async def test_a_user_who_stops_reading_costs_nobody_else_and_no_memory(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    patient = {"slow_reader_timeout": "300"}  # while this lasts, nobody cuts the slow user off
    async with Alone(tmp_path, **patient) as stack, SlowUser() as slow:
        node = await stack.join(engine.url, "attic", "--slots", "32")
        key = (await stack.command("keys", "create", "alice"))["text"]
        processes = {"server": psutil.Process(stack.server.pid), "node": psutil.Process(node.pid)}
        everybody = processes.values()
        await crowd(stack, key, "warm", everybody)
        before = await crowd(stack, key, "before", everybody)
        kept = {name: process.memory_info().rss for name, process in processes.items()}

        await slow.ask(stack.ports["public"], key, stack.trust())
        [large] = [request for request in engine.requests if b"large" in request.body]
        await _stands_still(lambda: large.sent)
        during = await crowd(stack, key, "during", everybody)
        grown = {
            name: (process.memory_info().rss - kept[name]) / MiB
            for name, process in processes.items()
        }
        assert large.outcome is None, "the slow user's answer is not over"
        assert large.sent < MAX_SENT
        assert max(grown.values()) < MAX_KEPT / MiB, grown
    await large.aborted()
    print(
        f"{OTHERS * ROUNDS} answers of others: {before} before; {during} beside a slow user; the "
        f"engine could write {large.sent / MiB:.1f} of {LARGE / MiB:.0f} MiB; memory grew by "
        + ", ".join(f"{size:.1f} MiB ({name})" for name, size in grown.items())
    )


async def _stands_still(count: object) -> None:
    """Wait until all buffers between engine and user are full."""
    assert callable(count)
    last = -1
    async with asyncio.timeout(LONGEST):
        while count() != last:
            last = count()
            await asyncio.sleep(0.5)  # that nothing happens can only be seen in time
