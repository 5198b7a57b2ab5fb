"""A server with all back ends is replaced, twice, while users ask and a batch runs."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg

from tests.engine import Plan, ScriptedEngine
from tests.jobs import User
from tests.questions import Crowd, Json, pieces
from tests.stack import Stack

USERS = 8
TAKEOVERS = 2
LINES = 96
LONG = "longer than any server drains"
PATIENCE = 60.0


async def test_a_rolling_restart_of_the_whole_stack_loses_no_request_no_line_and_no_job(
    tmp_path: Path,
) -> None:
    asked: Counter[str] = Counter()
    moved = asyncio.Event()

    def reply(question: Json) -> Plan:
        text = question["messages"][0]["content"]
        if not text.startswith(("line ", LONG)):
            return Plan(chunks=pieces(question), gap=0.01)
        asked[text] += 1
        moved.set()
        if text == LONG and asked[text] == 1:
            return Plan(chunks=("never", "the end"), hold=asyncio.Event())
        return Plan(chunks=(text,), first_byte_delay=1.0)

    async with AsyncExitStack() as exits:
        stack = await exits.enter_async_context(Stack(tmp_path, drain_seconds="3"))
        for number in range(2):
            engine = await exits.enter_async_context(ScriptedEngine())
            engine.reply = reply
            await stack.join(engine.url, f"node-{number}", "--slots", "6")
        made = await stack.command("keys", "create", "crowd", "--failover", "continue")
        crowd = Crowd(f"{stack.public}/v1/chat/completions", made["text"])
        user = await exits.enter_async_context(User(stack.public, made["text"], stack.session()))
        servers = [stack.server]
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as users:
            for number in range(USERS):
                session = await exits.enter_async_context(stack.session())
                users.create_task(crowd.stay(number, session))
            long = {"model": "tiny", "prompt": LONG, "id": "job-0", "async": True}
            await user.ask("POST", "/inference", json=long)
            batch = await user.batch(LINES)
            for _ in range(TAKEOVERS):  # the second while the first server may still drain
                await crowd.answered(USERS)
                moved.clear()
                servers.append(stack.successor())
                await servers[-1].start()
                await moved.wait()
                assert sum(asked.values()) < LINES, "it was over before the last change"
            view = await user.ended(batch)
            assert await user.result(0) == LONG
            crowd.leave()
            for server in servers[:-1]:
                assert await server.ended() == 0
        rows = await user.rows(view["output_file_id"])
        failed = [seen for seen in crowd.seen if seen.ending != "complete"]
        assert not failed, (len(failed), len(crowd.seen), failed[:3])
        assert view["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
        assert [row["custom_id"] for row in rows] == [f"{n}" for n in range(LINES)]
        # What was under way has finished before its server went, but for what takes longer.
        assert asked == {LONG: 2} | {f"line {n}": 1 for n in range(LINES)}
        await servers[-1].stop()
        finished = {seen.request_id for seen in crowd.seen}
        finished |= {row["response"]["request_id"] for row in rows}
        await _in_the_ledger(stack, finished)


async def _in_the_ledger(stack: Stack, finished: set[str]) -> None:
    """Check for these and the job, once each; other rows may only be interrupted attempts."""
    connection = await asyncpg.connect(stack.store_url)
    try:
        async with asyncio.timeout(PATIENCE):
            good: set[str] = set()
            while not good >= finished:
                await asyncio.sleep(0.1)  # Kafka and the consumer bring them, in their own time
                rows = await connection.fetch("SELECT request_id, outcome FROM ledger")
                good = {id for id, outcome in rows if outcome == "ok"}
        summed = await connection.fetchval("SELECT SUM(requests) FROM usage_by_hour")
    finally:
        await connection.close()
    assert len(good) == len(finished) + 1
    assert {outcome for _, outcome in rows} == {"ok", "cancelled"}
    assert summed == len(rows)
