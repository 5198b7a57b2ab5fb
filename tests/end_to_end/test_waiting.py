"""Queueing as the official client and operators see it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from fabric_server.gateway.stream_keepalive import QUEUED_SECONDS
from tests.engine import Plan, ScriptedEngine
from tests.fabric import Fabric

MESSAGES: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture
async def fabric(tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[Fabric]:
    async with Fabric(tmp_path) as fabric:
        await fabric.join(engine.url, slots=1)
        yield fabric


@pytest.fixture
async def client(fabric: Fabric) -> AsyncIterator[openai.AsyncOpenAI]:
    async with fabric.openai() as client:
        yield client


async def streamed(client: openai.AsyncOpenAI, **headers: str) -> str:
    stream = await client.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, extra_headers=headers
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def in_line(fabric: Fabric, count: int) -> None:
    async with asyncio.timeout(5):
        while fabric.app.data_plane.admission.waiting != count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def look(fabric: Fabric, path: str) -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {fabric.management_key}"}
    connector = aiohttp.TCPConnector(ssl=fabric.trust())
    async with (
        aiohttp.ClientSession(fabric.api, headers=headers, connector=connector) as session,
        session.get(path) as answer,
    ):
        return answer.status, await answer.json()


def let_time_pass(fabric: Fabric) -> None:
    """Check the deadlines as if queued requests had waited for their first keepalive."""
    deadlines = fabric.app.data_plane.deadlines
    deadlines.check(asyncio.get_running_loop().time() + QUEUED_SECONDS)


async def test_the_client_gets_its_answer_after_comments(
    fabric: Fabric, engine: ScriptedEngine, client: openai.AsyncOpenAI
) -> None:
    gate = asyncio.Event()
    engine.plans.append(Plan(hold=gate))
    first = asyncio.create_task(streamed(client))
    await engine.started()
    asked = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    second = asyncio.create_task(asked)
    await in_line(fabric, 1)
    assert not second.done()
    let_time_pass(fabric)
    stream = await asyncio.wait_for(second, 5)  # the head is here, and the slot is not free yet
    assert not first.done()
    request_id = stream.response.headers["x-request-id"]
    status, place = await look(fabric, f"/api/v1/queue/{request_id}")
    assert status == 200
    assert (place["position"], place["model"], place["priority"]) == (1, "tiny", "medium")
    assert 0 < place["waited_seconds"] < 60
    gate.set()
    assert "".join([c.choices[0].delta.content or "" async for c in stream]) == "Hello, world"
    assert await first == "Hello, world"
    assert (await look(fabric, f"/api/v1/queue/{request_id}"))[0] == 404
    entries = await fabric.ledger()
    assert [(entry.outcome, entry.status) for entry in entries] == [("ok", 200)] * 2
    assert max(entry.queue_ms for entry in entries) > 0


async def test_the_client_raises_what_is_told_within_the_stream(
    fabric: Fabric, engine: ScriptedEngine, client: openai.AsyncOpenAI
) -> None:
    gate = asyncio.Event()
    engine.plans.append(Plan(hold=gate))
    refusal = {"error": {"message": "The prompt is too long.", "code": "long"}}
    # Twice: after the first the node asks without the stream_options that the fabric has added.
    engine.plans += [Plan(status=400, error=refusal)] * 2
    first = asyncio.create_task(streamed(client))
    await engine.started()
    second = asyncio.create_task(streamed(client))
    await in_line(fabric, 1)
    let_time_pass(fabric)
    gate.set()
    with pytest.raises(openai.APIError, match="The prompt is too long") as caught:
        await second
    assert not isinstance(caught.value, openai.APIStatusError)
    assert await first == "Hello, world"
    newest = (await fabric.ledger())[0]
    assert (newest.outcome, newest.status) == ("engine_error", 200)


async def test_the_client_is_told_when_to_come_back(tmp_path: Path, engine: ScriptedEngine) -> None:
    async with Fabric(tmp_path, queue_length=1) as fabric, fabric.openai() as client:
        await fabric.join(engine.url, slots=1)
        gate = asyncio.Event()
        engine.plan = Plan(hold=gate)
        first = asyncio.create_task(streamed(client))
        await engine.started()
        second = asyncio.create_task(streamed(client))
        await in_line(fabric, 1)
        with pytest.raises(openai.RateLimitError) as refused:
            await streamed(client)
        assert refused.value.code == "queue_share_full"
        assert 1 <= int(refused.value.response.headers["retry-after"]) <= 120
        other = await fabric.make_key()
        async with fabric.openai(api_key=other) as stranger:
            with pytest.raises(openai.InternalServerError) as crowded:
                await streamed(stranger)
        assert (crowded.value.status_code, crowded.value.code) == (503, "overloaded")
        gate.set()
        assert await first == await second == "Hello, world"


async def test_operators_see_the_queue(fabric: Fabric, engine: ScriptedEngine) -> None:
    client = fabric.openai(api_key=await fabric.make_key(priority="high"))
    assert await look(fabric, "/api/v1/queue") == (200, {"data": []})
    gate = asyncio.Event()
    engine.plan = Plan(hold=gate)
    asked = [asyncio.create_task(streamed(client))]
    await engine.started()
    for name in ("low", "high", "low"):
        asked.append(asyncio.create_task(streamed(client, **{"x-fabric-priority": name})))
    await in_line(fabric, 3)
    _, queue = await look(fabric, "/api/v1/queue")
    [line] = queue["data"]
    assert (line["model"], line["length"], line["keys"], line["slots"]) == ("tiny", 3, 1, 1)
    assert line["by_priority"] == {"high": 1, "medium": 0, "low": 2}
    assert line["oldest_seconds"] > 0
    assert line["estimated_seconds"] == 4 * line["service_seconds"]
    gate.set()
    assert await asyncio.gather(*asked) == ["Hello, world"] * 4
    await client.close()
