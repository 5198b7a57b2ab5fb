"""Jobs and batches on a server that is killed: all end, and what had ended is not run again."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest

from fabric_server.jobs.runner import LEASE_SECONDS, RENEW_SECONDS
from fabric_server.storage.connect import open_store
from tests.engine import Plan, ScriptedEngine
from tests.fabric import Fabric
from tests.jobs import User
from tests.lab.postgres_server import PostgresServer
from tests.stack import Alone

PATIENCE = 120.0
LINES = 60
JOBS = 12


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    rng = Random(3)

    def reply(asked: dict[str, Any]) -> Plan:
        text = asked["messages"][0]["content"]
        return Plan(chunks=(text,), first_byte_delay=rng.uniform(0.0, 0.3))

    async with ScriptedEngine() as engine:
        engine.reply = reply
        yield engine


async def test_whatever_is_killed_every_job_and_line_has_one_result(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with Alone(tmp_path) as stack:
        await stack.join(engine.url, "attic")
        key = (await stack.command("keys", "create", "crowd"))["text"]
        async with User(stack.public, key, stack.session()) as user:
            for number in range(JOBS):
                await user.submit(number)
            batch = await user.batch(LINES)
            settled: dict[str, int] = {}
            for _ in range(2):
                await eventually_asked(engine, len(engine.requests) + 12)
                await stack.server.kill()
                settled |= {text: asked_for(engine)[text] for text in await results(stack)}
                await stack.server.start()
            async with asyncio.timeout(PATIENCE):
                for number in range(JOBS):
                    assert await user.result(number) == f"job {number}"
                view = await user.ended(batch)
            assert view["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
            rows = await user.rows(view["output_file_id"])
    assert [row["custom_id"] for row in rows] == [f"{n}" for n in range(LINES)]
    for row in rows:
        answer = row["response"]["body"]["choices"][0]["message"]["content"]
        assert answer == f"line {row['custom_id']}"
    asked = asked_for(engine)
    assert len(settled) > 10
    assert {text: asked[text] for text in settled} == settled
    assert all(count <= 3 for count in asked.values())


async def test_servers_on_one_store_share_the_jobs_and_run_each_once(
    tmp_path: Path, engine: ScriptedEngine, postgres: PostgresServer
) -> None:
    url = postgres.new_database()
    async with (
        Fabric(tmp_path / "one", store=url) as one,
        Fabric(tmp_path / "two", store=url) as two,
    ):
        await one.join(engine.url, slots=2)
        await two.join(engine.url, slots=2)
        async with User(one.public, one.key, aiohttp.ClientSession(), one.trust()) as user:
            batch = await user.batch(LINES)
            for number in range(JOBS):
                await user.submit(number)
            async with asyncio.timeout(PATIENCE):
                view = await user.ended(batch)
            rows = await user.rows(view["output_file_id"])
            assert await user.status("/inference/a%00b") == 400  # PostgreSQL holds no NUL
        async with User(two.public, two.key, aiohttp.ClientSession(), two.trust()) as user:
            async with asyncio.timeout(PATIENCE):
                for number in range(JOBS):
                    assert await user.result(number) == f"job {number}"
    assert [row["custom_id"] for row in rows] == [f"{n}" for n in range(LINES)]
    assert len(engine.requests) == LINES + JOBS


async def test_what_runs_while_the_store_is_away_for_longer_than_a_lease_is_run_once(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    back = asyncio.Event()
    engine.reply = lambda asked: Plan(
        chunks=(asked["messages"][0]["content"],),
        hold=back if asked["messages"][0]["content"] in ("line 0", "job 0") else None,
    )
    away = PostgresServer(tmp_path / "postgres")
    await asyncio.to_thread(away.start)
    try:
        async with Fabric(tmp_path / "server", store=away.new_database()) as fabric:
            await fabric.join(engine.url, slots=4)
            session = aiohttp.ClientSession()
            async with User(fabric.public, fabric.key, session, fabric.trust()) as user:
                await user.submit(0)
                batch = await user.batch(12)
                await eventually_asked(engine, 13)
                await asyncio.to_thread(away.kill)
                await asyncio.sleep(LEASE_SECONDS + 1)  # as long as it takes for them to run out
                await asyncio.to_thread(away.start)
                async with asyncio.timeout(PATIENCE):
                    await user.ask("GET", "/inference/queue")
                    await asyncio.sleep(RENEW_SECONDS)  # nobody takes them up as abandoned
                    back.set()
                    assert await user.result(0) == "job 0"
                    view = await user.ended(batch)
            assert view["request_counts"] == {"total": 12, "completed": 12, "failed": 0}
    finally:
        await asyncio.to_thread(away.stop)
    assert asked_for(engine) == {f"line {n}": 1 for n in range(12)} | {"job 0": 1}


def asked_for(engine: ScriptedEngine) -> Counter[str]:
    """Return how often each request reached the engine."""
    return Counter(
        json.loads(request.body)["messages"][0]["content"]
        for request in engine.requests
        if request.body
    )


async def results(stack: Alone) -> list[str]:
    """Return the requests whose answers are in the store of a stopped server."""
    store = await open_store(stack.store_url)
    rows = await store.database.fetch("SELECT name, batch FROM jobs WHERE state = 'done'")
    await store.close()
    return [f"line {name}" if batch else f"job {name.removeprefix('job-')}" for name, batch in rows]


async def eventually_asked(engine: ScriptedEngine, count: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while len(engine.requests) < count:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.02)
