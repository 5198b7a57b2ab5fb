"""Tunnels that die under an answer: the user does not notice, and the engine is asked once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession

from protocol.aio.driver import Driver
from protocol.aio.server import ServerTunnel
from protocol.messages import Hello
from protocol.tunnel.resume import KEEP_SECONDS, RESUME_SECONDS
from tests.engine import Plan, ScriptedEngine
from tests.fabric import Fabric

STREAM: Any = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
CHAT = "/v1/chat/completions"


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Poll for a condition on the other side, for which there is no event here."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def the_busy_one(fabric: Fabric) -> ServerTunnel:
    """Return the server's end of the tunnel that carries the one stream."""
    tunnels = (
        tunnel for node in fabric.app.control_plane.registry.nodes() for tunnel in node.tunnels
    )
    [tunnel] = (tunnel for tunnel in tunnels if tunnel.connection.active)
    return tunnel


def cut(driver: Driver) -> None:
    """Cut the connection as a router does: no CLOSE, no TLS close_notify."""
    transport = driver._transport
    assert transport is not None
    transport.abort()


@pytest.mark.parametrize("tunnels", [2, 1])
async def test_an_answer_goes_on_over_another_tunnel_or_the_same_one_anew(
    tmp_path: Path, engine: ScriptedEngine, tunnels: int
) -> None:
    words = [f"word {number} " for number in range(40)]
    steps = [asyncio.Event() for _ in words]
    chunks = [part for pair in zip(words, steps, strict=True) for part in pair]
    engine.plan = Plan(chunks=chunks)
    async with Fabric(tmp_path, tunnels=tunnels) as fabric:
        await fabric.join(engine.url)
        async with fabric.openai() as client:
            stream = await client.chat.completions.create(**STREAM)
            got = []
            async for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    got.append(chunk.choices[0].delta.content)
                    if len(got) in (5, 25):  # a third time the node might wait longer
                        cut(the_busy_one(fabric))
                    steps[len(got) - 1].set()
        assert got == words
        assert len(engine.requests) == 1
        assert fabric.app.control_plane.tunnels.resumed == 2
        entry = (await fabric.ledger())[0]
        assert (entry.outcome, entry.attempts) == ("ok", 1)
        await until(lambda: not fabric.app.control_plane.registry.nodes()[0].active)


async def test_bytes_in_flight_at_the_cut_come_once(tmp_path: Path, engine: ScriptedEngine) -> None:
    """Megabytes at full speed, and cuts at arbitrary bytes."""
    words = [f"{number:06} " + "x" * 20_000 for number in range(300)]
    engine.plan = Plan(chunks=words)
    async with Fabric(tmp_path) as fabric:
        await fabric.join(engine.url)
        async with fabric.openai() as client:
            stream = await client.chat.completions.create(**STREAM)
            got = []
            async for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    got.append(chunk.choices[0].delta.content)
                    if len(got) in (20, 100, 180):
                        for tunnel in fabric.app.control_plane.registry.nodes()[0].tunnels:
                            if tunnel.connection.active:
                                cut(tunnel)
        assert got == words
        assert len(engine.requests) == 1


async def test_the_whole_node_cut_off_comes_back_with_its_answer(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    """Link and tunnels alike: the next registration brings what the last one carried."""
    on = asyncio.Event()
    engine.plan = Plan(chunks=["Hel", on, "lo"])
    async with Fabric(tmp_path) as fabric:
        await fabric.join(engine.url)
        async with fabric.openai() as client:
            stream = await client.chat.completions.create(**STREAM)
            got = []
            async for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    got.append(chunk.choices[0].delta.content)
                    if len(got) == 1:
                        [node] = fabric.app.control_plane.registry.nodes()
                        assert node.link is not None
                        cut(node.link)
                        for tunnel in list(node.tunnels):
                            cut(tunnel)
                        await until(lambda: not fabric.app.control_plane.registry.nodes())
                        on.set()
        assert got == ["Hel", "lo"]
        assert len(engine.requests) == 1


async def test_a_user_who_hangs_up_between_tunnels_stops_the_engine(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(chunks=["Hel", asyncio.Event(), "lo"])
    async with Fabric(tmp_path, tunnels=1) as fabric:
        await fabric.join(engine.url)
        async with fabric.user() as user:
            answer = await user.post(CHAT, json=STREAM)
            await answer.content.readline()
            cut(the_busy_one(fabric))
            answer.close()
        request = await engine.started()
        await request.aborted(timeout=RESUME_SECONDS)
        await until(lambda: not fabric.app.control_plane.registry.nodes()[0].active)


async def test_nobody_comes_back_so_the_user_is_told_and_the_engine_is_stopped(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(chunks=["Hel", asyncio.Event(), "lo"])
    async with Fabric(tmp_path, tunnels=1) as fabric:
        await fabric.join(engine.url)
        loop = asyncio.get_running_loop()
        async with fabric.user() as user, user.post(CHAT, json=STREAM) as answer:
            await answer.content.readline()
            fabric.app.listeners["proxy"].stop_accepting()
            began = loop.time()
            cut(the_busy_one(fabric))
            body = (await answer.read()).decode()
            assert 0.9 * RESUME_SECONDS < loop.time() - began < RESUME_SECONDS + 2
        last = body.strip().rsplit("\n\n", 1)[-1].removeprefix("data: ")
        assert json.loads(last)["error"]["code"] == "upstream_lost"
        assert not fabric.app.control_plane.registry.nodes()[0].active, "the slot is free"
        request = await engine.started()
        await request.aborted(timeout=KEEP_SECONDS + 1)
        assert loop.time() - began > KEEP_SECONDS - 1


# ── before the answer has begun ───────────────────────────────────────────────────────────────


async def ask_in_task(engine: ScriptedEngine, user: ClientSession) -> asyncio.Task[bytes]:
    """Return a request that has reached its engine, which has not answered yet."""
    task = asyncio.create_task(_whole(user.post(CHAT, json=STREAM)))
    await engine.started()
    return task


async def _whole(asking: AbstractAsyncContextManager[ClientResponse]) -> bytes:
    async with asking as answer:
        return await answer.read()


async def test_what_has_not_begun_is_asked_elsewhere_at_once(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(hold=asyncio.Event())
    async with Fabric(tmp_path, tunnels=1) as fabric, ScriptedEngine() as other:
        await fabric.join(engine.url)
        async with fabric.user() as user:
            task = await ask_in_task(engine, user)
            await fabric.join(other.url, name="other")
            fabric.app.listeners["proxy"].stop_accepting()
            [lost] = (node for node in fabric.app.control_plane.registry.nodes() if node.active)
            cut(lost.tunnels[0])
            await other.started()
            assert lost.active == 1, "nobody has waited until its tunnel was given up"
            assert b"[DONE]" in await task
        entry = (await fabric.ledger())[0]
        assert (entry.outcome, entry.attempts) == ("ok", 2)
        await engine.requests[0].aborted(timeout=KEEP_SECONDS + 1)
        await until(lambda: not lost.active)


async def test_only_as_many_are_asked_elsewhere_as_there_is_room_for(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    hold = asyncio.Event()
    engine.plan = Plan(hold=hold)
    async with Fabric(tmp_path, tunnels=1) as fabric, ScriptedEngine() as other:
        await fabric.join(engine.url, slots=4)
        async with fabric.user() as user:
            tasks = [await ask_in_task(engine, user) for _ in range(4)]
            await fabric.join(other.url, name="other", slots=1)
            cut(the_busy_one(fabric))
            left = await other.started()
            # The node is back, and stops the work that it has lost.
            await until(lambda: any(one.outcome == "aborted" for one in engine.requests))
            hold.set()
            assert all(b"[DONE]" in body for body in await asyncio.gather(*tasks))
        assert other.requests == [left]
        assert sorted([await request.ended() for request in engine.requests]) == [
            "aborted",
            "answered",
            "answered",
            "answered",
        ]


@pytest.mark.parametrize("tunnels", [2, 1])
async def test_what_has_not_begun_stays_where_there_is_a_tunnel_or_nobody_else(
    tmp_path: Path, engine: ScriptedEngine, tunnels: int
) -> None:
    hold = asyncio.Event()
    engine.plan = Plan(hold=hold)
    async with Fabric(tmp_path, tunnels=tunnels) as fabric, ScriptedEngine() as other:
        await fabric.join(engine.url)
        async with fabric.user() as user:
            task = await ask_in_task(engine, user)
            carries = the_busy_one(fabric)
            if tunnels > 1:
                await fabric.join(other.url, name="other")
            cut(carries)
            await until(lambda: carries.connection.closed and not carries.suspended)
            hold.set()
            assert b"[DONE]" in await task
        assert (len(engine.requests), other.requests) == (1, [])
        assert (await fabric.ledger())[0].attempts == 1


# ── cuts that only the node can see ───────────────────────────────────────────────────────────


@pytest.mark.parametrize("everything", [False, True], ids=["tunnels", "link and tunnels"])
async def test_what_the_node_has_lost_alone_goes_on_as_soon_as_it_says_so(
    tmp_path: Path, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture, everything: bool
) -> None:
    on = asyncio.Event()
    engine.plan = Plan(chunks=["Hel", on, "lo"])
    caplog.set_level("INFO", "fabric.tunnels")
    async with Fabric(tmp_path) as fabric, fabric.faults("127.0.6.1") as proxy:
        await fabric.join(engine.url, via=proxy.host)
        async with fabric.user() as user, user.post(CHAT, json=STREAM) as answer:
            await answer.content.readline()
            carries = the_busy_one(fabric)
            for connection in [*proxy.tunnels, *(proxy.links if everything else [])]:
                connection.reset_node()
            await until(lambda: carries.connection.closed)
            on.set()
            assert b"[DONE]" in await answer.read()
        assert len(engine.requests) == 1
        assert (await fabric.ledger())[0].outcome == "ok"
    reasons = [getattr(record, "reason", "") for record in caplog.records]
    assert "the node has lost it" in reasons
    assert not any(reason.startswith("silent") for reason in reasons), "nobody had to notice"


async def test_what_other_nodes_have_lost_is_no_matter_of_theirs(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    """Offsets count only for the node that they belong to."""
    async with Fabric(tmp_path) as fabric, ScriptedEngine() as other:
        await fabric.join(engine.url)
        [node] = fabric.app.control_plane.registry.nodes()
        numbers = [tunnel.connection.number for tunnel in node.tunnels]
        stranger = await fabric.join(other.url, name="other")
        there = fabric.app.control_plane.registry.node(stranger.id)
        assert there is not None
        [tunnel, _] = there.tunnels
        fabric.app.control_plane.tunnels.on_hello(tunnel, Hello(1, there.session, 5, numbers))
        assert not any(tunnel.connection.closed for tunnel in node.tunnels)
