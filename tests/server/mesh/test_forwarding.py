"""Requests that reach one server and are answered by the node of another."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from fabric_server.nodes.node import Engine
from protocol import messages
from protocol.messages import Figures, ResponseHead
from protocol.tunnel.frames import MAX_HEAD
from tests.engine import Plan, ScriptedEngine
from tests.mesh import Pair, until
from tests.site import ScriptedNode

CHAT = "/v1/chat/completions"
HI: Any = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
STREAM = {**HI, "stream": True}


@pytest.fixture
async def pair(tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[Pair]:
    async with Pair(tmp_path) as pair:
        await pair.home.join(engine.url, name="far", slots=4)
        await pair.knows("tiny", slots=4)
        yield pair


@pytest.fixture
async def user(pair: Pair) -> AsyncIterator[aiohttp.ClientSession]:
    async with pair.edge.user() as user:
        yield user


async def test_a_whole_answer_and_its_ledger_entry_name_the_node_that_gave_it(
    pair: Pair, user: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    async with user.post(CHAT, json=HI) as answer:
        assert answer.status == 200
        assert (await answer.json())["choices"][0]["message"]["content"] == "Hello, world"
    (entry,) = await pair.edge.ledger()
    assert (entry.node_id, entry.outcome, entry.attempts) == (pair.home.nodes[0].id, "ok", 1)
    assert entry.engine
    assert not entry.engine.startswith("row-")
    assert entry.completion_tokens == 3
    assert await pair.home.ledger() == []
    await until(lambda: not pair.active)
    assert not pair.meshes["home"].active


async def test_a_stream_comes_as_it_is_written(
    pair: Pair, user: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    gate = asyncio.Event()
    engine.plan = Plan(chunks=("Hel", gate, "lo"))
    async with user.post(CHAT, json=STREAM) as answer:
        first = await answer.content.readuntil(b"\n\n")
        assert json.loads(first[6:])["choices"][0]["delta"]["content"] == "Hel"
        assert pair.active == pair.meshes["home"].active == 1
        gate.set()
        assert (await answer.content.read()).endswith(b"data: [DONE]\n\n")


async def test_own_nodes_come_first_and_the_other_servers_next(
    pair: Pair, user: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    async with ScriptedEngine() as near:
        await pair.edge.join(near.url, name="near", slots=1)
        for _ in range(5):
            async with user.post(CHAT, json=HI) as answer:
                await answer.read()
        assert (len(near.requests), len(engine.requests)) == (5, 0)
        gate = asyncio.Event()
        near.plan = Plan(hold=gate)
        first = asyncio.create_task(user.post(CHAT, json=HI))
        for _ in range(6):
            await near.started()
        async with user.post(CHAT, json=HI) as answer:
            assert answer.status == 200
        assert len(engine.requests) == 1
        gate.set()
        (await first).close()


async def test_both_servers_list_the_same_models(pair: Pair, user: aiohttp.ClientSession) -> None:
    async with user.get("/v1/models") as answer:
        assert [one["id"] for one in (await answer.json())["data"]] == ["tiny"]
    async with user.get("/api/tags") as answer:
        assert [one["name"] for one in (await answer.json())["models"]] == ["tiny"]


async def test_embeddings_are_forwarded(pair: Pair, user: aiohttp.ClientSession) -> None:
    async with user.post("/v1/embeddings", json={"model": "tiny", "input": "Hi"}) as answer:
        assert answer.status == 200
        assert (await answer.json())["data"]


async def test_a_large_body_arrives_whole(
    pair: Pair, user: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    text = "x" * 20_000_000
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}]}
    data = io.BytesIO(json.dumps(body).encode())
    headers = {"content-type": "application/json"}
    async with user.post(CHAT, data=data, headers=headers) as answer:
        assert answer.status == 200
    assert engine.requests[0].json["messages"][0]["content"] == text


async def test_an_unknown_model_is_404_and_an_engines_error_keeps_its_words(
    pair: Pair, user: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    async with user.post(CHAT, json={**HI, "model": "none"}) as answer:
        assert answer.status == 404
    engine.plan = Plan(status=400, error={"error": {"message": "no such thing"}})
    async with user.post(CHAT, json=HI) as answer:
        assert answer.status == 400
        assert "no such thing" in await answer.text()


# ── hang-ups ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_client_that_hangs_up_stops_the_engine(
    pair: Pair, user: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(chunks=("Hel", asyncio.Event()))
    async with user.post(CHAT, json=STREAM) as answer:
        await answer.content.readuntil(b"\n\n")
        answer.close()
    request = await engine.started()
    await request.aborted()
    await until(lambda: not pair.active)
    (entry,) = await pair.edge.ledger()
    assert entry.outcome == "cancelled"


async def test_the_ledger_names_no_node_before_the_home_has_told_it(
    pair: Pair, user: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(hold=asyncio.Event())
    asked = asyncio.create_task(user.post(CHAT, json=HI))
    await engine.started()
    asked.cancel()
    await until(lambda: not pair.active)
    (entry,) = await pair.edge.ledger()
    assert (entry.outcome, entry.node_id, entry.engine) == ("cancelled", None, None)


async def test_a_slow_reader_stops_its_own_engine_and_no_other_request(
    pair: Pair, user: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    """What waits for the client in both servers and on both tunnels is bounded."""
    size = 64 * 1024
    engine.plans.append(Plan(chunks=["x" * size] * 800))
    async with user.post(CHAT, json=STREAM) as answer:
        request = await engine.started()
        written = -1
        while request.sent != written:  # until it is held back
            written = request.sent
            await asyncio.sleep(0.5)
        assert 0 < written < 25_000_000
        async with user.post(CHAT, json=HI) as other:
            assert other.status == 200
        body = await answer.content.read()
    assert body.endswith(b"data: [DONE]\n\n")
    assert len(body) > 800 * size


# ── failures ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "fault", [Plan(refuse=True), Plan(status=500), Plan(cut_after=0)], ids=["refuse", "500", "cut"]
)
async def test_the_homes_other_node_is_asked_when_one_fails(
    pair: Pair, user: aiohttp.ClientSession, engine: ScriptedEngine, fault: Plan
) -> None:
    async with ScriptedEngine() as second:
        await pair.home.join(second.url, name="second", slots=4)
        await pair.knows("tiny", slots=8)
        engine.plan = second.plan = Plan()
        bad, good = (engine, second)
        bad.plan = fault
        for _ in range(4):
            async with user.post(CHAT, json=HI) as answer:
                assert answer.status == 200
        assert len(good.requests) == 4
    entries = await pair.edge.ledger()
    assert {entry.node_id for entry in entries} == {pair.home.nodes[1].id}


async def test_the_only_nodes_failure_is_told_as_if_it_were_ones_own(
    pair: Pair, user: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(refuse=True)
    async with user.post(CHAT, json=HI) as answer:
        assert answer.status == 502
        assert (await answer.json())["error"]["code"] == "upstream_error"
    (entry,) = await pair.edge.ledger()
    assert (entry.node_id, entry.error) == (pair.home.nodes[0].id, "engine_down")
    engine.plan = Plan(status=500)
    async with user.post(CHAT, json=HI) as answer:
        assert answer.status == 500


async def scripted_node(pair: Pair) -> ScriptedNode:
    """A node of the home in the test's hands, for what no node of this version sends."""
    loop, registry = asyncio.get_running_loop(), pair.home.app.control_plane.registry
    home: Any = SimpleNamespace(loop=loop, rng=Random(1), registry=registry)
    node = ScriptedNode(home, "node_scripted", ["scripted"], 4, "vllm")
    await pair.knows("scripted")
    return node


def failures(engine: Engine) -> list[int]:
    return [breaker.badness[0] for breaker in engine.breakers.values()]


def largest_head(content_type: str) -> ResponseHead:
    """The largest head that a node may send: its home has to add the engine's name."""
    headers = [("content-type", content_type), ("x-more", "")]
    room = MAX_HEAD - 8 - len(messages.encode(ResponseHead(200, headers)))
    return ResponseHead(200, [headers[0], ("x-more", "x" * room)])


async def test_a_head_too_large_to_be_passed_on_is_the_engines_failure(
    pair: Pair, user: aiohttp.ClientSession
) -> None:
    node = await scripted_node(pair)
    asked = asyncio.create_task(user.post(CHAT, json={**HI, "model": "scripted"}))
    call = await node.call()
    call.stream.answer(largest_head("application/json"), b"{}", Figures(1.0, 2.0, 3))
    async with await asked as answer:
        assert answer.status == 502
    asked = asyncio.create_task(user.post(CHAT, json={**STREAM, "model": "scripted"}))
    call = await node.call()
    call.stream.send_head(largest_head("text/event-stream"))
    await call.stopped()
    call.confirm()
    async with await asked as answer:
        assert answer.status == 502
    await until(lambda: not pair.active)
    assert not pair.meshes["home"].active
    assert not pair.edge.app.control_plane.registry.held.of((await pair.edge.ledger())[0].key_id)
    assert [(one.node_id, one.error) for one in await pair.edge.ledger()] == [
        ("node_scripted", "protocol")
    ] * 2
    assert failures(node.engine) == [2]


@pytest.mark.parametrize("length", [None, 10], ids=["empty", "short"])
async def test_an_answer_without_its_body_is_the_engines_failure_at_its_home(
    pair: Pair, user: aiohttp.ClientSession, length: int | None
) -> None:
    node = await scripted_node(pair)
    asked = asyncio.create_task(user.post(CHAT, json={**HI, "model": "scripted"}))
    call = await node.call()
    headers = [] if length is None else [("content-length", str(length))]
    call.head(200, ("content-type", "application/json"), *headers)
    call.end()
    async with await asked as answer:
        assert answer.status == 502
    assert failures(node.engine) == [1]


async def test_a_stream_without_its_end_does_not_close_the_homes_circuit_breaker(
    pair: Pair, user: aiohttp.ClientSession
) -> None:
    node = await scripted_node(pair)
    node.engine.breaker(("scripted", "")).record_failure(asyncio.get_running_loop().time(), "so")
    for end, left in ((b"", [1]), (b"data: [DONE]\n\n", [])):
        asked = asyncio.create_task(user.post(CHAT, json={**STREAM, "model": "scripted"}))
        call = await node.call()
        call.stream_all(b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n', end)
        async with await asked as answer:
            assert (b"[DONE]" in await answer.content.read()) == bool(end)
        assert failures(node.engine) == left


async def test_an_engine_that_hangs_fails_at_its_home(tmp_path: Path) -> None:
    async with (
        ScriptedEngine() as engine,
        Pair(tmp_path, first_byte_timeout=0.3) as pair,
        pair.edge.user() as user,
    ):
        node = await pair.home.join(engine.url)
        await pair.knows("tiny")
        engine.plan = Plan(hold=asyncio.Event())
        async with user.post(CHAT, json=HI) as answer:
            assert answer.status == 504
        registry = pair.home.app.control_plane.registry
        (its,) = (one for one in registry.candidates("tiny") if one.node.id == node.id)
        await until(lambda: not pair.active)
        assert failures(its) == [1]
        async with user.post(CHAT, json=HI, headers={"x-fabric-timeout": "0.2"}) as answer:
            assert answer.status == 504
        await until(lambda: not pair.active)
        assert failures(its) == [1]


async def test_an_answer_whose_node_dies_ends_visibly(
    pair: Pair, user: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(chunks=("Hel", "lo"), cut_after=1)
    async with user.post(CHAT, json=STREAM) as answer:
        body = await answer.content.read()
    assert b"upstream_lost" in body
    assert b"[DONE]" not in body


async def test_a_cut_connection_ends_an_answer_visibly(
    pair: Pair, user: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(chunks=("Hel", asyncio.Event()))
    async with user.post(CHAT, json=STREAM) as answer:
        await answer.content.readuntil(b"\n\n")
        pair.cut()
        body = await answer.content.read()
    assert b"upstream_lost" in body
    assert b"[DONE]" not in body
    await (await engine.started()).aborted()
    await until(lambda: not pair.active)
    assert sorted(pair.lost) == ["edge", "home"]
    (entry,) = await pair.edge.ledger()
    assert (entry.node_id, entry.outcome, entry.error) == (pair.home.nodes[0].id, "failed", "lost")


async def test_before_the_first_byte_a_cut_connection_costs_a_retry(
    pair: Pair, user: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    async with ScriptedEngine() as near:
        engine.plan = Plan(hold=asyncio.Event())
        asked = asyncio.create_task(user.post(CHAT, json=HI))
        await engine.started()
        await pair.edge.join(near.url, name="near")
        pair.cut()
        answer = await asked
        assert (answer.status, len(near.requests)) == (200, 1)
        answer.close()


async def test_a_new_connection_brings_the_models_back(
    pair: Pair, user: aiohttp.ClientSession
) -> None:
    pair.cut()
    await until(lambda: len(pair.lost) == 2)
    async with user.post(CHAT, json=HI) as answer:
        assert answer.status == 503
    pair.connect()
    await pair.knows("tiny")
    async with user.post(CHAT, json=HI) as answer:
        assert answer.status == 200


async def test_a_server_that_leaves_answers_what_it_has_and_gets_nothing_new(
    pair: Pair, user: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    gate = asyncio.Event()
    engine.plan = Plan(chunks=("Hel", gate, "lo"))
    async with user.post(CHAT, json=STREAM) as answer:
        await answer.content.readuntil(b"\n\n")
        draining = asyncio.create_task(pair.home.app.drain())
        home = pair.meshes["edge"].peers["home"]
        await until(lambda: not home.usable)
        async with user.post(CHAT, json=HI) as refused:
            assert refused.status == 503
        assert not draining.done()
        gate.set()
        assert (await answer.content.read()).endswith(b"data: [DONE]\n\n")
    await asyncio.wait_for(draining, 10)


async def test_servers_that_leave_together_answer_each_others_last_requests(
    pair: Pair, user: aiohttp.ClientSession
) -> None:
    await asyncio.wait_for(pair.home.app.drain(with_others=True), 10)
    async with user.post(CHAT, json=HI) as answer:
        assert answer.status == 200


# ── no slot ───────────────────────────────────────────────────────────────────────────────────────


async def test_requests_wait_in_the_homes_queue_and_clients_see_their_position(
    pair: Pair, user: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    gate = asyncio.Event()
    engine.plan = Plan(hold=gate)
    tasks = [asyncio.create_task(user.post(CHAT, json=HI)) for _ in range(4)]
    for _ in tasks:
        await engine.started()
    late = [asyncio.create_task(user.post(CHAT, json=HI)) for _ in range(3)]
    admission = pair.home.app.data_plane.admission
    await until(lambda: admission.waiting == 3)
    assert not pair.edge.app.data_plane.admission.waiting
    edge = pair.edge.app.data_plane
    records = [one for one in edge.gateway.active.list() if one.state == "waiting"]

    def positions() -> list[int | None]:
        return sorted((edge.admission.position(one.request.id) for one in records), key=str)

    await until(lambda: positions() == [1, 2, 3])
    late.pop().cancel()
    await until(lambda: admission.waiting == 2)
    gate.set()
    for task in tasks + late:
        answer = await task
        assert answer.status == 200
        answer.close()
    await until(lambda: not pair.active)
    assert not pair.meshes["home"].active


async def test_a_full_queue_at_the_home_is_told_to_the_client(tmp_path: Path) -> None:
    async with (
        ScriptedEngine() as engine,
        Pair(tmp_path, queue_length=1, queue_length_per_key=1) as pair,
        pair.edge.user() as user,
    ):
        await pair.home.join(engine.url, slots=1)
        await pair.knows("tiny")
        gate = asyncio.Event()
        engine.plan = Plan(hold=gate)
        first = asyncio.create_task(user.post(CHAT, json=HI))
        await engine.started()
        second = asyncio.create_task(user.post(CHAT, json=HI))
        await until(lambda: pair.home.app.data_plane.admission.waiting == 1)
        async with user.post(CHAT, json=HI) as answer:
            assert answer.status == 429
            assert "retry-after" in answer.headers
        gate.set()
        for task in (first, second):
            (await task).close()


async def test_a_slot_that_was_given_to_somebody_else_is_waited_for(
    pair: Pair, user: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    """The home refuses, because the edge did not know yet that no slot is free."""
    gate = asyncio.Event()
    engine.plan = Plan(hold=gate)
    async with pair.home.user() as other:
        tasks = [asyncio.create_task(other.post(CHAT, json=HI)) for _ in range(4)]
        for _ in tasks:
            await engine.started()
        for one in pair.edge.app.control_plane.registry.candidates("tiny"):
            one.elsewhere = 0  # as if no digest had come since
        late = asyncio.create_task(user.post(CHAT, json=HI))
        await until(lambda: pair.home.app.data_plane.admission.waiting == 1)
        gate.set()
        for task in (*tasks, late):
            answer = await task
            assert answer.status == 200
            answer.close()


async def test_many_streams_at_once(
    pair: Pair, user: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    async def ask() -> bytes:
        async with user.post(CHAT, json=STREAM) as answer:
            return await answer.content.read()

    bodies = await asyncio.gather(*(ask() for _ in range(300)))
    assert all(body.endswith(b"data: [DONE]\n\n") for body in bodies)
    assert len(engine.requests) == 300
    entries = await pair.edge.ledger()
    assert [entry.outcome for entry in entries] == ["ok"] * 300
    await until(lambda: not pair.active)
    assert not pair.meshes["home"].active
    assert not pair.edge.app.control_plane.registry.held.of(entries[0].key_id)
