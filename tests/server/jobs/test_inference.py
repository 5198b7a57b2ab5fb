"""``/inference``: jobs of a whole fabric, over real sockets, with a real store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from fabric_server.auth.keys import KeyPolicyUpdate
from fabric_server.jobs.results import is_answer
from fabric_server.storage.connect import open_store
from tests.engine import Plan, ScriptedEngine
from tests.fabric import Fabric
from tests.jobs import eventually, new_key, stranger

Json = dict[str, Any]
JOB: Json = {"model": "tiny", "prompt": "Hi"}
PATIENCE = 20.0


@pytest.fixture
async def fabric(tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[Fabric]:
    async with Fabric(tmp_path) as fabric:
        await fabric.join(engine.url, slots=1)
        yield fabric


@pytest.fixture
async def user(fabric: Fabric) -> AsyncIterator[aiohttp.ClientSession]:
    async with fabric.user() as user:
        yield user


async def ask(user: aiohttp.ClientSession, method: str, path: str, body: Any = None) -> Any:
    async with user.request(method, path, json=body) as answer:
        return answer.status, await answer.json()


async def until(user: aiohttp.ClientSession, id: str, *states: str) -> Json:
    """The state of a job once it is one of ``states``."""
    async with asyncio.timeout(PATIENCE):
        while True:
            status, view = await ask(user, "GET", f"/inference/{id}/status")
            assert status == 200, view
            if view["status"] in states:
                found: Json = view
                return found
            await asyncio.sleep(0.02)  # there is no event for a user


async def test_a_job_is_answered_at_once_and_can_be_looked_up(
    user: aiohttp.ClientSession, engine: ScriptedEngine, fabric: Fabric
) -> None:
    options = {"num_predict": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "stop": ["x"]}
    body = {**JOB, "id": "mine", "options": {**options, "seed": 7}, "metadata": {"a": 1}}
    status, answer = await ask(user, "POST", "/inference", body)
    assert status == 200
    assert answer["id"] == "mine"
    assert answer["response"] == "Hello, world"
    assert answer["done"] is True
    assert answer["done_reason"] == "stop"
    assert (answer["prompt_eval_count"], answer["eval_count"]) == (7, 3)
    assert answer["total_duration"] > 0
    assert answer["metadata"] == {"a": 1}
    asked = (await engine.started()).json
    assert asked == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "stop": ["x"],
        "seed": 7,
    }
    status, later = await ask(user, "GET", "/inference/mine")
    assert (status, later["response"]) == (200, "Hello, world")
    [entry] = await fabric.ledger()
    assert entry.request_id == answer["request_id"]
    assert (entry.account, entry.outcome, entry.completion_tokens) == ("tests", "ok", 3)


async def test_the_same_job_twice_is_one_job_and_another_of_its_name_is_refused(
    user: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    first = await ask(user, "POST", "/inference", {**JOB, "id": "one"})
    again = await ask(user, "POST", "/inference", {**JOB, "id": "one"})
    assert first[1]["request_id"] == again[1]["request_id"]
    assert len(engine.requests) == 1
    status, refusal = await ask(user, "POST", "/inference", {**JOB, "id": "one", "prompt": "Ho"})
    assert (status, refusal["error"]["code"]) == (409, "job_exists")
    assert len(engine.requests) == 1


async def test_a_job_that_waits_has_a_place_in_line_and_low_priority_comes_last(
    user: aiohttp.ClientSession, engine: ScriptedEngine, fabric: Fabric
) -> None:
    await allow_high(fabric)
    hold = asyncio.Event()
    engine.plan = Plan(hold=hold)
    for number, priority in enumerate(("medium", "low", "medium", "high")):
        body = {**JOB, "id": f"j{number}", "priority": priority, "async": True}
        status, view = await ask(user, "POST", "/inference", {**body, "prompt": f"{number}"})
        assert (status, view["status"]) == (202, "queued")
        if number == 0:
            await engine.started()
        else:
            await eventually(
                lambda number=number: fabric.app.data_plane.admission.waiting == number
            )
    assert (await until(user, "j0", "processing"))["assignedAt"]
    places = [(await until(user, f"j{n}", "queued"))["position"] for n in (1, 2, 3)]
    assert places == [3, 2, 1]
    status, queue = await ask(user, "GET", "/inference/queue")
    assert (queue["queue"]["count"], queue["active"]["count"]) == (3, 1)
    assert queue["total"] == {"queued": 0, "running": 4}
    hold.set()
    for number in range(4):
        await until(user, f"j{number}", "done")
    order = [request.json["messages"][0]["content"] for request in engine.requests]
    assert order == ["0", "3", "2", "1"]


async def allow_high(fabric: Fabric) -> None:
    authenticator = fabric.app.data_plane.authenticator
    key = await authenticator.authenticate(fabric.key)
    change = KeyPolicyUpdate(priority="high")
    await fabric.app.backends.store.set_key_policy(key.id, change.apply_to)
    known = authenticator.cached
    await eventually(lambda: getattr(known(fabric.key), "priority", "") == "high")


async def test_a_job_has_the_priority_that_its_key_allows(
    user: aiohttp.ClientSession, engine: ScriptedEngine, fabric: Fabric
) -> None:
    hold = asyncio.Event()
    engine.plan = Plan(hold=hold)
    for priority in ("high", "medium", "low"):
        body = {**JOB, "id": priority, "priority": priority, "async": True}
        assert (await ask(user, "POST", "/inference", body))[0] == 202
        _, view = await ask(user, "GET", f"/inference/{priority}/status")
        assert view["priority"] == ("low" if priority == "low" else "medium")
    hold.set()


async def test_jobs_wait_while_their_key_has_as_many_requests_as_it_may_have(
    engine: ScriptedEngine, fabric: Fabric
) -> None:
    hold = asyncio.Event()
    engine.plan = Plan(hold=hold)
    async with fabric.user(await fabric.make_key(requests_at_once=1)) as user:
        for id in "abc":
            assert (await ask(user, "POST", "/inference", {**JOB, "id": id, "async": True}))[
                0
            ] == 202
        await engine.started()
        status, refused = await ask(user, "POST", "/v1/chat/completions", {"model": "tiny"})
        assert (status, refused["error"]["code"]) == (429, "rate_limit_exceeded")
        hold.set()
        for id in "abc":
            assert (await until(user, id, "done", "error"))["status"] == "done"
    assert len(engine.requests) == 3


async def test_cancelling_a_running_job_stops_its_engine(
    user: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(hold=asyncio.Event())
    await ask(user, "POST", "/inference", {**JOB, "id": "gone", "async": True})
    request = await engine.started()
    status, view = await ask(user, "DELETE", "/inference/gone")
    assert (status, view["status"]) == (200, "cancelled")
    await request.aborted()
    assert (await until(user, "gone", "cancelled"))["error"]["code"] == "cancelled"
    status, _ = await ask(user, "DELETE", "/inference/gone")
    assert status == 200  # once more changes nothing


async def test_a_user_who_hangs_up_on_a_job_ends_it(
    user: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(hold=asyncio.Event())
    asking = asyncio.create_task(ask(user, "POST", "/inference", {**JOB, "id": "left"}))
    request = await engine.started()
    asking.cancel()
    await request.aborted()
    await until(user, "left", "cancelled")


async def test_an_account_sees_nothing_of_anothers_jobs(
    user: aiohttp.ClientSession, fabric: Fabric
) -> None:
    await ask(user, "POST", "/inference", {**JOB, "id": "private"})

    async with await stranger(fabric) as other:
        for method, path in (
            ("GET", "/inference/private"),
            ("GET", "/inference/private/status"),
            ("DELETE", "/inference/private"),
        ):
            status, refusal = await ask(other, method, path)
            assert (status, refusal["error"]["code"]) == (404, "job_not_found")
        status, queue = await ask(other, "GET", "/inference/queue")
        assert queue["queue"]["jobs"] == queue["active"]["jobs"] == []
        status, _ = await ask(other, "POST", "/inference", {**JOB, "id": "private"})
        assert status == 200  # their own


async def test_a_job_of_a_key_that_was_withdrawn_fails_and_says_so(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    hold = asyncio.Event()
    engine.plan = Plan(hold=hold)

    first, second = await new_key(fabric, "a"), await new_key(fabric, "a")
    async with fabric.user(first.text) as user, fabric.user(second.text) as other:
        await ask(user, "POST", "/inference", {**JOB, "id": "runs", "async": True})
        await engine.started()
        await fabric.app.backends.store.revoke_key(first.row.id, 1.0)
        assert (await until(other, "runs", "failed"))["error"]["code"] == "key_withdrawn"


async def test_a_job_that_waits_fails_with_its_key_and_nothing_is_asked(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    hold = asyncio.Event()
    engine.plan = Plan(hold=hold)
    async with Fabric(tmp_path, jobs_at_once=1) as fabric:
        await fabric.join(engine.url)
        first, second = await new_key(fabric, "a"), await new_key(fabric, "a")
        async with fabric.user(first.text) as user, fabric.user(second.text) as other:
            await ask(user, "POST", "/inference", {**JOB, "id": "runs", "async": True})
            await engine.started()
            await ask(other, "POST", "/inference", {**JOB, "id": "waits", "async": True})
            await fabric.app.backends.store.set_key_enabled(second.row.id, False)
            hold.set()
            view = await until(user, "waits", "failed")
            assert view["error"]["code"] == "key_withdrawn"
            assert "disabled" in view["error"]["message"]
            await until(user, "runs", "done")
    assert len(engine.requests) == 1


async def test_a_server_that_drains_finishes_its_jobs_and_begins_none(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    hold = asyncio.Event()
    engine.plan = Plan(hold=hold)
    async with Fabric(tmp_path, jobs_at_once=1, drain_seconds=30.0) as fabric:
        await fabric.join(engine.url)
        async with fabric.user() as user:
            for id in ("runs", "waits"):
                await ask(user, "POST", "/inference", {**JOB, "id": id, "async": True})
            await engine.started()
        draining = asyncio.create_task(fabric.app.drain())
        await eventually(lambda: fabric.app.draining)
        hold.set()
        await draining
    store = await open_store(fabric.config.store_url)
    rows = await store.database.fetch("SELECT name, state, starts FROM jobs ORDER BY name")
    await store.close()
    assert [tuple(row) for row in rows] == [("runs", "done", 1), ("waits", "queued", 0)]
    assert len(engine.requests) == 1


async def test_a_job_that_is_awaited_is_told_at_once_that_nobody_has_room(
    user: aiohttp.ClientSession, fabric: Fabric
) -> None:
    await fabric.nodes[0].stop()
    await eventually(lambda: not fabric.app.control_plane.registry.nodes())
    async with user.post("/inference", json=JOB) as answer:
        assert answer.status == 503
        assert answer.headers["retry-after"] == "5"
        assert (await answer.json())["error"]["code"] == "no_capacity"


async def test_a_job_waits_for_a_node_that_is_away(
    user: aiohttp.ClientSession, engine: ScriptedEngine, fabric: Fabric
) -> None:
    await fabric.nodes[0].stop()
    await eventually(lambda: not fabric.app.control_plane.registry.nodes())
    await ask(user, "POST", "/inference", {**JOB, "id": "later", "async": True})
    await until(user, "later", "queued")
    node = fabric.nodes.pop()
    await fabric.run_node(node.config.data, engine.url)
    await until(user, "later", "done")
    assert len(engine.requests) == 1
    assert len(await fabric.ledger()) == 1


async def test_what_an_engine_says_of_a_mistake_is_passed_on(
    user: aiohttp.ClientSession, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(status=400)
    status, answer = await ask(user, "POST", "/inference", {**JOB, "id": "bad"})
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    view = await until(user, "bad", "failed")
    assert view["error"]["type"] == "invalid_request_error"


async def test_jobs_outlast_a_restart_and_results_are_not_made_twice(
    user: aiohttp.ClientSession, engine: ScriptedEngine, fabric: Fabric
) -> None:
    await ask(user, "POST", "/inference", {**JOB, "id": "before"})
    engine.plan = Plan(hold=asyncio.Event())
    await ask(user, "POST", "/inference", {**JOB, "id": "during", "async": True})
    await engine.started()
    broken = await engine.started()
    await fabric.restart()
    await broken.aborted()
    engine.plan = Plan()
    async with fabric.user() as user:
        await until(user, "during", "done")
        status, _ = await ask(user, "GET", "/inference/before")
    assert status == 200
    assert len(engine.requests) == 3


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "tiny"}, "prompt"),
        ({**JOB, "messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ({"model": "tiny", "messages": []}, "messages"),
        ({"model": "tiny", "messages": "Hi"}, "messages"),
        ({**JOB, "metadata": [1]}, "metadata"),
        ({**JOB, "metadata": {"a": "x" * 16_384}}, "metadata"),
        ({**JOB, "metadata": {"a": "x" * 100_000}}, "metadata"),
        ({**JOB, "stream": True}, "stream"),
        ({**JOB, "id": "a b"}, "id"),
        ({**JOB, "id": "queue"}, "id"),
        ({**JOB, "timeout": 5}, "timeout"),
        ({**JOB, "options": {"top_k": 0}}, "options.top_k"),
        ({**JOB, "priority": "urgent"}, "priority"),
        ({**JOB, "webhook": {"url": "https://example.com"}}, "webhook"),
    ],
)
async def test_a_wrong_job_is_refused_and_the_field_named(
    user: aiohttp.ClientSession, engine: ScriptedEngine, body: Json, param: str
) -> None:
    status, refusal = await ask(user, "POST", "/inference", body)
    assert (status, refusal["error"]["param"]) == (400, param), refusal
    assert not engine.requests


async def test_unknown_models_are_refused_at_once(user: aiohttp.ClientSession) -> None:
    status, refusal = await ask(user, "POST", "/inference", {**JOB, "model": "x", "async": True})
    assert (status, refusal["error"]["code"]) == (404, "model_not_found")


async def test_models_are_listed_without_saying_where_they_are(
    user: aiohttp.ClientSession,
) -> None:
    _, view = await ask(user, "GET", "/inference/models")
    assert view["models"] == [{"name": "tiny", "available": True}]


async def test_what_becomes_of_jobs_is_told_to_prometheus(
    user: aiohttp.ClientSession, engine: ScriptedEngine, fabric: Fabric
) -> None:
    engine.plan = Plan(hold=asyncio.Event())
    await ask(user, "POST", "/inference", {**JOB, "id": "first", "async": True})
    await engine.started()
    # There is no room for it at this server, which is what the rest in the queue wait for.
    fabric.app.data_plane.jobs.drain()
    await ask(user, "POST", "/inference", {**JOB, "id": "second", "async": True})
    figures = await shown(fabric)
    assert figures['fabric_jobs_running{kind="job"}'] == 1
    assert figures['fabric_jobs_queued{kind="job"}'] == 1
    assert figures['fabric_jobs_queued{kind="line"}'] == 0
    assert figures['fabric_jobs_ended_total{kind="line",outcome="done"}'] == 0
    await ask(user, "DELETE", "/inference/first")
    figures = await shown(fabric)
    assert figures['fabric_jobs_running{kind="job"}'] == 0
    assert figures['fabric_jobs_ended_total{kind="job",outcome="cancelled"}'] == 1
    assert figures["fabric_resumed_total"] == 0
    assert figures["fabric_webhooks_waiting"] == 0


async def shown(fabric: Fabric) -> dict[str, float]:
    headers = {"authorization": f"Bearer {fabric.management_key}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(f"{fabric.api}/metrics", ssl=fabric.trust()) as answer,
    ):
        lines = (await answer.text()).splitlines()
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if line.startswith("fabric_"))
    }


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b'{"choices": 5}',
        b'{"choices": [5]}',
        b'{"choices": [{"message": {"content": 5}}]}',
        b'{"usage": []}',
        b"[" * 100_000,
    ],
)
def test_what_engines_answer_is_not_trusted_to_be_an_answer(body: bytes) -> None:
    assert not is_answer(body)
    assert is_answer(b'{"choices": [{"message": {"content": null}}], "usage": null}')


async def test_a_job_runs_on_the_weights_it_asked_for_though_their_node_is_away_at_first(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    digest = "42182419e950" * 5 + "abcd"
    async with ScriptedEngine(ollama=True, digest=digest) as wanted, Fabric(tmp_path) as fabric:
        other = await fabric.join(engine.url, name="other")
        node = await fabric.join(wanted.url, name="wanted")
        async with fabric.user() as user:

            async def submit(id: str, headers: Json, **more: Any) -> tuple[int, Any]:
                body = {**JOB, "id": id, **more}
                async with user.post("/inference", json=body, headers=headers) as answer:
                    return answer.status, await answer.json()

            headers = {"x-fabric-digest": digest[:12]}
            assert (await submit("now", headers))[0] == 200
            assert (len(wanted.requests), len(engine.requests)) == (1, 0)
            for wrong, status in ({"x-fabric-quant": "Q8_0"}, 404), ({"x-fabric-quant": ""}, 400):
                assert (await submit("wrong", wrong))[0] == status
            assert (await submit("now", {}))[1]["error"]["code"] == "job_exists"

            registry = fabric.app.control_plane.registry
            for one in (other, node):
                await one.stop()
            await eventually(lambda: not registry.nodes())
            status, view = await submit("later", headers, **{"async": True})
            assert (status, view["digest"]) == (202, digest[:12])
            fabric.nodes.clear()
            await fabric.run_node(other.config.data, engine.url)
            errors = fabric.app.data_plane.metrics.errors
            await eventually(lambda: errors["variant_not_found"] > 0)
            await until(user, "later", "queued")
            await fabric.run_node(node.config.data, wanted.url)
            await until(user, "later", "done")
            assert not engine.requests
