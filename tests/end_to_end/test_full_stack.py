"""PostgreSQL, Redis, Kafka, server, consumer and nodes as processes, and each of them killed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import aiohttp
import asyncpg

from fabric_server.storage.connect import open_store
from tests.engine import ScriptedEngine
from tests.stack import Alone, Stack

SEED = 20261121
USERS = 6
PARTS = ("consumer", "kafka", "postgres", "redis", "server")
PAIRS = (
    ("postgres", "consumer"),  # which then holds a batch that nobody has taken
    ("kafka", "server"),  # and its spool what nobody has taken
    ("kafka", "consumer"),
    ("postgres", "server"),
    ("redis", "server"),
)
"""Killed one after the other, and only then started again."""
MODEL = "tiny"

PATIENCE = 90.0


class Crowd:
    """Users who keep asking, and record which answers are complete."""

    def __init__(self, stack: Stack, key: str) -> None:
        self.finished: set[str] = set()
        self.broken = 0
        self._stack = stack
        self._key = key
        self._more = asyncio.Condition()

    async def ask(self, seed: int) -> None:
        rng = Random(seed)
        while True:
            async with self._stack.session() as session:
                try:
                    while True:
                        await self._ask_once(session, stream=rng.random() < 0.5)
                except (aiohttp.ClientError, ConnectionError, TimeoutError):
                    self.broken += 1
            await asyncio.sleep(0.05)  # as a user's client would, before it tries again

    async def _ask_once(self, session: aiohttp.ClientSession, *, stream: bool) -> None:
        ask = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Hello?"}],
            "stream": stream,
        }
        async with session.post(
            f"{self._stack.public}/v1/chat/completions",
            json=ask,
            headers={"authorization": f"Bearer {self._key}"},
            timeout=aiohttp.ClientTimeout(total=20),
        ) as answer:
            body = await answer.read()
        whole = body.rstrip().endswith(b"data: [DONE]") if stream else b"usage" in body
        if answer.status == 200 and whole:
            async with self._more:
                assert answer.headers["x-request-id"] not in self.finished
                self.finished.add(answer.headers["x-request-id"])
                self._more.notify_all()
        else:
            await asyncio.sleep(0.02)  # no node, for example: not as fast as it can be refused

    async def until_finished(self, more: int) -> None:
        goal = len(self.finished) + more
        async with asyncio.timeout(PATIENCE), self._more:
            await self._more.wait_for(lambda: len(self.finished) >= goal)


async def test_whatever_is_killed_every_finished_request_is_in_the_ledger_once(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    rng = Random(SEED)
    schedule = [*((part,) for part in PARTS * 3), *PAIRS]
    rng.shuffle(schedule)
    assert sum(map(len, schedule)) >= 20
    async with Stack(tmp_path) as stack:
        for name in ("attic", "cellar"):
            await stack.join(engine.url, name)
        key = (await stack.command("keys", "create", "crowd"))["text"]
        crowd = Crowd(stack, key)
        users = [asyncio.create_task(crowd.ask(seed)) for seed in range(USERS)]
        try:
            await crowd.until_finished(20)
            for down in schedule:
                await asyncio.sleep(rng.uniform(0.0, 0.5))  # the random moment
                for name in down:
                    await stack.parts[name].kill()
                    if name != "server":
                        await crowd.until_finished(10)  # nobody waits for what is away
                    if down == ("postgres", "consumer") and name == "postgres":
                        await stack.consumer.said("the store is away")
                async with asyncio.TaskGroup() as group:
                    for name in down:
                        group.create_task(stack.parts[name].start())
                await crowd.until_finished(10)
        finally:
            for user in users:
                user.cancel()
            await asyncio.gather(*users, return_exceptions=True)
        await _all_in_the_ledger(stack, crowd.finished)
        figures = await _figures(stack)
        assert "fabric_consumer_records_dead_total 0.0" in figures
    print(f"{len(crowd.finished)} finished, {crowd.broken} broken off")


async def test_a_server_alone_that_is_killed_again_and_again_loses_no_finished_request(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    rng = Random(SEED)
    async with Alone(tmp_path) as stack:
        await stack.join(engine.url)
        key = (await stack.command("keys", "create", "crowd"))["text"]
        crowd = Crowd(stack, key)
        users = [asyncio.create_task(crowd.ask(seed)) for seed in range(USERS)]
        try:
            for _ in range(6):
                await crowd.until_finished(10)
                await asyncio.sleep(rng.uniform(0.0, 0.5))
                await stack.server.kill()
                await stack.server.start()
        finally:
            for user in users:
                user.cancel()
            await asyncio.gather(*users, return_exceptions=True)
        await stack.server.stop()  # what its spool held is in the store by now
        store = await open_store(stack.store_url)
        entries = await store.requests(limit=1_000_000)
        (total,) = await store.usage(0, 1e12)
        await store.close()
    found = [entry.request_id for entry in entries if entry.outcome == "ok"]
    assert set(found) >= crowd.finished
    assert total.requests == len(entries) == len({entry.request_id for entry in entries})


async def _all_in_the_ledger(stack: Stack, finished: set[str]) -> None:
    """Check that each is there once, and in the sums; the bus may need a moment for the last."""
    connection = await asyncpg.connect(stack.store_url)
    try:
        missing = finished
        async with asyncio.timeout(PATIENCE):
            while missing:
                rows = await connection.fetch(
                    "SELECT request_id FROM ledger WHERE request_id = ANY($1::text[])",
                    sorted(missing),
                )
                missing = missing - {row[0] for row in rows}
                if missing:
                    await asyncio.sleep(0.2)
    except TimeoutError:
        raise AssertionError(
            f"{len(missing)} of {len(finished)} missing: {sorted(missing)[:5]}"
        ) from None
    finally:
        counted = await connection.fetchval("SELECT COUNT(*) FROM ledger")
        summed = await connection.fetchval("SELECT SUM(requests) FROM usage_by_hour")
        await connection.close()
    assert summed == counted >= len(finished)


async def _figures(stack: Stack) -> str:
    async with stack.session() as session, session.get(f"{stack.figures}/metrics") as answer:
        return await answer.text()
