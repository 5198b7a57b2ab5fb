"""A node is slow to start, and the hedge answers: over real tunnels, for the official client."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from fabric_server.proxy.quantile import MIN_SAMPLES
from fabric_server.reload import reload
from tests.engine import Plan, Request, ScriptedEngine
from tests.fabric import Fabric

MESSAGES: Any = [{"role": "user", "content": "Hi"}]


async def say(client: openai.AsyncOpenAI, *, stream: bool) -> str:
    if not stream:
        whole = await client.chat.completions.create(model="tiny", messages=MESSAGES)
        return whole.choices[0].message.content or ""
    chunks = await client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    return "".join([c.choices[0].delta.content or "" async for c in chunks if c.choices])


async def first_asked(engines: list[ScriptedEngine]) -> tuple[ScriptedEngine, Request]:
    asked = [asyncio.create_task(engine.started()) for engine in engines]
    done, others = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    [task] = done
    return engines[asked.index(task)], task.result()


@pytest.mark.parametrize("stream", [True, False])
async def test_the_quicker_node_answers_and_the_other_one_stops(
    tmp_path: Path, stream: bool
) -> None:
    async with (
        ScriptedEngine() as one,
        ScriptedEngine() as other,
        Fabric(tmp_path, hedge="p95") as fabric,
        fabric.openai() as client,
    ):
        engines = [one, other]
        for engine in engines:
            await fabric.join(engine.url, name=f"at {engine.port}", slots=1)
        for _ in range(MIN_SAMPLES):
            assert await say(client, stream=stream) == "Hello, world"
            await first_asked(engines)
        for engine in engines:
            engine.plan = Plan(chunks=[f"from {engine.port}"], hold=asyncio.Event())
        answer = asyncio.create_task(say(client, stream=stream))
        slow, left = await first_asked(engines)
        [quick] = [engine for engine in engines if engine is not slow]
        await quick.started()
        assert quick.plan.hold is not None
        quick.plan.hold.set()
        assert await answer == f"from {quick.port}"
        async with asyncio.timeout(5):
            while sum(node.active for node in fabric.app.control_plane.registry.nodes()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # the node's confirmation: no event for it here
        assert left.outcome == "aborted"
        entry, *before = await fabric.ledger()
        assert len(before) == MIN_SAMPLES
        rows = {row.id: row.name for row in await fabric.app.backends.store.nodes()}
        assert (entry.outcome, entry.attempts) == ("ok", 2)
        assert rows[str(entry.node_id)] == f"at {quick.port}"
        metrics = fabric.app.data_plane.metrics
        assert (metrics.hedged, metrics.hedges_won, metrics.retries) == (1, 1, 0)


async def test_it_is_switched_while_the_server_runs(tmp_path: Path) -> None:
    async with Fabric(tmp_path) as fabric:
        app = fabric.app
        assert app.data_plane.gateway.upstream.hedging.on is False
        for wanted in ("p95", "off"):
            told = reload(app, lambda config, wanted=wanted: replace(config, hedge=wanted))
            assert told["applied"] == ["hedge"]
            assert app.data_plane.gateway.upstream.hedging.on is (wanted == "p95")
