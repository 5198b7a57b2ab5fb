"""Failures that a node survives without its owner."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import aiohttp
import pytest

from fabric_client.config import PREFIX
from fabric_client.config import Config as NodeConfig
from fabric_client.identity import Identity
from fabric_client.owner import state
from fabric_client.supervisor import Supervisor
from fabric_server.nodes.node import Node
from fabric_server.retention_policy import policy_of
from fabric_server.storage.retention import run_once
from protocol.errors import RemoteError
from runtime.flags import read
from tests.engine import Plan, ScriptedEngine
from tests.fabric import Fabric, RunningNode

CHAT = "/v1/chat/completions"
ASK = {"model": "tiny", "messages": []}


@pytest.fixture
async def fabric(tmp_path: Path) -> AsyncIterator[Fabric]:
    async with Fabric(tmp_path, heartbeat_seconds=0.2) as fabric:
        yield fabric


def registration(fabric: Fabric, node: RunningNode) -> Node:
    found = fabric.app.control_plane.registry.node(node.id)
    assert found is not None
    return found


async def until(what: object, timeout: float = 10) -> None:
    """Poll for a condition on the other side, for which there is no event here."""
    assert callable(what)
    async with asyncio.timeout(timeout):
        while not what():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_after_a_sleep_the_node_registers_again_at_once(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    slept = 0.0
    directory = await fabric.enrol()
    config = NodeConfig(data=directory, name="laptop", engine=(engine.url,))
    identity = Identity.load(directory)
    supervisor = Supervisor(
        config, identity, rng=Random(), clock=lambda: time.time() + slept, sleep_check=0.05
    )
    task = asyncio.get_running_loop().create_task(supervisor.run())
    node = RunningNode(identity.node_id, config, supervisor, task)
    fabric.nodes.append(node)
    await fabric.routed(node.id)
    before = registration(fabric, node).epoch
    slept = 3600.0
    await until(lambda: (n := fabric.app.control_plane.registry.node(node.id)) and n.epoch > before)
    await fabric.routed(node.id)
    async with fabric.user() as user, user.post(CHAT, json=ASK) as answer:
        assert answer.status == 200


async def test_models_that_come_and_go_are_reported(fabric: Fabric, engine: ScriptedEngine) -> None:
    node = await fabric.join(engine.url)
    assert set(fabric.app.control_plane.registry.models()) == {"tiny"}
    engine.models = ["tiny", "new"]
    node.supervisor.poke()
    await until(lambda: set(fabric.app.control_plane.registry.models()) == {"tiny", "new"})


async def test_an_engine_that_dies_is_known_to_be_down_and_one_that_comes_back_to_be_up(
    fabric: Fabric, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    node = await fabric.join(engine.url)
    await engine.stop()
    # The request that fails is what makes the node look at once.
    async with fabric.user() as user, user.post(CHAT, json=ASK) as answer:
        assert answer.status == 502
    await until(lambda: not registration(fabric, node).engines["openai"].healthy, timeout=5)
    async with fabric.user() as user, user.post(CHAT, json=ASK) as answer:
        assert answer.status == 503
    await engine.start()
    await until(lambda: registration(fabric, node).engines["openai"].healthy)
    async with fabric.user() as user, user.post(CHAT, json=ASK) as answer:
        assert answer.status == 200
    for program in ("fabric.supervisor", "fabric.links"):  # the node's log, and the server's
        said = [one.message for one in caplog.records if one.name == program]
        assert [one for one in said if one.startswith("engine ")] == [
            "engine out of use",
            "engine in use again",
        ]


async def test_heartbeats_reach_the_store(fabric: Fabric, engine: ScriptedEngine) -> None:
    node = await fabric.join(engine.url)
    await until(lambda: (beat := registration(fabric, node).heartbeat) and beat.seq >= 3)
    await fabric.app.backends.writer.flush()
    records = await fabric.app.backends.store.heartbeats(node.id)
    assert [record.seq for record in records] == list(range(len(records), 0, -1))
    beat = records[0].heartbeat
    assert beat.memory_bytes > 0
    assert (beat.slots, beat.engines_healthy) == (4, 1)


async def test_the_state_file_tells_how_the_node_is(fabric: Fabric, engine: ScriptedEngine) -> None:
    node = await fabric.join(engine.url)
    await until(lambda: (told := state.read(node.config.data)) and told.tunnels == 2)
    told = state.read(node.config.data)
    assert told is not None
    assert told.linked
    assert [model.name for report in told.engines for model in report.models] == ["tiny"]
    await fabric.stop()
    await until(lambda: (told := state.read(node.config.data)) and not told.linked)
    told = state.read(node.config.data)
    assert told is not None
    assert told.reason
    await fabric.start()


async def test_a_busy_node_is_given_more_tunnels(fabric: Fabric, engine: ScriptedEngine) -> None:
    node = await fabric.join(engine.url, slots=100)
    gate = asyncio.Event()
    engine.plan = Plan(hold=gate)

    async def ask() -> int:
        async with fabric.user() as user, user.post(CHAT, json=ASK) as answer:
            return answer.status

    asked = [asyncio.ensure_future(ask()) for _ in range(70)]
    await fabric.routed(node.id, tunnels=3)
    gate.set()
    assert set(await asyncio.gather(*asked)) == {200}


async def test_a_node_that_was_away_for_long_comes_back_and_a_deleted_one_is_told_to_join(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    node = await fabric.join(engine.url)
    store = fabric.app.backends.store
    day = 86_400.0

    async def away_for(days: float) -> None:
        await node.stop()
        await until(lambda: fabric.app.control_plane.registry.node(node.id) is None)
        await store.mark_offline(time.time() + 60)
        async with store.database.transaction() as session:
            await session.execute(
                "UPDATE nodes SET last_seen_at = $1 WHERE id = $2",
                time.time() - days * day,
                node.id,
            )

    await away_for(40)
    assert await store.nodes(time.time() - 30 * day) == []
    node = await fabric.run_node(node.config.data, engine.url)
    assert [one.id for one in await store.nodes(time.time() - 30 * day)] == [node.id]

    await away_for(40)
    done = await run_once(store.database, policy_of(fabric.config))
    assert done is not None and done["nodes"] == 1
    supervisor = Supervisor(node.config, Identity.load(node.config.data), rng=Random())
    with pytest.raises(RemoteError, match="join it again with a new invitation"):
        await supervisor.run()


async def test_settings_that_are_read_again_interrupt_nothing(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    directory = await fabric.enrol()
    file = directory / "fabric.toml"
    text = f'engine = ["{engine.url}"]\npause_on_battery = false\n'
    file.write_text(text)
    config = read(NodeConfig, PREFIX, environ={}, flags={"data": str(directory)}, file=None)
    supervisor = Supervisor(config, Identity.load(directory), rng=Random())
    task = asyncio.get_running_loop().create_task(supervisor.run())
    node = RunningNode(Identity.load(directory).node_id, config, supervisor, task)
    fabric.nodes.append(node)
    await fabric.routed(node.id)
    more = asyncio.Event()
    engine.plan = Plan(chunks=("Hel", more, "lo"))
    async with fabric.user() as user:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
        asked = asyncio.get_running_loop().create_task(_text(user, body))
        await engine.started()
        file.write_text(f'{text}name = "cellar"\nregion = "eu-west"\nupload_limit = "1 MiB"\n')
        supervisor.reload()

        async with asyncio.timeout(10):
            while True:
                one = registration(fabric, node)
                if one.name == "cellar" and len(one.tunnels) == 2:
                    break
                await asyncio.sleep(0.01)  # the node's doing: no event for it here
        assert registration(fabric, node).region == "eu-west"
        more.set()
        assert await asked == "Hello"


async def _text(user: aiohttp.ClientSession, body: dict[str, object]) -> str:
    async with user.post("/v1/chat/completions", json=body) as answer:
        assert answer.status == 200
        text: str = (await answer.json())["choices"][0]["message"]["content"]
        return text
