"""The API port of one server shows what others have, and reaches what runs there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from fabric_server.admin.servers import LiveView, Row, Servers
from fabric_server.mesh.mesh import Mesh
from fabric_server.mesh.peer import Peer
from fabric_server.mesh.views import MAX_QUESTIONS, Question, make_view
from fabric_server.mesh.waiting import PeerLost
from protocol.errors import RemoteError
from protocol.mesh import MAX_VIEW, MAX_VIEW_ROWS
from tests.engine import Plan, ScriptedEngine
from tests.fabric import Fabric
from tests.mesh import EDGE, HOME, Pair, until

CHAT = "/v1/chat/completions"
HI: Any = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


def usable(mesh: Mesh) -> list[Peer]:
    return [peer for peer in mesh.peers.values() if peer.usable]


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    """Two servers that share a store, as workers do."""
    async with Pair(tmp_path, store=f"sqlite:///{tmp_path}/fabric.db") as pair:
        await until(lambda: [len(usable(mesh)) for mesh in pair.meshes.values()] == [1, 1])
        yield pair


class Operator:
    """A client of one server's API port."""

    def __init__(self, fabric: Fabric) -> None:
        self._session = aiohttp.ClientSession(
            fabric.api,
            headers={"authorization": f"Bearer {fabric.management_key}"},
            connector=aiohttp.TCPConnector(ssl=fabric.trust()),
        )

    async def ask(self, path: str, method: str = "GET", status: int = 200) -> Any:
        async with self._session.request(method, f"/api/{path}") as answer:
            assert answer.status == status, await answer.text()
            return await answer.json()

    async def close(self) -> None:
        await self._session.close()


@pytest.fixture
async def operator(pair: Pair) -> AsyncIterator[Operator]:
    operator = Operator(pair.edge)
    yield operator
    await operator.close()


async def test_what_runs_at_each_server_is_shown_and_ended_from_one(
    pair: Pair, operator: Operator, engine: ScriptedEngine
) -> None:
    await pair.home.join(engine.url, slots=4)
    await pair.knows("tiny", slots=4)
    engine.plan = Plan(hold=asyncio.Event())
    async with pair.edge.user() as here, pair.home.user() as there:
        asked = []
        for user in (there, here):
            asked.append(asyncio.create_task(user.post(CHAT, json=HI)))
            await engine.started()
        told = await operator.ask("v1/running")
        assert [row["server"] for row in told["data"]] == [HOME, EDGE], "the oldest first"
        assert all(0 <= row["age_seconds"] < 60 for row in told["data"])
        nodes = [row["node_id"] for row in told["data"]]
        assert nodes == [pair.home.nodes[0].id, None], "the home has not told yet which it is"
        assert [(one["name"], one["problem"], one["complete"]) for one in told["servers"]] == [
            (EDGE, None, True),
            (HOME, None, True),
        ]
        only = await operator.ask(f"v1/running?server={HOME}")
        assert [row["server"] for row in only["data"]] == [HOME]
        assert [one["name"] for one in only["servers"]] == [HOME]
        requests = await operator.ask("distributed/requests")
        assert [row["server"] for row in requests["active_requests"]] == [HOME, EDGE]

        for row, answer in zip(told["data"], asked, strict=True):
            path = f"v1/requests/{row['request_id']}/cancel"
            shown = await operator.ask(path, "POST")
            assert (shown["request_id"], shown["server"]) == (row["request_id"], row["server"])
            ended = await answer
            assert (await ended.json())["error"]["code"] == "cancelled_by_operator"
            assert (await operator.ask(path, "POST", 404))["error"]["code"] == "request_not_found"
        assert (await operator.ask("v1/running"))["data"] == []


async def test_ids_that_no_server_can_have_are_not_found(operator: Operator) -> None:
    for path, method in (("v1/running?server=none", "GET"), ("v1/nodes?server=none", "GET")):
        assert (await operator.ask(path, method, 404))["error"]["code"] == "server_not_found"
    for id in ("none", HOME, "x" * 2000):
        await operator.ask(f"v1/requests/{id}/cancel", "POST", 404)
        await operator.ask(f"v1/queue/{id}", status=404)
        await operator.ask(f"v1/nodes/{id}", status=404)


async def test_a_request_that_waits_at_another_server_is_in_that_ones_queue(
    pair: Pair, operator: Operator, engine: ScriptedEngine
) -> None:
    await pair.home.join(engine.url, slots=1)
    await pair.knows("tiny", slots=1)
    gate = asyncio.Event()
    engine.plan = Plan(hold=gate)
    async with pair.edge.user() as user:
        asked = [asyncio.create_task(user.post(CHAT, json=HI)) for _ in range(2)]
        await engine.started()
        admission = pair.home.app.data_plane.admission
        await until(lambda: admission.waiting == 1)
        (row,) = (await operator.ask("v1/queue"))["data"]
        assert (row["server"], row["model"], row["length"]) == (HOME, "tiny", 1)
        (waiting,) = [
            one for one in (await operator.ask("v1/running"))["data"] if one["state"] == "waiting"
        ]
        place = await operator.ask(f"v1/queue/{waiting['request_id']}")
        assert (place["server"], place["position"], waiting["server"]) == (HOME, 1, EDGE)
        gate.set()
        for one in asked:
            (await one).close()


async def test_models_have_a_row_for_each_server_and_the_cluster_adds_them_up(
    pair: Pair, operator: Operator, engine: ScriptedEngine
) -> None:
    async with ScriptedEngine(models=("tiny", "big")) as other:
        far = await pair.home.join(engine.url, name="far", slots=2)
        near = await pair.edge.join(other.url, name="near", slots=3)
        both = sorted((far.id, near.id))
        models = (await operator.ask("v1/models"))["data"]
        assert [(row["name"], row["server"], row["slots"]) for row in models] == [
            ("big", EDGE, 3),
            ("tiny", EDGE, 3),
            ("tiny", HOME, 2),
        ]
        status = await operator.ask("distributed/status")
        assert (status["connected_peers"], status["peers"]) == (2, both)
        nodes = (await operator.ask("distributed/nodes"))["nodes"]
        assert {one["id"]: one["server"] for one in nodes} == {far.id: HOME, near.id: EDGE}
        (_, tiny) = (await operator.ask("distributed/models"))["models"]
        assert (tiny["replicas"], tiny["locations"]) == (2, both)
        replicas = await operator.ask("distributed/models/tiny/replicas")
        assert replicas["replicas"] == both
        assert (await operator.ask(f"distributed/models/tiny/replicas?server={HOME}"))[
            "replicas"
        ] == [far.id]
        for fabric in (pair.edge, pair.home):
            async with fabric.user() as user, user.post(CHAT, json=HI) as answer:
                assert answer.status == 200
        await until(lambda: not pair.active)
        inference = (await operator.ask("distributed/metrics"))["inference"]
        assert inference["successful_inferences"] == 2


async def test_nodes_are_shown_and_acted_on_wherever_they_are_connected(
    pair: Pair, operator: Operator, engine: ScriptedEngine
) -> None:
    node = await pair.home.join(engine.url, name="far", slots=2)
    registry = pair.home.app.control_plane.registry
    (row,) = (await operator.ask("v1/nodes"))["data"]
    assert (row["id"], row["server"], row["connected"], row["slots"]) == (node.id, HOME, True, 2)
    assert (row["problem"], row["engines"][0]["models"]) == (None, ["tiny"])
    assert (await operator.ask(f"v1/nodes?server={EDGE}"))["data"] == []
    detail = await operator.ask(f"v1/nodes/{node.id}")
    assert (detail["node"]["server"], detail["node"]["connected"]) == (HOME, True)
    assert [[one["name"] for one in models] for models in detail["models"].values()] == [["tiny"]]

    drained = await operator.ask(f"v1/nodes/{node.id}/drain", "POST")
    assert (drained["draining"], drained["server"]) == (True, HOME)
    live = registry.node(node.id)
    assert live is not None
    assert live.drained, "it has reached the node's server when the answer comes"
    await operator.ask(f"v1/nodes/{node.id}/undrain", "POST")
    assert not live.drained
    revoked = await operator.ask(f"v1/nodes/{node.id}/revoke", "POST")
    assert (revoked["connected"], "server" in revoked) == (False, False)
    assert registry.node(node.id) is None
    pair.home.nodes.remove(node)
    with pytest.raises(RemoteError, match="revoked"):
        await node.task


async def test_a_disabled_key_is_refused_at_once_by_a_server_that_has_served_it(
    pair: Pair, operator: Operator, engine: ScriptedEngine
) -> None:
    await pair.home.join(engine.url)
    async with pair.home.user() as user:
        async with user.post(CHAT, json=HI) as answer:
            assert answer.status == 200
        keys = (await operator.ask("v1/keys"))["data"]
        (id,) = [one["id"] for one in keys if pair.home.key.startswith(one["prefix"])]
        await operator.ask(f"v1/keys/{id}/disable", "POST")
        async with user.post(CHAT, json=HI) as answer:
            assert answer.status == 401


async def test_a_server_that_should_be_there_and_is_not_connected_is_named(pair: Pair) -> None:
    servers = Servers(lambda: {EDGE: "ready", HOME: "ready", "third": "starting"})
    servers.mesh = pair.meshes[EDGE]
    found = await slow_view_of(servers, open_gate()).gather()
    assert found.missing == ["third"]
    assert not isinstance(found.states, msgspec.UnsetType)
    assert "starting" in str(found.states[2].problem)


def open_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


def slow_view(fabric: Fabric, gate: asyncio.Event) -> LiveView[Row]:
    return slow_view_of(fabric.app.admin.context.servers, gate)


def slow_view_of(servers: Servers, gate: asyncio.Event) -> LiveView[Row]:
    """Add a view to a server whose rows come when the gate is open."""

    async def rows(question: Question) -> Iterable[Row]:
        await gate.wait()
        return (Row(server=question.by, age_seconds=1.0),)

    return servers.view("slow", Row, rows)


def peer(pair: Pair) -> Peer:
    return pair.meshes[EDGE].peers[HOME]


async def test_a_server_that_does_not_answer_in_time_is_said_so_and_the_others_rows_come(
    pair: Pair,
) -> None:
    gate = asyncio.Event()
    slow_view(pair.home, gate)
    found = await slow_view(pair.edge, open_gate()).gather()
    assert [row.server for row in found.marked()] == [EDGE]
    assert not isinstance(found.states, msgspec.UnsetType)
    assert [(one.name, one.age_seconds is None) for one in found.states] == [
        (EDGE, False),
        (HOME, True),
    ]
    assert found.missing == [HOME]
    assert "not answered within" in str(found.states[1].problem)
    with pytest.raises(PeerLost, match="within"):
        await peer(pair).ask(Question("slow"), 0.01)
    gate.set()
    view = await peer(pair).ask(Question("slow", by="key_1"), 10)
    (row,) = [msgspec.msgpack.decode(one, type=Row) for one in view.rows]
    assert row.server == "key_1"


async def test_questions_to_a_server_that_is_silent_are_bounded(pair: Pair) -> None:
    gate = asyncio.Event()
    slow_view(pair.home, gate)
    asked = [
        asyncio.create_task(peer(pair).ask(Question("slow"), 60)) for _ in range(MAX_QUESTIONS)
    ]
    await asyncio.sleep(0)
    with pytest.raises(PeerLost, match=f"{MAX_QUESTIONS} questions"):
        await peer(pair).ask(Question("slow"), 60)
    gate.set()
    assert len(await asyncio.gather(*asked)) == MAX_QUESTIONS
    assert (await peer(pair).ask(Question("slow"), 60)).complete


async def test_a_question_to_a_server_that_is_lost_ends_at_once(pair: Pair) -> None:
    slow_view(pair.home, asyncio.Event())
    asked = asyncio.create_task(peer(pair).ask(Question("slow"), 600))
    await asyncio.sleep(0)
    pair.cut()
    with pytest.raises(PeerLost):
        await asked


async def test_an_answer_that_fails_is_said_so(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    async def rows(question: Question) -> Iterable[Row]:
        raise ValueError("a defect")

    pair.home.app.admin.context.servers.view("broken", Row, rows)
    with pytest.raises(PeerLost, match="see its log"):
        await peer(pair).ask(Question("broken"), 60)
    assert "was not answered" in caplog.text
    assert (await peer(pair).ask(Question("unknown"), 60)).rows == []


def test_a_view_has_so_many_rows_and_bytes_at_most() -> None:
    row, long = Row(server="w1"), Row(server="x" * (MAX_VIEW // 4))
    assert make_view([row] * MAX_VIEW_ROWS).complete
    many = make_view([row] * (MAX_VIEW_ROWS + 1))
    assert (len(many.rows), many.complete) == (MAX_VIEW_ROWS, False)
    big = make_view([long] * 5)
    assert (len(big.rows), big.complete) == (3, False)


async def test_a_server_without_others_marks_nothing(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with Fabric(tmp_path) as fabric:
        await fabric.join(engine.url)
        operator = Operator(fabric)
        try:
            for path in ("running", "queue", "models", "nodes"):
                told = await operator.ask(f"v1/{path}")
                assert "servers" not in told
                assert not any({"server", "age_seconds"} & row.keys() for row in told["data"])
            await operator.ask("v1/running?server=w0", status=404)
        finally:
            await operator.close()
