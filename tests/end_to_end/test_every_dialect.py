"""Every dialect over real sockets, through real nodes: the users' answers, and what is billed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.engine import Plan, ScriptedEngine
from tests.fabric import Fabric

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
