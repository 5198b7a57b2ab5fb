"""The whole stack while a part of it is down, full or removed: what users and operators see."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from tests.engine import Plan, ScriptedEngine
from tests.stack import READY, Stack

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Hello?"}]}
PATIENCE = 30.0


class Client:
    """A client of the public port and the API port of one server."""

    def __init__(self, public: str, api: str, session: aiohttp.ClientSession, key: str) -> None:
        self.public = public
        self.api = api
        self.session = session
        self.key = key

    async def ask(self, key: str | None = None, **changes: Any) -> tuple[int, Any]:
        async with self.session.post(
            f"{self.public}/v1/chat/completions",
            json={**ASK, **changes},
            headers={"authorization": f"Bearer {key or self.key}"},
        ) as answer:
            return answer.status, await answer.json(content_type=None)

    async def ready(self) -> tuple[str, dict[str, Any]]:
        async with self.session.get(f"{self.api}/health/ready") as answer:
            body = await answer.json()
        return body["status"], body["checks"]

    async def figures(self, management: str) -> dict[str, float]:
        headers = {"authorization": f"Bearer {management}"}
        async with self.session.get(f"{self.api}/metrics", headers=headers) as answer:
            assert answer.status == 200
            return parse(await answer.text())


def parse(text: str) -> dict[str, float]:
    """Parse Prometheus' text to a map from ``name{labels}`` to value."""
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110 - other processes bring it about
            await asyncio.sleep(0.05)


async def test_requests_flow_while_a_part_is_away_and_readiness_names_it(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with Stack(tmp_path) as stack, stack.session() as session:
        await stack.join(engine.url)
        key = (await stack.command("keys", "create", "alice"))["text"]
        client = Client(stack.public, stack.api, session, key)
        assert (await client.ask())[0] == 200
        assert (await client.ready())[0] == "ready"
        for name, part in (("postgres", "store"), ("kafka", "bus"), ("redis", "cache")):
            await stack.parts[name].kill()

            async def seen(part: str = part) -> bool:
                # What is not in this process' memory is asked of the cache.
                await client.ask("sk-fab-" + "x" * 43)
                status, checks = await client.ready()
                assert (await client.ask())[0] == 200
                return (status, checks[part]) == ("degraded", "away")

            await until(seen)
            await stack.parts[name].start()

            async def well() -> bool:
                await client.ask("sk-fab-" + "y" * 43)
                return (await client.ready())[0] == "ready"

            await until(well)


async def test_a_read_only_store_and_a_full_cache_are_named_and_cost_no_request(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with Stack(tmp_path) as stack, stack.session() as session:
        await stack.join(engine.url)
        key = (await stack.command("keys", "create", "alice"))["text"]
        client = Client(stack.public, stack.api, session, key)
        assert (await client.ask())[0] == 200

        await asyncio.to_thread(stack.postgres.read_only, True)
        await until(lambda: _says(client, "store", "read_only"))
        assert (await client.ask())[0] == 200
        await until(lambda: _consumer_says(session, stack, 503, "store"))
        await asyncio.to_thread(stack.postgres.read_only, False)
        await until(lambda: _says(client, "store", "ok"))
        await until(lambda: _consumer_says(session, stack, 200, None))

        await asyncio.to_thread(stack.redis.full, True)

        async def full() -> bool:
            await client.ask("sk-fab-" + "x" * 43)
            return await _says(client, "cache", "away")

        await until(full)
        assert (await client.ask())[0] == 200
        rows = await _ledger(stack, 3)
        assert all(row["outcome"] == "ok" for row in rows)


async def _says(client: Client, part: str, state: str) -> bool:
    return bool((await client.ready())[1][part] == state)


async def _consumer_says(
    session: aiohttp.ClientSession, stack: Stack, status: int, away: str | None
) -> bool:
    async with session.get(f"{stack.figures}/health/ready") as answer:
        body = await answer.json()
        return answer.status == status and (away is None or body[away] == "away")


async def _ledger(stack: Stack, count: int) -> list[asyncpg.Record]:
    """Return all rows, once there are so many."""
    connection = await asyncpg.connect(stack.store_url)
    try:
        rows: list[asyncpg.Record] = []

        async def enough() -> bool:
            rows[:] = await connection.fetch("SELECT * FROM ledger ORDER BY at")
            return len(rows) >= count

        await until(enough)
        return rows
    finally:
        await connection.close()


async def test_a_revoked_key_is_refused_by_every_server_and_its_streams_are_cut(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    """Also while Redis, the faster way for notices, is down."""
    hold = asyncio.Event()
    async with Stack(tmp_path) as stack, stack.session() as session:
        await stack.join(engine.url)
        await stack.join_server("second")
        manager = (await stack.command("keys", "create", "boss", "--management"))["text"]
        for redis in ("there", "away"):
            if redis == "away":
                await stack.parts["redis"].kill()
            made = await stack.command("keys", "create", "mallory")
            first = Client(stack.public, stack.api, session, made["text"])
            public, api = stack.addresses("second")
            second = Client(public, api, session, made["text"])
            assert (await first.ask())[0] == 200
            assert (await second.ask())[1]["error"]["code"] != "invalid_api_key"

            engine.plans.append(Plan(chunks=("Hel", hold, "lo")))
            async with session.post(
                f"{stack.public}/v1/chat/completions",
                json={**ASK, "stream": True},
                headers={"authorization": f"Bearer {made['text']}"},
            ) as answer:
                assert b"Hel" in await answer.content.readuntil(b"\n\n")
                async with session.post(
                    f"{api}/api/v1/keys/{made['key']['id']}/revoke",
                    headers={"authorization": f"Bearer {manager}"},
                ) as revoked:
                    assert revoked.status == 200
                rest = await asyncio.wait_for(answer.content.read(), PATIENCE)
            assert b"key_withdrawn" in rest
            assert b"[DONE]" not in rest
            assert (await second.ask())[1]["error"]["code"] == "invalid_api_key"
            assert (await first.ask())[1]["error"]["code"] == "invalid_api_key"


async def test_a_spool_that_is_full_drops_heartbeats_and_refuses_requests_until_kafka_is_back(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with (
        Stack(tmp_path, spool_limit="1MiB", heartbeat_seconds="0.2") as stack,
        stack.session() as session,
    ):
        await stack.join(engine.url)
        key = (await stack.command("keys", "create", "alice"))["text"]
        manager = (await stack.command("keys", "create", "boss", "--management"))["text"]
        client = Client(stack.public, stack.api, session, key)
        finished = 0
        await stack.parts["kafka"].kill()
        async with asyncio.timeout(120):
            while True:
                answers = await asyncio.gather(*(client.ask() for _ in range(16)))
                finished += sum(status == 200 for status, _ in answers)
                refused = [body for status, body in answers if status != 200]
                if refused:
                    break
        assert {body["error"]["code"] for body in refused} == {"ledger_full"}
        status, checks = await client.ready()
        assert (status, checks["bus"]) == ("degraded", "full")
        figures = await client.figures(manager)
        assert figures["fabric_bus_full"] == 1
        assert figures['fabric_bus_dropped_total{topic="request-ledger"}'] == 0
        await until(lambda: _dropped_heartbeats(client, manager))

        await stack.parts["kafka"].start()
        await until(lambda: _says(client, "bus", "ok"))
        assert (await client.ask())[0] == 200
        rows = await _ledger(stack, finished + len(refused) + 1)
        assert sum(row["outcome"] == "ok" for row in rows) == finished + 1


async def _dropped_heartbeats(client: Client, management: str) -> bool:
    figures = await client.figures(management)
    return figures['fabric_bus_dropped_total{topic="client-heartbeats"}'] > 0


async def test_a_server_that_waits_for_its_back_ends_says_for_which_and_can_be_told_to_stop(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with Stack(tmp_path) as stack, stack.session() as session:
        await stack.server.stop()
        await stack.consumer.stop()
        for name, said in (("kafka", "bus: Kafka at"), ("redis", "cache: Redis at")):
            await stack.parts[name].kill()
            await stack.server.begin()
            assert "waiting" in await stack.server.said(said)
            await stack.server.stop()
            assert stack.server.code == 0
        await stack.parts["postgres"].kill()
        for part in (stack.server, stack.consumer):
            await part.begin()
            assert "waiting" in await part.said("store: PostgreSQL at")
        for name in ("postgres", "redis", "kafka"):
            await stack.parts[name].start()
        for part in (stack.server, stack.consumer):
            await part.said(READY)
        await stack.join(engine.url)
        key = (await stack.command("keys", "create", "alice"))["text"]
        client = Client(stack.public, stack.api, session, key)
        assert (await client.ask())[0] == 200
        assert (await _ledger(stack, 1))[0]["outcome"] == "ok"


async def test_consumers_share_the_work_and_leave_it_to_the_other_at_once(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with Stack(tmp_path) as stack, stack.session() as session:
        await stack.join(engine.url)
        key = (await stack.command("keys", "create", "alice"))["text"]
        client = Client(stack.public, stack.api, session, key)
        other = await stack.join_consumer()
        for count in (20, 40):
            answers = await asyncio.gather(*(client.ask() for _ in range(20)))
            assert all(status == 200 for status, _ in answers)
            await _ledger(stack, count)
            if count == 20:
                stack.consumer.signal(signal.SIGTERM)
                await stack.consumer.stop()
                assert stack.consumer.code == 0

        async def no_lag() -> bool:
            async with session.get(f"{other}/metrics") as answer:
                figures = parse(await answer.text())
            assert figures["fabric_consumer_failing"] == 0
            assert figures["fabric_consumer_records_written_total"] > 0
            assert figures["fabric_consumer_batch_records_count"] > 0
            return figures['fabric_consumer_lag{topic="request-ledger"}'] == 0

        await until(no_lag)
