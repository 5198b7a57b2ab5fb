"""Stored responses, as the official client uses them, on a whole fabric."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from msgspec.structs import replace

from fabric_server.jobs.stored_answers import MAX_STORED
from fabric_server.metering.answer_ids import MAX_ANSWER
from fabric_server.net.memory_budget import BudgetLimits
from fabric_server.storage.answers import AnswerStore
from tests.engine import DIALECTS, Plan, ScriptedEngine
from tests.engine_vllm import VLLM
from tests.fabric import Fabric
from tests.jobs import stranger

PATH = "/v1/responses"
COUNT = "/v1/responses/input_tokens"
UNKNOWN = "resp_unknown"
KINDS = ("translated", "native")


Engines = dict[str, ScriptedEngine]


@pytest.fixture
async def engines() -> AsyncIterator[Engines]:
    """One whose node translates, and one that speaks the dialect itself."""
    async with (
        ScriptedEngine(["translated"]) as plain,
        ScriptedEngine(["native"], more={**VLLM, COUNT: VLLM[PATH]}) as own,
    ):
        paths = {path: {"post": {}} for path in (*DIALECTS, *VLLM, COUNT)}
        own.probes |= {"/health": {}, "/openapi.json": {"paths": paths}}
        yield {"translated": plain, "native": own}


@pytest.fixture
async def fabric(tmp_path: Path, engines: Engines) -> AsyncIterator[Fabric]:
    async with Fabric(tmp_path, stored_days=1.0, body_limit=64 * 1024) as fabric:
        await fabric.join(engines["translated"].url, f"vllm={engines['native'].url}")
        yield fabric


@pytest.fixture
async def client(fabric: Fabric) -> AsyncIterator[openai.AsyncOpenAI]:
    async with fabric.openai() as client:
        yield client


async def ask(
    client: openai.AsyncOpenAI, model: str, input: Any, *, stream: bool = False, **more: Any
) -> Any:
    """Return the response object, of a stream that of its last event."""
    answer: Any = await client.responses.create(model=model, input=input, stream=stream, **more)
    if not stream:
        return answer
    events = [event async for event in answer]
    assert events[-1].type == "response.completed"
    return events[-1].response


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_conversation_of_three_turns(
    fabric: Fabric, engines: Engines, client: openai.AsyncOpenAI, kind: str, stream: bool
) -> None:
    engine = engines[kind]
    engine.plans += [Plan(chunks=("Hello", " Ann")), Plan(chunks=("Your name is Ann",)), Plan()]
    one = await ask(client, kind, "I am Ann", stream=stream, store=True, instructions="Be a pirate")
    two = await ask(
        client,
        kind,
        [{"role": "user", "content": "Who am I?"}],
        stream=stream,
        store=True,
        previous_response_id=one.id,
    )
    await ask(client, kind, "And now?", stream=stream, previous_response_id=two.id)
    sent = engine.requests[-1].body.decode()
    said = ["I am Ann", "Hello Ann", "Who am I?", "Your name is Ann", "And now?"]
    places = [sent.index(text) for text in said]
    assert places == sorted(places), sent
    assert "pirate" in engine.requests[-3].body.decode()
    assert "pirate" not in sent, "instructions are not carried over"
    assert "previous_response_id" not in sent

    found = await client.responses.retrieve(two.id)
    assert (found.id, found.output_text) == (two.id, "Your name is Ann")
    assert found.previous_response_id == one.id
    items = [item async for item in client.responses.input_items.list(two.id, order="asc")]
    texts = [json.dumps(item.model_dump()) for item in items]
    assert [said[at] in text for at, text in enumerate(texts)] == [True] * 3
    assert len({item.id for item in items}) == 3
    page = await client.responses.input_items.list(two.id, limit=2)
    assert [item.id for item in page.data] == [items[2].id, items[1].id]
    assert page.has_more
    rest = await client.responses.input_items.list(two.id, limit=2, after=items[1].id or "")
    assert [item.id for item in rest.data] == [items[0].id]

    await client.responses.delete(one.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(one.id)
    assert (await client.responses.retrieve(two.id)).id == two.id, "it has its own conversation"
    await ask(client, kind, "Still?", stream=stream, previous_response_id=two.id)
    assert "I am Ann" in engine.requests[-1].body.decode()


async def test_a_tools_result_follows_its_call_and_its_reasoning(
    engines: Engines, client: openai.AsyncOpenAI
) -> None:
    engine = engines["translated"]
    call = ("weather", {"city": "Oslo"})
    engine.plans.append(Plan(chunks=(), reasoning="Hm, Oslo.", tools=(call,)))
    tools = [{"type": "function", "name": "weather", "strict": False, "parameters": {}}]
    one = await ask(client, "translated", "Rain?", store=True, stream=True, tools=tools)
    [asked] = [item for item in one.output if item.type == "function_call"]
    result = {"type": "function_call_output", "call_id": asked.call_id, "output": "It rains"}
    await ask(client, "translated", [result], store=True, previous_response_id=one.id, tools=tools)
    messages = engine.requests[-1].json["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    [told] = messages[1]["tool_calls"]
    assert (told["id"], told["function"]["name"]) == (asked.call_id, "weather")
    assert messages[2] == {"role": "tool", "tool_call_id": asked.call_id, "content": "It rains"}


async def test_a_client_that_hangs_up_leaves_nothing_behind(
    fabric: Fabric, engines: Engines, client: openai.AsyncOpenAI
) -> None:
    for stream, plan in (
        (False, Plan(hold=asyncio.Event())),
        (True, Plan(chunks=("Hel", asyncio.Event()))),
    ):
        engines["translated"].plans.append(plan)
        asking = asyncio.create_task(ask(client, "translated", "Hi", store=True, stream=stream))
        at_engine = await engines["translated"].started()
        asking.cancel()
        await at_engine.aborted()
        await fabric.app.data_plane.gateway.active.wait_idle()
    rows = await fabric.app.backends.store.database.fetch("SELECT id FROM stored_answers")
    assert list(rows) == []
    assert fabric.app.data_plane.memory.held == 0


@pytest.mark.parametrize("store", [None, False])
async def test_only_what_was_asked_to_be_stored_is_stored(
    client: openai.AsyncOpenAI, store: bool | None
) -> None:
    one = await ask(client, "translated", "Hi", store=store)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(one.id)
    with pytest.raises(openai.NotFoundError) as caught:
        await ask(client, "translated", "Hi", previous_response_id=one.id)
    assert caught.value.param == "previous_response_id"
    assert "'store': true" in caught.value.message


ROUTES = (
    ("GET", "/{id}", None),
    ("GET", "/{id}/input_items", None),
    ("DELETE", "/{id}", None),
    ("DELETE", "/{id}/input_items", None),
    ("POST", "", {"model": "translated", "input": "Hi", "previous_response_id": "{id}"}),
)


async def test_another_accounts_response_is_like_one_that_is_not_there(
    fabric: Fabric, client: openai.AsyncOpenAI
) -> None:
    id = (await ask(client, "translated", "Our secret", store=True)).id
    async with await stranger(fabric) as other:
        for method, path, body in ROUTES:
            answers = []
            for asked in (id, UNKNOWN):
                text = json.dumps(body).replace("{id}", asked) if body else None
                url = f"{PATH}{path.format(id=asked)}"
                async with other.request(method, url, data=text) as answer:
                    answers.append((answer.status, (await answer.text()).replace(asked, "ID")))
                nobody = {"authorization": ""}
                async with other.request(method, url, data=text, headers=nobody) as answer:
                    assert answer.status == 401
            assert answers[0] == answers[1], (method, path)
            assert answers[0][0] == 404, (method, path)
    assert (await client.responses.retrieve(id)).id == id, "it is still there"


async def test_another_key_of_the_account_finds_it(
    fabric: Fabric, client: openai.AsyncOpenAI
) -> None:
    id = (await ask(client, "translated", "Hi", store=True)).id
    async with fabric.user(await fabric.make_key()) as user, user.get(f"{PATH}/{id}") as answer:
        assert answer.status == 200
        assert (await answer.json())["store"] is True


async def test_what_can_not_be_is_refused_by_name(fabric: Fabric) -> None:
    refused: list[tuple[Any, str]] = [
        ({"previous_response_id": 7}, "previous_response_id"),
        ({"previous_response_id": ["x"]}, "previous_response_id"),
        ({"store": True, "input": 7}, "input"),
        ({"store": True, "background": True}, "background"),
        ({"store": True, "conversation": "conv_1"}, "conversation"),
    ]
    bodies = (b"", b"{", b"[]", b'{"store":true}', b'{"store": true,"a":"\\ud8')
    async with fabric.user() as user:
        for body, param in refused:
            asked = {"model": "translated", "input": "Hi", **body}
            async with user.post(PATH, json=asked) as answer:
                assert answer.status == 400
                assert (await answer.json())["error"]["param"] == param
        for data in bodies:
            async with user.post(PATH, data=data) as answer:
                assert answer.status == 400
                code = (await answer.json())["error"]["code"]
                assert code in ("invalid_json", "invalid_value")


async def test_errors_and_broken_answers_are_not_stored(
    fabric: Fabric, engines: Engines, client: openai.AsyncOpenAI
) -> None:
    engine = engines["native"]
    engine.plans += [Plan(status=400), Plan(cut_after=1)]
    with pytest.raises(openai.BadRequestError):
        await ask(client, "native", "Hi", store=True)
    with pytest.raises((openai.APIError, AssertionError)):
        await ask(client, "native", "Hi", store=True, stream=True)
    rows = await fabric.app.backends.store.database.fetch("SELECT id FROM stored_answers")
    assert list(rows) == []


async def test_a_conversation_may_be_no_larger_than_a_body(
    client: openai.AsyncOpenAI,
) -> None:
    one = await ask(client, "translated", "x" * 40_000, store=True)
    with pytest.raises(openai.APIStatusError) as caught:
        await ask(client, "translated", "y" * 30_000, previous_response_id=one.id)
    assert (caught.value.status_code, caught.value.code) == (413, "conversation_too_large")
    await ask(client, "translated", "short", previous_response_id=one.id)


async def test_what_is_read_of_the_store_counts_as_held(
    fabric: Fabric, client: openai.AsyncOpenAI
) -> None:
    one = await ask(client, "translated", "x" * 40_000, store=True)
    memory = fabric.app.data_plane.memory
    before, memory.limits = memory.limits, BudgetLimits(30_000, 30_000)
    for asked in (
        client.responses.retrieve(one.id),
        client.responses.input_items.list(one.id),
        client.responses.create(model="translated", input="Hi", previous_response_id=one.id),
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            await asked
        assert caught.value.status_code in (429, 503)
    memory.limits = before
    assert (await client.responses.retrieve(one.id)).id == one.id
    assert memory.held == 0


async def test_words_about_the_last_event_hold_no_stream_back(
    fabric: Fabric, engines: Engines, client: openai.AsyncOpenAI
) -> None:
    engine = engines["native"]
    words = '"type":"response.completed"\nevent: response.completed\n'
    seen = asyncio.Event()
    engine.plans.append(Plan(chunks=(words, seen, " end")))
    stream: Any = await client.responses.create(model="native", input="Hi", store=True, stream=True)
    async with asyncio.timeout(10):
        async for event in stream:
            if event.type == "response.output_text.delta":
                seen.set()
    found = await client.responses.retrieve(event.response.id)
    assert found.output_text == words + " end"


async def test_an_answer_too_large_to_be_held_reaches_its_client(
    fabric: Fabric, engines: Engines, client: openai.AsyncOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engines["native"]
    engine.plans.append(Plan(chunks=("x" * MAX_ANSWER,)))
    with caplog.at_level(logging.WARNING, "fabric.responses"):
        one = await ask(client, "native", "Hi", store=True)
    assert len(one.output_text) == MAX_ANSWER
    assert "a response was not stored" in caplog.text
    [entry] = await fabric.ledger()
    assert entry.bytes_out > MAX_ANSWER
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(one.id)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_store_that_fails_leaves_the_answer_whole(
    fabric: Fabric, client: openai.AsyncOpenAI, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    database = fabric.app.backends.store.database
    async with database.transaction() as session:
        await session.execute("ALTER TABLE stored_answers RENAME TO away")
    with caplog.at_level(logging.WARNING, "fabric.responses"):
        answer = await ask(client, "translated", "Hi", store=True, stream=stream)
    assert answer.output_text == "Hello, world"
    assert "a response was not stored" in caplog.text
    with pytest.raises(openai.InternalServerError) as caught:
        await client.responses.retrieve(answer.id)
    assert caught.value.code == "store_unavailable"


async def test_the_ledger_counts_what_was_held_back(
    fabric: Fabric, client: openai.AsyncOpenAI
) -> None:
    body = {"model": "translated", "input": "Hi", "store": True}
    async with fabric.user() as user:
        for stream in (False, True):
            async with user.post(PATH, json={**body, "stream": stream}) as answer:
                size = len(await answer.read())
            entry = (await fabric.ledger())[0]
            assert (entry.outcome, entry.bytes_out) == ("ok", size)


async def test_nothing_is_stored_unless_the_operator_wants_it(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with Fabric(tmp_path) as fabric, fabric.openai() as client:
        await fabric.join(engine.url)
        one = await ask(client, "tiny", "Hi", store=True)
        with pytest.raises(openai.BadRequestError) as caught:
            await ask(client, "tiny", "Hi", previous_response_id=one.id)
        assert caught.value.param == "previous_response_id"
        with pytest.raises(openai.NotFoundError) as missing:
            await client.responses.retrieve(one.id)
        assert missing.value.code == "unknown_path"
        rows = await fabric.app.backends.store.database.fetch("SELECT id FROM stored_answers")
        assert list(rows) == []


async def test_a_response_that_has_expired_is_not_found(
    fabric: Fabric, client: openai.AsyncOpenAI
) -> None:
    one = await ask(client, "translated", "Hi", store=True)
    table = AnswerStore(fabric.app.backends.store.database)
    [[ends]] = await fabric.app.backends.store.database.fetch(
        "SELECT expires_at FROM stored_answers"
    )
    row = await table.find("tests", "response", one.id, ends - 1)
    assert row is not None
    assert row.expires_at - row.created_at == 86_400
    await table.delete("tests", "response", one.id, ends - 1)
    await table.add(replace(row, expires_at=row.created_at), max_bytes=2**20)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(one.id)


# ── what a request holds ──────────────────────────────────────────────────────────────────────


async def first_delta(stream: Any) -> None:
    async for event in stream:
        if event.type == "response.output_text.delta":
            return


async def test_what_is_to_be_stored_counts_as_held_until_it_is(
    fabric: Fabric, engines: Engines, client: openai.AsyncOpenAI
) -> None:
    memory, go = fabric.app.data_plane.memory, asyncio.Event()
    engines["native"].plans.append(Plan(chunks=("Hel", go, "lo")))
    text = "x" * 40_000
    stream: Any = await client.responses.create(model="native", input=text, store=True, stream=True)
    await first_delta(stream)
    assert memory.held >= len(text)
    memory.limits = BudgetLimits(memory.held, memory.held)
    with pytest.raises(openai.APIStatusError) as caught:
        await ask(client, "native", text, store=True)
    assert caught.value.status_code in (429, 503)
    go.set()
    async for event in stream:
        last = event
    assert (await client.responses.retrieve(last.response.id)).output_text == "Hello"
    assert memory.held == 0


def large_pieces() -> list[str]:
    """Return where the server has made the large objects that there are now."""
    found = tracemalloc.take_snapshot().statistics("lineno")
    return [str(one) for one in found if one.size > 2**20 and "/fabric_server/" in str(one)]


TEXT = "x" * MAX_STORED
INPUT = {"input": TEXT}
MESSAGES = {"messages": [{"role": "user", "content": TEXT}]}


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (PATH, {**INPUT, "store": True}),
        (PATH, INPUT),
        ("/openai/deployments/native/responses", {**INPUT, "store": True}),
        ("/openai/deployments/native/chat/completions", MESSAGES),
        ("/v1/chat/completions", MESSAGES),
    ],
)
async def test_a_request_too_large_to_be_stored_is_let_go_when_an_engine_answers(
    tmp_path: Path,
    engines: Engines,
    path: str,
    asked: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    body = json.dumps({"model": "native", "stream": True, **asked}).encode()
    go = asyncio.Event()
    engines["native"].plans.append(Plan(chunks=("Hel", go, "lo")))
    async with Fabric(tmp_path, stored_days=1.0) as fabric, fabric.user() as user:
        await fabric.join(f"vllm={engines['native'].url}")
        tracemalloc.start()
        try:
            with caplog.at_level(logging.WARNING, "fabric.responses"):
                async with user.post(path, data=io.BytesIO(body)) as answer:
                    while b"Hel" not in await answer.content.readline():
                        pass
                    held, counted = large_pieces(), fabric.app.data_plane.memory.held
                    go.set()
                    await answer.read()
        finally:
            tracemalloc.stop()
        assert (held, counted) == ([], 0)
        rows = await fabric.app.backends.store.database.fetch("SELECT id FROM stored_answers")
        assert list(rows) == []
        assert ("a response was not stored" in caplog.text) == ("store" in asked)


async def test_a_response_that_is_too_large_with_its_answer_is_not_stored(
    tmp_path: Path, engines: Engines, caplog: pytest.LogCaptureFixture
) -> None:
    engines["native"].plans.append(Plan(chunks=("y" * 1000,)))
    async with Fabric(tmp_path, stored_days=1.0) as fabric, fabric.openai() as client:
        await fabric.join(f"vllm={engines['native'].url}")
        with caplog.at_level(logging.WARNING, "fabric.responses"):
            one = await ask(client, "native", "x" * (MAX_STORED - 500), store=True)
        assert one.output_text == "y" * 1000
        assert "a response was not stored" in caplog.text
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(one.id)


# ── the key's limits ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", [PATH, "/openai/deployments/native/responses"])
async def test_a_key_over_its_rate_is_refused_before_its_body_is_read(
    fabric: Fabric, path: str
) -> None:
    read = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b'{"model": "native", '
        await read.wait()

    asked = {"model": "native", "input": "Hi", "store": True}
    async with fabric.user(await fabric.make_key(requests_per_minute=2)) as user:
        for left in ("1", "0"):
            async with user.post(path, json=asked) as answer:
                assert answer.status == 200
                assert answer.headers["x-ratelimit-remaining-requests"] == left
        database = fabric.app.backends.store.database
        async with database.transaction() as session:
            await session.execute("ALTER TABLE stored_answers RENAME TO away")
        async with user.post(path, json={**asked, "previous_response_id": UNKNOWN}) as answer:
            assert answer.status == 429, "nothing is read of the store"
        async with asyncio.timeout(5), user.post(path, data=body()) as answer:
            assert answer.status == 429
        read.set()
    assert [entry.outcome for entry in await fabric.ledger()][:2] == ["refused", "refused"]


async def test_a_key_with_all_its_requests_under_way_is_refused_before_its_body_is_read(
    fabric: Fabric, engines: Engines
) -> None:
    read, hold = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b'{"model": "native", '
        await read.wait()

    engines["native"].plans.append(Plan(hold=hold))
    async with fabric.user(await fabric.make_key(requests_at_once=1)) as user:
        asked = {"model": "native", "input": "Hi", "store": True}
        first = asyncio.ensure_future(user.post(PATH, json=asked))
        await engines["native"].started()
        async with asyncio.timeout(5), user.post(PATH, data=body()) as answer:
            assert answer.status == 429
        read.set()
        hold.set()
        async with await first as answer:
            assert answer.status == 200


# ── other paths ───────────────────────────────────────────────────────────────────────────────


async def test_a_deployments_responses_are_stored_too(fabric: Fabric, engines: Engines) -> None:
    path = "/openai/deployments/native/responses"
    async with fabric.user() as user:
        async with user.post(path, json={"input": "I am Ann", "store": True}) as answer:
            id = (await answer.json())["id"]
        async with user.get(f"{PATH}/{id}") as answer:
            assert answer.status == 200
        asked = {"input": "Who am I?", "previous_response_id": id}
        async with user.post(path, json=asked) as answer:
            assert answer.status == 200
    sent = engines["native"].requests[-1].body.decode()
    assert "I am Ann" in sent
    assert "Who am I?" in sent


async def test_tokens_are_counted_with_the_conversation_before(
    fabric: Fabric, engines: Engines, client: openai.AsyncOpenAI
) -> None:
    one = await ask(client, "native", "I am Ann", store=True)
    async with fabric.user() as user:
        asked = {"model": "native", "input": "Who am I?", "previous_response_id": one.id}
        async with user.post(COUNT, json={**asked, "store": True}) as answer:
            assert answer.status == 200
        sent = engines["native"].requests[-1].body.decode()
        assert sent.index("I am Ann") < sent.index("Who am I?")
        async with user.post(COUNT, json={**asked, "previous_response_id": UNKNOWN}) as answer:
            code = (await answer.json())["error"]["code"]
            assert (answer.status, code) == (404, "response_not_found")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/compact", 404, "unknown_path"),
        ("POST", "/resp_1/cancel", 404, "unknown_path"),
        ("POST", "/resp_1", 405, "method_not_allowed"),
        ("POST", "/resp_1/input_items", 405, "method_not_allowed"),
    ],
)
async def test_what_is_no_route_of_responses_is_refused_as_elsewhere(
    fabric: Fabric, method: str, path: str, status: int, code: str
) -> None:
    async with fabric.user() as user, user.request(method, f"{PATH}{path}", json={}) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (status, code)
