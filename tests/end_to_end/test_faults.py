"""Errors as users see them: through a real server, a real node, real sockets."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.engine import Plan, ScriptedEngine
from tests.fabric import Fabric

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
STREAM = {**ASK, "stream": True}
CHAT = "/v1/chat/completions"


@pytest.fixture
async def fabric(tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[Fabric]:
    async with Fabric(tmp_path) as fabric:
        await fabric.join(engine.url)
        yield fabric


async def ask(fabric: Fabric, body: Any, **settings: Any) -> tuple[int, Any, str]:
    """Return status, error or answer, and request id."""
    async with fabric.user() as user, user.post(CHAT, json=body, **settings) as answer:
        assert answer.headers["content-type"].startswith("application/json")
        return answer.status, await answer.json(), answer.headers["x-request-id"]


async def read_stream(fabric: Fabric, body: Any) -> str:
    async with fabric.user() as user, user.post(CHAT, json=body) as answer:
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/event-stream"
        return (await answer.read()).decode()


# ── one node ──────────────────────────────────────────────────────────────────────────────────


async def test_no_wrong_and_revoked_keys_are_refused_alike(fabric: Fabric) -> None:
    for key in ("", "sk-fab-" + "x" * 43, "nonsense"):
        async with fabric.user(key) as user, user.post(CHAT, json=ASK) as answer:
            assert answer.status == 401
            error = (await answer.json())["error"]
            assert (error["code"], error["param"]) == ("invalid_api_key", None)
            assert "x-request-id" in answer.headers


async def test_an_unknown_model_is_404_and_one_whose_node_left_is_503(fabric: Fabric) -> None:
    status, body, _ = await ask(fabric, {**ASK, "model": "nobody-has-it"})
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    await fabric.nodes[0].stop()
    async with asyncio.timeout(5):
        while fabric.app.control_plane.registry.nodes():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    async with fabric.user() as user, user.post(CHAT, json=ASK) as answer:
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert (await answer.json())["error"]["code"] == "no_capacity"


async def test_an_engine_that_drops_the_request_is_502(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(refuse=True)
    status, body, request_id = await ask(fabric, ASK)
    assert (status, body["error"]["code"]) == (502, "upstream_error")
    entry = (await fabric.ledger())[0]
    assert (entry.request_id, entry.outcome, entry.status) == (request_id, "failed", 502)
    assert entry.error == "engine_down"


async def test_no_first_byte_in_time_is_504_and_stops_the_engine(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with Fabric(tmp_path, first_byte_timeout=0.3) as fabric:
        await fabric.join(engine.url)
        engine.plan = Plan(hold=asyncio.Event())
        status, body, _ = await ask(fabric, ASK)
        assert (status, body["error"]["code"]) == (504, "upstream_timeout")
        await (await engine.started()).aborted()
        assert (await fabric.ledger())[0].outcome == "timeout"


async def test_a_head_alone_is_no_first_byte(tmp_path: Path, engine: ScriptedEngine) -> None:
    async with Fabric(tmp_path, first_byte_timeout=0.3) as fabric:
        await fabric.join(engine.url)
        engine.plan = Plan(stall_after=0)
        status, _, _ = await ask(fabric, STREAM)
        assert status == 504


async def test_an_engine_lost_in_mid_stream_ends_the_stream_with_an_error(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(chunks=("Hel", "lo"), cut_after=1)
    text = await read_stream(fabric, STREAM)
    assert "Hel" in text
    assert "[DONE]" not in text
    last = json.loads(text.strip().splitlines()[-1].removeprefix("data: "))
    assert last["error"]["code"] == "upstream_lost"
    entry = (await fabric.ledger())[0]
    assert (entry.outcome, entry.error, entry.status) == ("failed", "engine_failed", 200)


async def test_the_official_client_raises_when_a_stream_breaks(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(chunks=("Hel", "lo"), cut_after=1)
    async with fabric.openai() as client:
        stream = await client.chat.completions.create(**STREAM)  # type: ignore[call-overload]
        with pytest.raises(openai.APIError, match="engine failed in the middle"):
            async for _ in stream:
                pass


async def test_a_stream_without_its_terminal_marker_is_not_called_complete(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(finish=False)
    text = await read_stream(fabric, STREAM)
    assert "[DONE]" not in text
    assert '"code":"incomplete"' in text
    assert (await fabric.ledger())[0].outcome == "incomplete"


async def test_the_node_lost_in_mid_stream_ends_the_stream_with_an_error(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(chunks=("Hel", asyncio.Event()))
    async with fabric.user() as user, user.post(CHAT, json=STREAM) as answer:
        assert b"Hel" in await answer.content.readuntil(b"\n\n")
        await fabric.nodes[0].stop()
        rest = (await answer.read()).decode()
    assert "upstream_lost" in rest
    assert "[DONE]" not in rest
    await engine.requests[0].aborted()


async def test_an_unstreamed_answer_cut_short_is_never_a_whole_one(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(cut_after=1)
    async with fabric.openai() as client:
        with pytest.raises(openai.InternalServerError, match="engine failed") as caught:
            await client.chat.completions.create(**ASK)  # type: ignore[call-overload]
    assert caught.value.status_code == 502


async def test_an_engine_s_4xx_has_its_words_in_openai_s_form(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(status=422, error={"error": {"code": 422, "message": "odd", "x": [1]}})
    status, body, _ = await ask(fabric, ASK)
    error = {"message": "odd", "type": "invalid_request_error", "param": None}
    assert (status, body) == (400, {"error": {**error, "code": "invalid_value"}})
    assert len(engine.requests) == 1
    assert (await fabric.ledger())[0].outcome == "engine_error"


async def test_the_operator_ends_a_request_under_way(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(chunks=("Hel", asyncio.Event()))
    management = {"authorization": f"Bearer {fabric.management_key}"}
    async with fabric.user() as user, user.post(CHAT, json=STREAM) as answer:
        await answer.content.readuntil(b"\n\n")
        async with user.get(f"{fabric.api}/api/v1/running", headers=management) as running:
            [one] = (await running.json())["data"]
        assert one["request_id"] == answer.headers["x-request-id"]
        assert (one["state"], one["model"], one["attempts"]) == ("answering", "tiny", 1)
        url = f"{fabric.api}/api/v1/requests/{one['request_id']}/cancel"
        async with user.post(url, headers=management) as cancelled:
            assert cancelled.status == 200
            shown = await cancelled.json()
        assert shown["state"] == "answering", "as it was when it was cancelled"
        assert shown["bytes_out"] == one["bytes_out"]
        assert b"cancelled_by_operator" in await answer.read()
        async with user.post(url, headers=management) as again:
            assert again.status == 404
            text = (await again.json())["error"]
        assert text["code"] == "request_not_found"
        assert text["message"] == f"No request '{one['request_id']}' is under way on this server."
    await (await engine.started()).aborted()
    assert (await fabric.ledger())[0].error == "cancelled_by_operator"


async def test_a_user_who_hangs_up_stops_the_engine_streamed_or_not(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    for body in (ASK, STREAM):
        engine.plan = Plan(hold=asyncio.Event())
        async with fabric.user() as user:
            request = asyncio.ensure_future(user.post(CHAT, json=body))
            asked = await engine.started()
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
        await asked.aborted(timeout=1)
    assert [entry.outcome for entry in await fabric.ledger()] == ["cancelled"] * 2


async def test_what_reaches_the_engine_is_what_the_user_wrote_and_no_key(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    body = (
        b'{ "model":"tiny",\n "messages":[ {"role":"user","content":"\\u00e9\xc3\xa9"} ], "x":1.50}'
    )
    headers = {
        "origin": "https://evil.example",
        "content-type": "application/json",
        "x-secret": "1",
    }
    async with fabric.user() as user, user.post(CHAT, data=body, headers=headers) as answer:
        assert answer.status == 200
    request = await engine.started()
    assert request.body == body
    assert not {"authorization", "origin", "x-secret", "user-agent"} & {
        name.lower() for name in request.headers
    }
    assert request.headers["Host"].startswith("localhost:")


async def test_a_body_of_many_megabytes_flows_through(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    picture = "x" * (20 * 2**20)
    for order in (("model", "stream", "messages"), ("messages", "stream", "model")):
        fields = {"model": "tiny", "stream": False, "messages": [{"content": picture}]}
        body = json.dumps({name: fields[name] for name in order}).encode()
        async with fabric.user() as user, user.post(CHAT, data=io.BytesIO(body)) as answer:
            assert answer.status == 200
        assert (await engine.started()).body == body


async def test_a_body_over_the_limit_is_413(tmp_path: Path, engine: ScriptedEngine) -> None:
    async with Fabric(tmp_path, body_limit=100_000) as fabric:
        await fabric.join(engine.url)
        body = json.dumps({**ASK, "x": "y" * 200_000}).encode()

        async def chunked() -> AsyncIterator[bytes]:
            yield body

        for data in (body, chunked()):
            async with fabric.user() as user, user.post(CHAT, data=data) as answer:
                assert answer.status == 413
                assert (await answer.json())["error"]["code"] == "body_too_large"


# ── two nodes ─────────────────────────────────────────────────────────────────────────────────


async def test_what_one_node_can_t_do_another_does(fabric: Fabric, engine: ScriptedEngine) -> None:
    async with ScriptedEngine() as other:
        await fabric.join(other.url, name="cellar")
        engine.plan = Plan(refuse=True)
        for _ in range(8):
            status, _, _ = await ask(fabric, ASK)
            assert status == 200
    attempts = {entry.attempts for entry in await fabric.ledger()}
    assert attempts == {1, 2}  # 8 fair coins: always the same node first in 1 of 128 runs


async def test_load_is_spread_and_slots_are_respected(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    async with ScriptedEngine() as other:
        await fabric.join(other.url, name="cellar")
        gate = asyncio.Event()
        engine.plan = other.plan = Plan(hold=gate)
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(ask(fabric, ASK)) for _ in range(10)
            ]  # two nodes, 4 slots each
            for _ in range(4):
                await engine.started()
                await other.started()
            async with asyncio.timeout(5):
                while fabric.app.data_plane.admission.waiting != 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert (len(engine.requests), len(other.requests)) == (4, 4)
            gate.set()
        assert all(task.result()[0] == 200 for task in asked)
    assert max(entry.queue_ms for entry in await fabric.ledger()) > 0


async def test_a_name_without_tag_means_latest_on_an_ollama_node(fabric: Fabric) -> None:
    async with ScriptedEngine(models=["llama3:latest"], ollama=True) as ollama:
        await fabric.join(f"ollama={ollama.url}", name="cellar")
        status, _, _ = await ask(fabric, {**ASK, "model": "llama3"})
        assert status == 200


# ── things come back ──────────────────────────────────────────────────────────────────────────


async def test_the_engine_may_be_restarted(fabric: Fabric, engine: ScriptedEngine) -> None:
    assert (await ask(fabric, ASK))[0] == 200
    await engine.stop()
    await engine.start()
    assert (await ask(fabric, ASK))[0] == 200  # on a connection that the old one had kept warm


async def test_the_server_may_be_restarted(fabric: Fabric) -> None:
    assert (await ask(fabric, ASK))[0] == 200
    await fabric.restart()
    await fabric.routed(fabric.nodes[0].id)
    assert (await ask(fabric, ASK))[0] == 200


async def test_a_model_that_is_known_is_503_after_a_restart_before_its_node_is_back(
    fabric: Fabric,
) -> None:
    await fabric.nodes[0].stop()
    await fabric.restart()
    status, body, _ = await ask(fabric, ASK)
    assert (status, body["error"]["code"]) == (503, "no_capacity")


async def test_what_can_t_be_read_is_counted_where_operators_look(fabric: Fabric) -> None:
    port = fabric.app.listeners["public"].port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nbroken\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    writer.close()
    assert fabric.app.data_plane.metrics.errors["bad_request"] == 1
