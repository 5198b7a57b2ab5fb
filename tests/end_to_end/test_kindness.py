"""A node whose owner uses the machine, and one that the operator drains."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import openai
import pytest

from fabric_client.hardware.machine import Machine
from fabric_client.identity import Identity
from fabric_client.owner import control, state
from fabric_client.registration.join import join
from fabric_client.sdk import Client
from fabric_server.nodes.node import Node
from tests.engine import Plan, ScriptedEngine
from tests.fabric import Fabric, RunningNode
from tests.nvml import FakeNvml

CHAT = "/v1/chat/completions"
ASK = {"model": "tiny", "messages": []}


@pytest.fixture
async def fabric(tmp_path: Path) -> AsyncIterator[Fabric]:
    async with Fabric(tmp_path, queue_timeout=0.2) as fabric:
        yield fabric


def registration(fabric: Fabric, node: RunningNode) -> Node:
    found = fabric.app.control_plane.registry.node(node.id)
    assert found is not None
    return found


def problem(fabric: Fabric, node: RunningNode) -> str:
    return registration(fabric, node).problem


async def until(what: Callable[[], object], timeout: float = 10) -> None:
    """Poll for a condition on the other side, for which there is no event here."""
    async with asyncio.timeout(timeout):
        while not what():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def ask(fabric: Fabric) -> int:
    async with fabric.user() as user, user.post(CHAT, json=ASK) as answer:
        await answer.read()
        return answer.status


async def api(fabric: Fabric, method: str, path: str) -> Any:
    async with (
        aiohttp.ClientSession(
            headers={"authorization": f"Bearer {fabric.management_key}"},
            connector=aiohttp.TCPConnector(ssl=fabric.trust()),
        ) as session,
        session.request(method, f"{fabric.api}{path}") as answer,
    ):
        return await answer.json()


def read_state(node: RunningNode) -> state.State:
    now = state.read(node.config.data)
    assert now is not None
    return now


# ── the owner ─────────────────────────────────────────────────────────────────────────────────


async def test_a_paused_node_is_routed_around_and_answers_again_when_resumed(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    async with ScriptedEngine() as other:
        paused = await fabric.join(engine.url, name="paused")
        await fabric.join(other.url, name="other")
        control.update(paused.config.data, paused=True)
        await until(lambda: problem(fabric, paused) == "paused: by its owner")
        assert len(registration(fabric, paused).tunnels) == 2  # it stays connected
        assert [await ask(fabric) for _ in range(5)] == [200] * 5
        assert len(engine.requests) == 0
        assert len(other.requests) == 5

        control.update(paused.config.data, paused=False)
        await until(lambda: not problem(fabric, paused))
        await other.stop()
        assert await ask(fabric) in (200, 502)  # the first may find the one that is gone
        assert await ask(fabric) == 200
        assert len(engine.requests) >= 1


async def test_what_runs_finishes_and_why_nothing_more_comes_is_seen_everywhere(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    node = await fabric.join(engine.url)
    gate = asyncio.Event()
    engine.plan = Plan(chunks=["begun", gate, "ended"])
    client = fabric.openai()
    stream = await client.chat.completions.create(model="tiny", messages=[], stream=True)
    running = aiter(stream)
    await anext(running)

    said = control.update(node.config.data, paused=True)
    await until(lambda: problem(fabric, node) == "paused: by its owner")
    await until(lambda: read_state(node).heard == said.at)
    assert (read_state(node).paused, read_state(node).active) == ("by its owner", 1)
    assert [report.healthy for report in read_state(node).engines] == [True]  # as they are
    assert await ask(fabric) == 503
    (shown,) = (await api(fabric, "GET", "/api/v1/nodes"))["data"]
    assert (shown["connected"], shown["problem"]) == (True, "paused: by its owner")
    assert (shown["engines"][0]["healthy"], shown["engines"][0]["slots"]) == (False, 0)

    gate.set()
    rest = [chunk async for chunk in running]
    assert "ended" in [chunk.choices[0].delta.content for chunk in rest if chunk.choices]
    await client.close()
    control.update(node.config.data, paused=False)
    await until(lambda: not problem(fabric, node))
    engine.plan = Plan()
    assert await ask(fabric) == 200
    (shown,) = (await api(fabric, "GET", "/api/v1/nodes"))["data"]
    assert shown["problem"] is None


async def test_a_pause_outlasts_a_restart_and_ends_by_itself(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    directory = await fabric.enrol()
    control.update(directory, paused=True, until=time.time() + 2)
    node = await fabric.run_node(directory, engine.url)
    # From the first moment: no request gets in before it has looked.
    assert problem(fabric, node).startswith("paused: by its owner until ")
    await until(lambda: not problem(fabric, node))
    assert await ask(fabric) == 200


async def test_outside_its_hours_a_node_is_paused_and_within_them_it_answers(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    now = datetime.now()
    begin, end = now + timedelta(hours=2), now + timedelta(hours=4)
    hours = f"{begin:%H:%M}-{end:%H:%M}"
    node = await fabric.join(engine.url, schedule=(hours,))
    assert problem(fabric, node) == f"paused: outside its hours ({hours})"
    opens = begin.replace(second=0, microsecond=0).timestamp()
    async with fabric.openai(max_retries=0) as client:
        with pytest.raises(openai.InternalServerError) as refused:
            await client.chat.completions.create(model="tiny", messages=[])
        (listed,) = (await client.models.list()).data
    with Client(fabric.public, fabric.key, ca=str(fabric.app.tls.certificates.ca)) as sdk:
        assert await asyncio.to_thread(sdk.models) == []
    answer = refused.value.response
    assert (answer.status_code, refused.value.code) == (503, "no_capacity")
    assert abs(int(answer.headers["retry-after"]) - (opens - time.time())) < 10
    assert "outside its hours" not in answer.text, "what nodes write is for operators"
    assert (listed.id, listed.model_extra) == (
        "tiny",
        {
            "available": False,
            "unavailable_reason": listed.to_dict()["unavailable_reason"],
            "back_at": opens,
        },
    )
    begin, end = now - timedelta(hours=2), now + timedelta(hours=2)
    await fabric.join(engine.url, name="other", schedule=(f"{begin:%H:%M}-{end:%H:%M}",))
    assert await ask(fabric) == 200


async def test_what_waits_when_its_last_node_is_paused_is_refused_at_once(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    gate = asyncio.Event()
    engine.plan = Plan(chunks=["begun", gate, "ended"])
    async with Fabric(tmp_path) as fabric, fabric.openai(max_retries=0) as client:
        node = await fabric.join(engine.url, slots=1)
        stream = await client.chat.completions.create(model="tiny", messages=[], stream=True)
        running = aiter(stream)
        await anext(running)
        waiting = asyncio.create_task(client.chat.completions.create(model="tiny", messages=[]))
        await until(lambda: fabric.app.data_plane.admission.waiting == 1)
        control.update(node.config.data, paused=True, until=time.time() + 600)
        async with asyncio.timeout(10):
            with pytest.raises(openai.InternalServerError) as refused:
                await waiting
        assert refused.value.code == "no_capacity"
        assert 590 <= int(refused.value.response.headers["retry-after"]) <= 600
        gate.set()
        assert len([chunk async for chunk in running]) > 0


async def test_while_others_use_the_gpu_or_power_is_out_a_node_is_paused(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    """The driver and the battery are fakes."""
    use, battery = SimpleNamespace(gpu=95), SimpleNamespace(power_plugged=True)
    directory = await fabric.enrol()
    machine = Machine(
        directory,
        now=asyncio.get_running_loop().time(),
        nvml=FakeNvml({"name": "RTX", "use": use}),
        battery=lambda: battery,
    )
    node = await fabric.run_node(
        directory,
        engine.url,
        machine=machine,
        pause_gpu_percent=50,
        pause_gpu_seconds=0,
        pause_on_battery=True,
    )
    await until(lambda: problem(fabric, node) == "paused: the GPU is in use")
    battery.power_plugged = False
    await until(lambda: problem(fabric, node) == "paused: on battery")
    battery.power_plugged, use.gpu = True, 0
    await until(lambda: not problem(fabric, node))
    assert await ask(fabric) == 200


async def test_draining_finishes_what_runs_and_survives_a_lost_link(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    node = await fabric.join(engine.url)
    gate = asyncio.Event()
    engine.plan = Plan(chunks=["begun", gate, "ended"])
    client = fabric.openai()
    stream = await client.chat.completions.create(model="tiny", messages=[], stream=True)
    running = aiter(stream)
    await anext(running)

    control.update(node.config.data, drain="another run")
    said = control.update(node.config.data, drain=read_state(node).run)
    await until(lambda: read_state(node).heard == said.at)
    assert read_state(node).draining
    assert node.supervisor.drain_requested.is_set()
    leaving = asyncio.ensure_future(node.supervisor.leave(None))
    epoch = registration(fabric, node).epoch
    link = registration(fabric, node).link
    assert link is not None
    link.close(0, "the test cuts it")
    await until(lambda: (n := fabric.app.control_plane.registry.node(node.id)) and n.epoch > epoch)
    assert problem(fabric, node).startswith("draining: ")
    assert not leaving.done()
    gate.set()
    rest = [chunk async for chunk in running]
    assert "ended" in [chunk.choices[0].delta.content for chunk in rest if chunk.choices]
    await asyncio.wait_for(leaving, 5)
    await client.close()


# ── the operator ──────────────────────────────────────────────────────────────────────────────


async def test_a_drained_node_finishes_what_runs_and_gets_nothing_new_until_undrained(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    node = await fabric.join(engine.url)
    gate = asyncio.Event()
    engine.plan = Plan(chunks=["begun", gate, "ended"])
    client = fabric.openai()
    stream = await client.chat.completions.create(model="tiny", messages=[], stream=True)
    running = aiter(stream)
    await anext(running)

    shown = await api(fabric, "POST", f"/api/v1/nodes/{node.id}/drain")
    assert (shown["state"], shown["draining"]) == ("draining", True)
    assert shown["problem"] == "drained by the operator"
    assert await ask(fabric) == 503
    assert len(engine.requests) == 1
    gate.set()
    rest = [chunk async for chunk in running]
    assert "ended" in [chunk.choices[0].delta.content for chunk in rest if chunk.choices]
    await client.close()

    shown = await api(fabric, "POST", f"/api/v1/nodes/{node.id}/undrain")
    assert (shown["state"], shown["draining"], shown["problem"]) == ("good", False, None)
    engine.plan = Plan()
    assert await ask(fabric) == 200
    nobody = await api(fabric, "POST", "/api/v1/nodes/node_0/drain")
    assert nobody["error"]["code"] == "node_not_found"


async def test_a_drained_node_stays_so_when_it_or_the_server_comes_back(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    node = await fabric.join(engine.url)
    await api(fabric, "POST", f"/api/v1/nodes/{node.id}/drain")
    await node.stop()
    await until(lambda: fabric.app.control_plane.registry.node(node.id) is None)
    again = await fabric.run_node(node.config.data, engine.url)
    assert registration(fabric, again).drained
    assert await ask(fabric) == 503

    await fabric.restart()
    await fabric.routed(again.id)
    assert await ask(fabric) == 503
    # What another process writes into the store is seen within a second, too.
    await fabric.app.backends.store.set_node_draining(again.id, False)
    await until(lambda: not registration(fabric, again).drained, timeout=2)
    assert await ask(fabric) == 200


async def test_undraining_serves_who_waits(tmp_path: Path, engine: ScriptedEngine) -> None:
    async with Fabric(tmp_path, queue_timeout=20.0) as fabric:
        node = await fabric.join(engine.url, slots=1)
        gate = asyncio.Event()
        engine.plan = Plan(hold=gate)
        first = asyncio.ensure_future(ask(fabric))
        await engine.started()
        second = asyncio.ensure_future(ask(fabric))
        await until(lambda: fabric.app.data_plane.admission.waiting == 1)
        await api(fabric, "POST", f"/api/v1/nodes/{node.id}/drain")
        gate.set()
        assert await first == 200
        assert not second.done()
        await api(fabric, "POST", f"/api/v1/nodes/{node.id}/undrain")
        assert await second == 200


# ── names ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_node_is_called_as_its_invitation_says_unless_its_owner_names_it(
    fabric: Fabric, tmp_path: Path
) -> None:
    async def joined(invited: str | None, own: str | None) -> tuple[str, str]:
        directory = tmp_path / f"{invited}-{own}"
        token = (await fabric.app.control_plane.enrolment.invite(invited, 60.0)).token
        identity = await join(token, directory, name=own)
        row = await fabric.app.backends.store.node(identity.node_id)
        assert row is not None
        return row.name, Identity.load(directory).name

    assert await joined("Dachböden", None) == ("Dachböden",) * 2
    assert await joined("attic", "mine") == ("mine",) * 2
    by_host, kept = await joined(None, None)
    assert by_host == kept != ""
    assert (await joined("a\nb", None))[0] == by_host  # what is no name is no wish
