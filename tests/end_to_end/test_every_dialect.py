"""Every dialect over real sockets, through real nodes: the users' answers, and what is billed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web

from tests.engine import Plan, ScriptedEngine
from tests.fabric import Fabric
from tests.fake_engines import fake_ollama
from tests.site import chunk, event
from tests.streams import line, named

TURN = {"messages": [{"role": "user", "content": "Hi"}]}
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": TURN,
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {**TURN, "max_tokens": 10},
    "/api/chat": TURN,
    "/ollama/api/chat": TURN,
    "/api/generate": {"prompt": "Hi"},
}


@pytest.fixture
async def fabric(tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[Fabric]:
    async with Fabric(tmp_path) as fabric:
        await fabric.join(engine.url)
        yield fabric


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("stream", [True, False])
async def test_every_dialect_is_answered_by_an_engine_that_knows_one(
    fabric: Fabric, path: str, stream: bool
) -> None:
    body = {"model": "tiny", **ASKED[path], "stream": stream}
    async with fabric.user() as user, user.post(path, json=body) as answer:
        text = (await answer.read()).decode()
    assert answer.status == 200
    assert "Hello" in text
    if not stream:
        assert answer.headers["content-length"] == str(len(text.encode()))
    [entry] = await fabric.ledger()
    assert (entry.outcome, entry.path, entry.stream) == ("ok", path, stream)
    assert (entry.prompt_tokens, entry.completion_tokens) == (7, 3)


@pytest.mark.parametrize("path", ASKED)
async def test_a_stream_whose_engine_dies_ends_with_an_error_of_its_dialect(
    fabric: Fabric, engine: ScriptedEngine, path: str
) -> None:
    engine.plan = Plan(cut_after=1)
    body = {"model": "tiny", **ASKED[path], "stream": True}
    async with fabric.user() as user, user.post(path, json=body) as answer:
        lines = (await answer.read()).decode().strip().splitlines()
    said = json.loads(lines[-1].removeprefix("data: "))
    assert said.get("error") or said["type"] == "error"
    assert isinstance(said.get("error"), str) == ("/api/" in path)
    [entry] = await fabric.ledger()
    assert entry.outcome == "failed"


ENGINES_ERROR = {"error": {"message": "CUDA error at /home/joe/x.cu:7", "code": 500}}
BEGUN: dict[str, bytes] = {
    "/v1/chat/completions": chunk("Hel"),
    "/v1/completions": event({"choices": [{"text": "Hel", "finish_reason": None}]}),
    "/v1/responses": named("response.output_text.delta", sequence_number=1, delta="Hel"),
    "/v1/messages": named("content_block_delta", index=0, delta={"text": "Hel"}),
    "/api/chat": line(message={"role": "assistant", "content": "Hel"}, done=False),
    "/api/generate": line(response="Hel", done=False),
}


def assert_tells_error(path: str, text: str) -> None:
    assert "Hel" in text
    assert "joe" not in text
    said = json.loads(text.strip().splitlines()[-1].removeprefix("data: "))
    error = said.get("error") or said["response"]["error"]
    assert isinstance(error, str) == ("/api/" in path)
    assert (error if isinstance(error, str) else error["message"]) == "CUDA error at x.cu:7"


@pytest.mark.parametrize("path", ASKED)
async def test_an_error_within_a_stream_has_no_places_of_the_node(
    fabric: Fabric, engine: ScriptedEngine, path: str
) -> None:
    engine.plan = Plan(chunks=("Hel", event(ENGINES_ERROR)), finish=False)
    body = {"model": "tiny", **ASKED[path], "stream": True}
    async with fabric.user() as user, user.post(path, json=body) as answer:
        assert_tells_error(path, (await answer.read()).decode())
    [entry] = await fabric.ledger()
    assert entry.outcome == "failed"


@pytest.mark.parametrize("path", BEGUN)
async def test_nor_has_one_of_an_engine_that_speaks_the_dialect(tmp_path: Path, path: str) -> None:
    """The engine is a scripted one: a real one can't be made to fail in the middle."""
    ollama = fake_ollama()
    ollama.takes_posts = True
    ollama.answers["/api/version"] = {"version": "0.14.0"}
    lines = path.startswith("/api/")
    error = line(error="CUDA error at /home/joe/x.cu:7") if lines else event(ENGINES_ERROR)
    ollama.answers[path] = web.Response(
        body=BEGUN[path] + error,
        content_type="application/x-ndjson" if lines else "text/event-stream",
    )
    await ollama.start()
    try:
        async with Fabric(tmp_path) as fabric:
            await fabric.join(ollama.url)
            asked = ASKED.get(path, {"prompt": "Hi"})
            body = {"model": "llama3.1:8b", **asked, "stream": True}
            async with fabric.user() as user, user.post(path, json=body) as answer:
                text = (await answer.read()).decode()
    finally:
        await ollama.stop()
    assert [one for one in ollama.posted if one != "/api/show"] == [path]
    assert_tells_error(path, text)


async def test_openais_client_reads_responses_refusals_and_headers(fabric: Fabric) -> None:
    async with fabric.openai() as client:
        stream = await client.responses.create(model="tiny", input="Hi", stream=True)
        events = [event async for event in stream]
        assert events[-1].type == "response.completed"
        for field, value in (("previous_response_id", "resp_1"), ("background", True)):
            with pytest.raises(openai.BadRequestError) as refused:
                await client.responses.create(model="tiny", input="Hi", **{field: value})
            assert refused.value.param == field
        with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length"):
            await client.embeddings.create(model="tiny", input=[1, 2])
        with pytest.raises(openai.NotFoundError) as missing:
            await client.models.retrieve("none")
        assert missing.value.code == "model_not_found"
        assert missing.value.request_id is not None
        raw = await client.models.with_raw_response.list(
            extra_headers={"x-client-request-id": "me"}
        )
        assert raw.headers["x-client-request-id"] == "me"
        assert raw.headers["openai-version"] == "2020-10-01"
