"""Stored chat completions, as the official client uses them, on a whole fabric."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from yarl import URL

from fabric_server.jobs.collected_chat import CAN_NOT_BE_READ
from fabric_server.jobs.stored_answers import MAX_STORED
from fabric_server.metering.answer_ids import MAX_ANSWER
from fabric_server.net.memory_budget import BudgetLimits
from tests.engine import Plan, ScriptedEngine, sse
from tests.fabric import Fabric
from tests.jobs import stranger

PATH = "/v1/chat/completions"
UNKNOWN = "chatcmpl-unknown"
HELLO: list[Any] = [{"role": "user", "content": "Hi"}]
LOST = "a chat completion was not stored"


@pytest.fixture
async def fabric(tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[Fabric]:
    async with Fabric(tmp_path, stored_days=1.0, aliases=("gpt-*=tiny",)) as fabric:
        await fabric.join(engine.url)
        yield fabric


@pytest.fixture
async def client(fabric: Fabric) -> AsyncIterator[openai.AsyncOpenAI]:
    async with fabric.openai() as client:
        yield client


async def ask(
    client: openai.AsyncOpenAI, messages: Any = HELLO, *, stream: bool = False, **more: Any
) -> Any:
    """Return the completion, of a stream its id."""
    more = {"model": "tiny", "store": True, **more}
    answer: Any = await client.chat.completions.create(messages=messages, stream=stream, **more)
    if not stream:
        return answer
    ids = {chunk.id async for chunk in answer}
    assert len(ids) == 1, "all chunks have the id of the stored completion"
    return ids.pop()


async def stored(fabric: Fabric) -> list[str]:
    rows = await fabric.app.backends.store.database.fetch("SELECT id FROM stored_answers")
    return [row[0] for row in rows]


# ── what is kept ──────────────────────────────────────────────────────────────────────────────


async def test_a_chat_in_one_piece_is_stored_as_it_was_answered(
    engine: ScriptedEngine, client: openai.AsyncOpenAI
) -> None:
    engine.plan = Plan(chunks=("Hello Ann",), reasoning="Hm.")
    pairs = {"user": "ann", "umlaut": "ä\n"}
    answer = await ask(client, metadata=pairs, temperature=0.5, seed=7, user="u-1")
    found = await client.chat.completions.retrieve(answer.id)
    assert found.choices == answer.choices
    assert found.usage == answer.usage
    assert (found.model, found.created, found.object) == ("tiny", answer.created, answer.object)
    more = found.to_dict()
    assert more["metadata"] == pairs
    assert (more["temperature"], more["seed"], more["input_user"]) == (0.5, 7, "u-1")
    assert more["request_id"] == answer._request_id
    assert (more["tools"], more["top_p"], more["response_format"]) == (None, None, None)
    assert engine.requests[-1].json["metadata"] == pairs, "the engine gets what was sent"


@pytest.mark.parametrize("usage", [False, True])
async def test_a_stream_is_stored_as_one_piece(
    engine: ScriptedEngine, client: openai.AsyncOpenAI, usage: bool
) -> None:
    call = ("weather", {"city": "Oslo"})
    engine.plan = Plan(chunks=("Hel", "lo"), reasoning="Hm.", tools=(call,), usage=(11, 5))
    options = {"stream_options": {"include_usage": True}} if usage else {}
    id = await ask(client, stream=True, metadata={"a": "b"}, **options)
    found = await client.chat.completions.retrieve(id)
    [choice] = found.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "Hello")
    assert choice.message.to_dict()["reasoning"] == "Hm."
    [told] = choice.message.tool_calls or ()
    assert told.type == "function"
    assert (told.id, told.function.name) == ("call_0", "weather")
    assert json.loads(told.function.arguments) == call[1]
    assert choice.finish_reason == "tool_calls"
    assert found.usage is not None
    figures = found.usage
    assert (figures.prompt_tokens, figures.completion_tokens, figures.total_tokens) == (11, 5, 16)
    assert (found.object, found.created, found.model) == ("chat.completion", 1_700_000_000, "tiny")
    assert found.to_dict()["metadata"] == {"a": "b"}


@pytest.mark.parametrize("stream", [False, True])
async def test_each_answer_has_an_id_of_its_own_whatever_its_engine_says(
    client: openai.AsyncOpenAI, stream: bool
) -> None:
    one, two = await ask(client, stream=stream), await ask(client, stream=stream)
    ids = [one, two] if stream else [one.id, two.id]
    assert ids == sorted(set(ids))
    listed = [chat.id async for chat in client.chat.completions.list()]
    assert listed == ids


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_has_the_name_by_which_it_was_asked(
    engine: ScriptedEngine, client: openai.AsyncOpenAI, stream: bool
) -> None:
    answer = await ask(client, stream=stream, model="gpt-9")
    id = answer if stream else answer.id
    assert engine.requests[-1].json["model"] == "tiny"
    assert (await client.chat.completions.retrieve(id)).model == "gpt-9"
    page = await client.chat.completions.list(model="gpt-9")
    assert [chat.id for chat in page.data] == [id]
    assert (await client.chat.completions.list(model="tiny")).data == []


@pytest.mark.parametrize("store", [None, False])
@pytest.mark.parametrize("stream", [False, True])
async def test_only_what_was_asked_to_be_stored_is_stored(
    fabric: Fabric, client: openai.AsyncOpenAI, store: bool | None, stream: bool
) -> None:
    answer = await ask(client, stream=stream, store=store)
    assert (answer if stream else answer.id) == "scripted-1", "it is passed on as it is"
    assert await stored(fabric) == []
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.retrieve(UNKNOWN)
    assert caught.value.code == "chat_completion_not_found"
    assert "'store': true" in caught.value.message


async def test_errors_and_broken_answers_are_not_stored(
    fabric: Fabric, engine: ScriptedEngine, client: openai.AsyncOpenAI
) -> None:
    failed = sse({"error": {"message": "out of memory", "type": "x", "code": 500}})
    aborted = sse({"id": "a", "choices": [{"index": 0, "delta": {}, "finish_reason": "abort"}]})
    for stream, plan in (
        (False, Plan(status=400)),
        (True, Plan(status=400)),
        (True, Plan(cut_after=1)),
        (True, Plan(finish=False)),
        (True, Plan(chunks=("Hel", failed))),
    ):
        engine.plan = plan
        with pytest.raises(openai.APIError):
            await ask(client, stream=stream)
    engine.plans.append(Plan(chunks=("Hel", aborted), finish=False))
    await ask(client, stream=True)
    assert await stored(fabric) == []
    assert fabric.app.data_plane.memory.held == 0


UNREADABLE = b'data: {"id":"a","created":"now","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
FAILED = sse({"error": {"message": "out of memory", "type": "x", "code": 500}})


@pytest.mark.parametrize(
    ("chunk", "reason"), [(UNREADABLE, CAN_NOT_BE_READ), (FAILED, "it is not complete")]
)
async def test_the_log_tells_why_a_stream_is_not_stored(
    fabric: Fabric,
    engine: ScriptedEngine,
    chunk: bytes,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine.plan = Plan(chunks=("Hel", chunk, "lo"))
    body = {"model": "tiny", "store": True, "stream": True, "messages": HELLO}
    with caplog.at_level(logging.WARNING, "fabric.responses"):
        async with fabric.user() as user, user.post(PATH, json=body) as answer:
            await answer.read()
    assert await stored(fabric) == []
    reasons = [one.__dict__["reason"] for one in caplog.records if one.message == LOST]
    assert reasons == [reason]


async def test_a_client_that_hangs_up_leaves_nothing_behind(
    fabric: Fabric, engine: ScriptedEngine, client: openai.AsyncOpenAI
) -> None:
    for stream, plan in (
        (False, Plan(hold=asyncio.Event())),
        (True, Plan(chunks=("Hel", asyncio.Event()))),
    ):
        engine.plans.append(plan)
        asking = asyncio.create_task(ask(client, stream=stream))
        at_engine = await engine.started()
        asking.cancel()
        await at_engine.aborted()
        await fabric.app.data_plane.gateway.active.wait_idle()
    assert await stored(fabric) == []
    assert fabric.app.data_plane.memory.held == 0


async def test_tokens_of_a_stored_stream_arrive_as_they_are_made(
    engine: ScriptedEngine, client: openai.AsyncOpenAI
) -> None:
    seen = asyncio.Event()
    engine.plan = Plan(chunks=("data: [DONE]\n\nHel", seen, "lo"))
    chunks: Any = await client.chat.completions.create(
        model="tiny", messages=HELLO, store=True, stream=True
    )
    async with asyncio.timeout(10):
        async for chunk in chunks:
            if chunk.choices[0].delta.content:
                seen.set()
    found = await client.chat.completions.retrieve(chunk.id)
    assert found.choices[0].message.content == "data: [DONE]\n\nHello"


async def test_nothing_is_stored_unless_the_operator_wants_it(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    async with Fabric(tmp_path) as fabric, fabric.openai() as client:
        await fabric.join(engine.url)
        for stream in (False, True):
            answer = await ask(client, stream=stream, metadata={"a": "b"})
            assert (answer if stream else answer.id) == "scripted-1"
        assert await stored(fabric) == []
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.retrieve("scripted-1")
        assert caught.value.code == "unknown_path"
        with pytest.raises(openai.APIStatusError) as refused:
            await client.chat.completions.list()
        assert refused.value.code == "method_not_allowed"


async def test_a_deployments_chats_are_stored_too(
    fabric: Fabric, client: openai.AsyncOpenAI
) -> None:
    async with fabric.user() as user:
        path = "/openai/deployments/tiny/chat/completions"
        async with user.post(path, json={"messages": HELLO, "store": True}) as answer:
            id = (await answer.json())["id"]
        async with user.get(f"/openai/v1/chat/completions/{id}") as answer:
            assert answer.status == 200
    assert (await client.chat.completions.retrieve(id)).model == "tiny"


async def test_half_an_emoji_in_a_prompt_is_stored_as_engines_read_it(fabric: Fabric) -> None:
    body = b'{"model":"tiny","store":true,"messages":[{"role":"user","content":"\\ud83d!"}]}'
    async with fabric.user() as user:
        async with user.post(PATH, data=body) as answer:
            id = (await answer.json())["id"]
        async with user.get(f"{PATH}/{id}/messages") as answer:
            [message] = (await answer.json())["data"]
    assert message["content"] == "?!"


# ── messages, metadata, deletion ──────────────────────────────────────────────────────────────


async def test_the_messages_of_a_chat_in_pages(client: openai.AsyncOpenAI) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "name": "ann", "content": [{"type": "text", "text": "Look"}, image]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "user", "content": "And?"},
    ]
    id = (await ask(client, messages)).id
    api = client.chat.completions.messages
    found = [message async for message in api.list(id, limit=3)]
    assert [message.id for message in found] == [f"{id}-{number}" for number in range(4)]
    assert [message.content for message in found] == ["Be brief.", None, None, "And?"]
    assert [message.role for message in found] == ["system", "user", "assistant", "user"]
    parts = found[1].content_parts or ()
    assert [part.to_dict() for part in parts] == messages[1]["content"]
    assert found[1].to_dict()["name"] == "ann"
    page = await api.list(id, limit=2, order="desc")
    assert [message.id for message in page.data] == [f"{id}-3", f"{id}-2"]
    assert page.has_more
    rest = await api.list(id, limit=2, order="desc", after=f"{id}-2")
    assert [message.id for message in rest.data] == [f"{id}-1", f"{id}-0"]
    assert not rest.has_more


async def test_metadata_are_changed(client: openai.AsyncOpenAI) -> None:
    answer = await ask(client, metadata={"a": "b", "c": "d"})
    changed = await client.chat.completions.update(answer.id, metadata={"a": "x"})
    assert changed.to_dict()["metadata"] == {"a": "x"}
    assert changed.choices == answer.choices
    found = await client.chat.completions.retrieve(answer.id)
    assert found == changed
    assert (await client.chat.completions.list(metadata={"a": "b"})).data == []
    assert (await client.chat.completions.list(metadata={"a": "x"})).data == [found]
    emptied = await client.chat.completions.update(answer.id, metadata=None)
    assert emptied.to_dict()["metadata"] == {}


async def test_what_is_deleted_is_gone(client: openai.AsyncOpenAI) -> None:
    one, two = await ask(client), await ask(client)
    gone = await client.chat.completions.delete(one.id)
    assert (gone.id, gone.deleted, gone.object) == (one.id, True, "chat.completion.deleted")
    for asked in (
        client.chat.completions.retrieve(one.id),
        client.chat.completions.delete(one.id),
        client.chat.completions.update(one.id, metadata={}),
    ):
        with pytest.raises(openai.NotFoundError):
            await asked
    assert [chat.id async for chat in client.chat.completions.list()] == [two.id]


# ── the list ──────────────────────────────────────────────────────────────────────────────────


async def test_the_list_in_pages(client: openai.AsyncOpenAI) -> None:
    ids = [(await ask(client, metadata={"parity": str(number % 2)})).id for number in range(5)]
    api = client.chat.completions
    assert [chat.id async for chat in api.list()] == ids
    assert [chat.id async for chat in api.list(limit=2, order="desc")] == ids[::-1]
    page = await api.list(limit=2, after=ids[0], metadata={"parity": "0"})
    assert ([chat.id for chat in page.data], page.has_more) == ([ids[2], ids[4]], False)
    page = await api.list(limit=1, metadata={"parity": "1"})
    assert ([chat.id for chat in page.data], page.has_more) == ([ids[1]], True)
    assert [chat.id async for chat in api.list(limit=1, metadata={"parity": "1"})] == ids[1::2]
    left = [chat.id async for chat in api.list(limit=2) if await api.delete(chat.id)]
    assert left == ids, "a list that is deleted as it is read goes on"
    assert (await api.list()).data == []


async def test_a_page_has_bounded_bytes(engine: ScriptedEngine, client: openai.AsyncOpenAI) -> None:
    engine.plan = Plan(chunks=("x" * (MAX_ANSWER - 1000),))
    ids = [(await ask(client)).id for _ in range(3)]
    page = await client.chat.completions.list()
    assert ([chat.id for chat in page.data], page.has_more) == (ids[:2], True)
    assert [chat.id async for chat in client.chat.completions.list()] == ids


# ── whose they are ────────────────────────────────────────────────────────────────────────────

ROUTES = (
    ("GET", "/{id}", None),
    ("GET", "/{id}/messages", None),
    ("POST", "/{id}", {"metadata": {"a": "b"}}),
    ("DELETE", "/{id}", None),
)


async def test_another_accounts_chat_is_like_one_that_is_not_there(
    fabric: Fabric, client: openai.AsyncOpenAI
) -> None:
    answer = await ask(client, metadata={"our": "secret"})
    async with await stranger(fabric) as other:
        for method, path, body in ROUTES:
            answers = []
            for asked in (answer.id, UNKNOWN):
                url = f"{PATH}{path.format(id=asked)}"
                async with other.request(method, url, json=body) as response:
                    answers.append((response.status, (await response.text()).replace(asked, "ID")))
                nobody = {"authorization": ""}
                async with other.request(method, url, json=body, headers=nobody) as response:
                    assert response.status == 401
            assert answers[0] == answers[1], (method, path)
            assert answers[0][0] == 404, (method, path)
        for query in ("", f"?after={UNKNOWN}", "?metadata[our]=secret", "?order=desc"):
            async with other.get(f"{PATH}{query}") as response:
                assert (await response.json())["data"] == []
        async with other.get(PATH, headers={"authorization": ""}) as response:
            assert response.status == 401
    found = await client.chat.completions.retrieve(answer.id)
    assert found.to_dict()["metadata"] == {"our": "secret"}, "it is as it was"
    async with fabric.openai(api_key=await fabric.make_key()) as colleague:
        assert (await colleague.chat.completions.list()).data == [found]


async def test_responses_and_chats_are_not_taken_for_each_other(
    fabric: Fabric, client: openai.AsyncOpenAI
) -> None:
    chat = (await ask(client)).id
    response = (await client.responses.create(model="tiny", input="Hi", store=True)).id
    async with fabric.user() as user:
        for path in (f"/v1/responses/{chat}", f"{PATH}/{response}", f"{PATH}/{response}/messages"):
            async with user.get(path) as answer:
                assert answer.status == 404
    assert [one.id async for one in client.chat.completions.list()] == [chat]


# ── wrong requests ────────────────────────────────────────────────────────────────────────────


async def test_what_can_not_be_stored_is_refused_by_name(
    engine: ScriptedEngine, client: openai.AsyncOpenAI
) -> None:
    wrong: tuple[tuple[str, object], ...] = (
        ("store", "yes"),
        ("store", 1),
        ("metadata", {"a": 1}),
        ("metadata", ["a"]),
        ("metadata", "a"),
        ("metadata", {"a" * 65: "b"}),
        ("metadata", {"a": "b" * 513}),
        ("metadata", {str(number): "" for number in range(17)}),
    )
    for name, value in wrong:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as caught:
                await ask(client, stream=stream, extra_body={name: value})
            assert (caught.value.param, caught.value.code) == (name, "invalid_value")
    assert engine.requests == []


@pytest.mark.parametrize("name", ["store", "st\\u006fre"])
@pytest.mark.parametrize("first", [True, False])
async def test_a_large_request_is_refused_too_wherever_its_store_comes(
    fabric: Fabric, engine: ScriptedEngine, name: str, first: bool
) -> None:
    store, content = f'"{name}":"yes"', "x" * 1_000_000
    others = f'"model":"tiny","stream":false,"messages":[{{"role":"user","content":"{content}"}}]'
    body = f"{{{store},{others}}}" if first else f"{{{others},{store}}}"
    async with fabric.user() as user, user.post(PATH, data=body.encode()) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["param"] == "store"
    assert not any(request.path == PATH for request in engine.requests), "none has been answered"


async def test_metadata_that_are_not_stored_are_the_engines(client: openai.AsyncOpenAI) -> None:
    answer = await ask(client, store=False, extra_body={"metadata": {"a": 1}})
    assert answer.choices


WRONG = (
    ("GET", "?limit=0", None, 400, "invalid_value", "limit"),
    ("GET", "?limit=101", None, 400, "invalid_value", "limit"),
    ("GET", "?limit=x", None, 400, "invalid_value", "limit"),
    ("GET", "?order=up", None, 400, "invalid_value", "order"),
    ("GET", "?after=resp_1", None, 400, "invalid_value", "after"),
    ("GET", "?metadata=x", None, 400, "invalid_value", "metadata"),
    ("GET", f"?metadata[{'a' * 65}]=x", None, 400, "invalid_value", "metadata"),
    ("GET", "/{id}/messages?order=up", None, 400, "invalid_value", "order"),
    ("GET", "/{id}/messages?after=x", None, 400, "invalid_value", "after"),
    ("GET", "/{id}/messages?limit=0", None, 400, "invalid_value", "limit"),
    ("GET", "/{id}/more", None, 404, "chat_completion_not_found", None),
    ("GET", "/%00", None, 404, "chat_completion_not_found", None),
    ("POST", "/{id}", "{", 400, "invalid_json", None),
    ("POST", "/{id}", "{}", 400, "invalid_value", None),
    ("POST", "/{id}", '{"metadata": 7}', 400, "invalid_value", "metadata"),
    ("POST", "/{id}", '{"metadata": {"a": null}}', 400, "invalid_value", "metadata"),
    ("POST", "/{id}", " " * 2**17, 413, "body_too_large", None),
    ("POST", "/{id}/messages", "{}", 405, "method_not_allowed", None),
    ("DELETE", "/{id}/messages", None, 405, "method_not_allowed", None),
    ("DELETE", "", None, 405, "method_not_allowed", None),
    ("PUT", "/{id}", "{}", 405, "method_not_allowed", None),
)


async def test_wrong_requests_have_openais_errors(
    fabric: Fabric, client: openai.AsyncOpenAI
) -> None:
    answer = await ask(client, metadata={"a": "b"})
    async with fabric.user() as user:
        for method, path, body, status, code, param in WRONG:
            url = URL(f"{PATH}{path.replace('{id}', answer.id)}", encoded=True)
            async with user.request(method, url, data=body) as response:
                error = (await response.json())["error"]
                told = (response.status, error["code"], error["param"])
                assert told == (status, code, param), (method, path)
                assert error["type"] == "invalid_request_error"
                assert error["message"]
    found = await client.chat.completions.retrieve(answer.id)
    assert found.to_dict()["metadata"] == {"a": "b"}


# ── what storing costs, and its bounds ────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True])
async def test_a_store_that_fails_leaves_the_answer_whole(
    fabric: Fabric, client: openai.AsyncOpenAI, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    database = fabric.app.backends.store.database
    async with database.transaction() as session:
        await session.execute("ALTER TABLE stored_answers RENAME TO away")
    with caplog.at_level(logging.WARNING, "fabric.responses"):
        for _ in range(3):
            answer = await ask(client, stream=stream)
            assert stream or answer.choices[0].message.content == "Hello, world"
    assert [one.message for one in caplog.records if one.name == "fabric.responses"] == [LOST]
    for asked in (client.chat.completions.retrieve(UNKNOWN), client.chat.completions.list()):
        with pytest.raises(openai.InternalServerError) as caught:
            await asked
        assert caught.value.code == "store_unavailable"
    assert [entry.outcome for entry in await fabric.ledger()] == ["ok"] * 3


async def test_the_ledger_counts_what_was_held_back(fabric: Fabric) -> None:
    body = {"model": "tiny", "messages": HELLO, "store": True}
    async with fabric.user() as user:
        for stream in (False, True):
            async with user.post(PATH, json={**body, "stream": stream}) as answer:
                data = await answer.read()
            assert not stream or data.endswith(b"data: [DONE]\n\n")
            [entry, *_] = await fabric.ledger()
            assert (entry.outcome, entry.bytes_out, entry.completion_tokens) == ("ok", len(data), 3)


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_kept_for_the_store_counts_as_held_until_it_is(
    fabric: Fabric, engine: ScriptedEngine, client: openai.AsyncOpenAI, stream: bool
) -> None:
    memory, go = fabric.app.data_plane.memory, asyncio.Event()
    text = "x" * 100_000
    engine.plan = Plan(chunks=(text, go, "end")) if stream else Plan(hold_body=None, hold=go)
    asking = asyncio.create_task(ask(client, [{"role": "user", "content": text}], stream=stream))
    await engine.started()
    async with asyncio.timeout(10):
        while memory.held < (200_000 if stream else 100_000):  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.01)
    go.set()
    answer = await asking
    found = await client.chat.completions.retrieve(answer if stream else answer.id)
    assert found.choices[0].message.content == (f"{text}end" if stream else "Hello, world")
    assert memory.held == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_whole_where_there_is_no_memory_to_store_it(
    fabric: Fabric,
    engine: ScriptedEngine,
    client: openai.AsyncOpenAI,
    stream: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    memory = fabric.app.data_plane.memory
    engine.plan = Plan(chunks=("x" * 100_000,) * 3)
    before, memory.limits = memory.limits, BudgetLimits(70_000, 70_000)
    with caplog.at_level(logging.WARNING, "fabric.responses"):
        chat: Any = await client.chat.completions.create(
            model="tiny", messages=HELLO, store=True, stream=stream
        )
        if stream:
            pieces = [one.choices[0].delta.content async for one in chat if one.choices]
            assert len("".join(filter(None, pieces))) == 300_000
        else:
            assert len(chat.choices[0].message.content) == 300_000
    memory.limits = before
    assert LOST in caplog.text
    assert await stored(fabric) == []
    assert memory.held == 0


async def test_an_answer_too_large_to_be_stored_reaches_its_client(
    fabric: Fabric,
    engine: ScriptedEngine,
    client: openai.AsyncOpenAI,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine.plan = Plan(chunks=("x" * 50_000,) * 50)
    with caplog.at_level(logging.WARNING, "fabric.responses"):
        for stream in (False, True):
            chat: Any = await client.chat.completions.create(
                model="tiny", messages=HELLO, store=True, stream=stream
            )
            if stream:
                pieces = [one.choices[0].delta.content or "" async for one in chat if one.choices]
            else:
                pieces = [chat.choices[0].message.content]
            assert sum(map(len, pieces)) == 2_500_000
    assert [one.message for one in caplog.records].count(LOST) == 2
    assert await stored(fabric) == []


@pytest.mark.parametrize("first", [True, False])
async def test_a_large_request_is_stored_if_it_says_so_before_it_flows(
    fabric: Fabric, engine: ScriptedEngine, first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A client of its own: the official one sends ``stream`` last, so that nothing flows."""
    messages = [{"role": "user", "content": "x" * 1_000_000}]
    fields = {"model": "tiny", "stream": False, "messages": messages}
    body = {"store": True, **fields} if first else {**fields, "store": True}
    with caplog.at_level(logging.WARNING, "fabric.responses"):
        async with fabric.user() as user, user.post(PATH, json=body) as answer:
            id = (await answer.json())["id"]
    assert engine.requests[-1].json == body
    assert await stored(fabric) == ([id] if first else [])
    reasons = [one.__dict__["reason"] for one in caplog.records if one.message == LOST]
    assert len(reasons) == (not first)
    assert all("'store' comes behind" in reason for reason in reasons)


async def test_a_request_too_large_to_be_stored_is_answered(
    fabric: Fabric, client: openai.AsyncOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "fabric.responses"):
        answer = await ask(client, [{"role": "user", "content": "x" * MAX_STORED}])
    assert answer.choices[0].message.content == "Hello, world"
    assert LOST in caplog.text
    assert await stored(fabric) == []


async def test_what_is_read_of_the_store_counts_as_held(
    fabric: Fabric, client: openai.AsyncOpenAI
) -> None:
    answer = await ask(client, [{"role": "user", "content": "x" * 40_000}])
    memory = fabric.app.data_plane.memory
    before, memory.limits = memory.limits, BudgetLimits(30_000, 30_000)
    for asked in (
        client.chat.completions.retrieve(answer.id),
        client.chat.completions.messages.list(answer.id),
        client.chat.completions.list(),
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            await asked
        assert caught.value.status_code in (429, 503)
    memory.limits = before
    assert (await client.chat.completions.retrieve(answer.id)).id == answer.id
    assert memory.held == 0


async def test_a_chat_that_has_expired_is_not_found(
    fabric: Fabric, client: openai.AsyncOpenAI
) -> None:
    answer = await ask(client)
    async with fabric.app.backends.store.database.transaction() as session:
        await session.execute("UPDATE stored_answers SET expires_at = created_at")
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.retrieve(answer.id)
    assert (await client.chat.completions.list()).data == []
