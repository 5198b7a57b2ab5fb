"""What a server knows of the engines of another, and for how long it believes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from fabric_server.mesh.digest import Digest
from fabric_server.mesh.peer import STALE_SECONDS, Peer
from fabric_server.nodes.home import HomeNode
from fabric_server.nodes.node import Engine, Node
from fabric_server.routing.criteria import HERE, Requirements
from protocol.messages import VERSION, EngineReport, ModelReport, Register
from tests.engine import Plan, ScriptedEngine
from tests.mesh import HOME, Pair, until

CHAT = "/v1/chat/completions"
HI: Any = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with Pair(tmp_path) as pair:
        yield pair


def rows(pair: Pair, model: str = "tiny") -> list[Engine]:
    registry = pair.edge.app.control_plane.registry
    return [engine for engine in registry.candidates(model) if engine.node.remote]


def peer(pair: Pair) -> Peer:
    return pair.meshes["edge"].peers[HOME]


async def test_engines_that_serve_the_same_are_one_row(pair: Pair, engine: ScriptedEngine) -> None:
    async with ScriptedEngine() as same, ScriptedEngine(models=("tiny", "big")) as other:
        await pair.home.join(engine.url, name="one", slots=2)
        await pair.home.join(same.url, name="two", slots=3)
        await pair.home.join(other.url, name="three", slots=4, region="eu")
        await pair.knows("tiny", slots=9)
        assert sorted((one.slots, one.node.region) for one in rows(pair)) == [(4, "eu"), (5, "")]
        assert [one.node.id for one in rows(pair, "big")] == ["home/eu"]
        assert not pair.edge.app.control_plane.registry.nodes()


async def test_others_load_is_told_and_ones_own_is_not(pair: Pair, engine: ScriptedEngine) -> None:
    await pair.home.join(engine.url, slots=3)
    await pair.knows("tiny", slots=3)
    gate = asyncio.Event()
    engine.plan = Plan(hold=gate)
    async with pair.edge.user() as far, pair.home.user() as near:
        own = asyncio.create_task(far.post(CHAT, json=HI))
        await engine.started()
        others = [asyncio.create_task(near.post(CHAT, json=HI)) for _ in range(2)]
        for _ in others:
            await engine.started()
        (row,) = rows(pair)
        await until(lambda: row.elsewhere == 2)
        assert row.active == 1
        assert not row.has_room
        gate.set()
        for task in (own, *others):
            (await task).close()
        await until(lambda: not row.elsewhere and not row.active)


async def test_it_is_told_how_many_nodes_requests_can_be_sent_to(
    pair: Pair, engine: ScriptedEngine
) -> None:
    mesh = pair.meshes["edge"]
    node = await pair.home.join(engine.url, name="one")
    await pair.home.join(engine.url, name="two")
    await until(lambda: mesh.count_nodes() == 2)
    assert len(rows(pair)) == 1
    await node.stop()
    await until(lambda: mesh.count_nodes() == 1)
    peer(pair).leave()
    assert mesh.count_nodes() == 0


async def test_a_node_that_leaves_takes_its_row_along(pair: Pair, engine: ScriptedEngine) -> None:
    node = await pair.home.join(engine.url)
    await pair.knows("tiny")
    await node.stop()
    await until(lambda: not rows(pair))


async def test_a_silent_server_gets_no_requests(pair: Pair, engine: ScriptedEngine) -> None:
    await pair.home.join(engine.url)
    await pair.knows("tiny")
    (row,) = rows(pair)
    await until(lambda: row.has_room)
    peer(pair).check(peer(pair).told_at + STALE_SECONDS + 0.1)
    assert not row.has_room
    await until(lambda: row.has_room)  # it says something every second


@pytest.mark.parametrize("sign", ["digest", "pong"])
async def test_a_waiting_request_gets_a_slot_of_a_silent_server_that_is_back(
    pair: Pair, engine: ScriptedEngine, sign: str
) -> None:
    async with ScriptedEngine() as busy:
        await pair.edge.join(busy.url, name="near", slots=1)
        await pair.home.join(engine.url, name="far")
        await pair.knows("tiny")
        (row,) = rows(pair)
        await until(lambda: row.has_room)
        admission, now = pair.edge.app.data_plane.admission, asyncio.get_running_loop().time()
        first = await admission.admit(Requirements("tiny"), now + 5)
        assert not first.engine.node.remote
        home = peer(pair)
        home.check(home.told_at + STALE_SECONDS + 0.1)
        waiting = asyncio.create_task(admission.admit(Requirements("tiny"), now + 5))
        await asyncio.sleep(0)  # its first step
        assert admission.waiting == 1
        if sign == "pong":
            assert home.opening is not None
            assert isinstance(row.node, HomeNode)
            row.node.fresh = True
            pair.meshes["edge"].on_pong(home.opening)
        second = await waiting
        assert second.engine is row
        for choice in (first, second):
            pair.edge.app.control_plane.registry.release(choice.engine, choice.key_id)


async def test_names_of_rows_stay(pair: Pair, engine: ScriptedEngine) -> None:
    """A row's measurements are known by its name."""
    async with ScriptedEngine(models=("big",)) as other:
        await pair.home.join(engine.url)
        digest = Digest(pair.home.app.control_plane.registry)
        digest.refresh()
        (before,) = digest.rows
        node = await pair.home.join(other.url, name="second")
        digest.refresh()
        assert len(digest.rows) == 2
        assert before in digest.rows
        version = digest.version
        digest.refresh()
        assert digest.version == version
        await node.stop()


@pytest.mark.parametrize("waited", [False, True], ids=["at once", "after a wait"])
async def test_an_engine_that_loads_a_model_meanwhile_is_still_full(
    pair: Pair, engine: ScriptedEngine, waited: bool
) -> None:
    """An engine is in another row then, to which the other server has not counted its requests."""
    await pair.home.join(engine.url, slots=1)
    await pair.knows("tiny", slots=1)
    registry = pair.home.app.control_plane.registry
    (there,) = registry.candidates("tiny")
    (before,) = rows(pair)
    await until(lambda: before.has_room)
    gate = asyncio.Event()
    engine.plan = Plan(hold=gate)
    async with pair.edge.user() as user:
        if waited:
            registry.take(there, "", 0)
        asked = asyncio.create_task(user.post(CHAT, json=HI))
        if waited:
            await until(lambda: pair.home.app.data_plane.admission.waiting == 1)
            registry.release(there, "")
        await engine.started()
        (model,) = there.report.models
        loaded = structs.replace(there.report, models=[structs.replace(model, loaded=True)])
        registry.report(there.node, [loaded])
        await until(lambda: [one.name for one in rows(pair)] != [before.name])
        (row,) = rows(pair)
        assert row.elsewhere == 1
        gate.set()
        (await asked).close()
        await until(lambda: not row.elsewhere and row.has_room)
    assert not pair.meshes["home"].active


async def test_a_rows_load_is_counted_with_each_slot_and_its_end_is_noticed(
    pair: Pair, engine: ScriptedEngine
) -> None:
    async with ScriptedEngine() as same:
        await pair.home.join(engine.url, name="one", slots=1)
        await pair.home.join(same.url, name="two", slots=1)
        await pair.knows("tiny", slots=2)
        registry = pair.home.app.control_plane.registry
        digest = Digest(registry)
        digest.refresh()
        (row,) = digest.rows.values()
        one, two = registry.candidates("tiny")
        registry.take(one, "", 0)
        assert not digest.count(one)  # the row has a slot left
        registry.take(two, "", 0)
        assert digest.count(two)
        assert row.busy == row.slots == 2
        registry.release(one, "")
        assert digest.count(one)
        registry.release(two, "")
        assert not digest.count(two)
        assert row.busy == 0
        registry.take(one, "", 0)
        registry.report(one.node, [structs.replace(one.report, healthy=False)])
        digest.refresh()
        registry.release(one, "")
        assert not digest.count(one)  # it has no slots for anybody


async def test_slots_of_other_servers_engines_are_not_told(
    pair: Pair, engine: ScriptedEngine
) -> None:
    await pair.home.join(engine.url, slots=1)
    await pair.knows("tiny")
    registry = pair.edge.app.control_plane.registry
    digest = Digest(registry)
    digest.refresh()
    (row,) = rows(pair)
    registry.take(row, "", 0)
    assert not digest.count(row)
    registry.release(row, "")
    assert not digest.rows


async def test_a_forwarded_request_is_not_forwarded_again(
    pair: Pair, engine: ScriptedEngine
) -> None:
    await pair.home.join(engine.url)
    await pair.knows("tiny")
    await until(lambda: rows(pair)[0].has_room)
    admission, now = pair.edge.app.data_plane.admission, asyncio.get_running_loop().time()
    assert admission.admit_now(Requirements("tiny", terms=HERE), now) is None
    choice = admission.admit_now(Requirements("tiny"), now)
    assert choice is not None
    assert choice.forwarding is not None
    pair.edge.app.control_plane.registry.release(choice.engine, choice.key_id)


async def test_a_server_that_refuses_counts_as_full_and_not_as_slow(
    pair: Pair, engine: ScriptedEngine
) -> None:
    await pair.home.join(engine.url)
    await pair.knows("tiny")
    await until(lambda: rows(pair)[0].has_room)
    (row,) = rows(pair)
    edge = pair.edge.app.data_plane
    latency, now = edge.admission.balancer.state.latency, asyncio.get_running_loop().time()
    before = latency.estimate(row, "tiny", now)
    gate = asyncio.Event()
    engine.plan = Plan(hold=gate)
    async with pair.home.user() as near, pair.edge.user() as far:
        others = [asyncio.create_task(near.post(CHAT, json=HI)) for _ in range(row.slots)]
        for _ in others:
            await engine.started()
        row.elsewhere = 0  # as if no digest had come since
        late = asyncio.create_task(far.post(CHAT, json=HI))
        await until(lambda: pair.home.app.data_plane.admission.waiting == 1)
        assert not row.has_room
        assert latency.estimate(row, "tiny", now) == before
        gate.set()
        for task in (*others, late):
            (await task).close()


async def test_of_more_engines_than_a_message_has_room_for_the_first_ones_are_told(
    pair: Pair, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """The lists of models of these nodes are longer than a message may be."""
    await pair.home.join(engine.url)
    await pair.knows("tiny")
    registry = pair.home.app.control_plane.registry
    for number in range(5):
        node = Node(f"n{number}", 1, Register(VERSION, "", "", "", []), None, 0.0)
        registry.add(node)
        reports = [
            EngineReport(
                f"e{at}",
                "vllm",
                True,
                4,
                [ModelReport(f"{number}-{at}-{one}".ljust(256, "m")) for one in range(512)],
            )
            for at in range(16)
        ]
        registry.report(node, reports)
    home = peer(pair)
    await until(lambda: sum(map(len, (one.engines for one in home.homes.values()))) > 20)
    assert home.usable
    assert not pair.lost
    (said,) = (one for one in caplog.records if "not told of some engines" in one.message)
    digest = Digest(registry)
    digest.refresh()
    assert vars(said)["engines"] == digest.left_out == 81 - len(digest.rows) > 0
    async with pair.edge.user() as user, user.post(CHAT, json=HI) as answer:
        assert answer.status == 200


async def test_a_digest_that_can_not_be_read_ends_the_connection(pair: Pair) -> None:
    await until(lambda: peer(pair).usable)
    sender = pair.meshes[HOME].peers["edge"]
    await until(lambda: bool(sender.tells))
    sender.tells[0].stream.send(b"\xff\xff\xff\xff")
    await until(lambda: sorted(pair.lost) == ["edge", "home"])
