"""openai for Node.js, the newest."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.end_to_end.clients.asker import Asker
from tests.end_to_end.clients.matrix import SCRIPTED, cell
from tests.end_to_end.clients.place import CALL, MODELS, WEATHER, Place
from tests.lab.client_programs import LAB, node_js

CLIENT = "openai-node"
pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def node(
    whole_place: Place, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Asker]:
    script = LAB / "node_clients" / "ask.mjs"
    command = await asyncio.to_thread(node_js, tmp_path_factory.mktemp("node"), script)
    async with Asker(command, whole_place.environ()) as asker:
        yield asker


@cell("/v1/chat/completions")
async def test_a_chat_comes_whole(place: Place, node: Asker, kind: str) -> None:
    answer = await node.answer(do="chat", model=MODELS[kind])
    assert place.could_write(kind, answer["text"])
    assert answer["finish"] in ("stop", "length")
    assert answer["usage"]["completion_tokens"] > 0
    assert answer["id"]


@cell("/v1/chat/completions", streamed=True)
async def test_a_chat_streams(place: Place, node: Asker, kind: str) -> None:
    *pieces, last = [said async for said in node.ask(do="chat", model=MODELS[kind], stream=True)]
    assert len(pieces) > 1
    assert place.could_write(kind, "".join(piece["text"] for piece in pieces))
    assert last["done"]["finish"] in ("stop", "length")
    assert last["done"]["usage"]["completion_tokens"] > 0


@cell("/v1/chat/completions", streamed=True, kinds=SCRIPTED)
async def test_tokens_of_a_chat_arrive_as_they_are_made(
    place: Place, node: Asker, kind: str
) -> None:
    seen = asyncio.Event()
    place.script(kind, chunks=("Hel", seen, "lo"))
    text = ""
    async for said in node.ask(do="chat", model=MODELS[kind], stream=True):
        text += said.get("text", "")
        if text == "Hel":
            seen.set()
    assert text == "Hello"


@cell("/v1/chat/completions", kinds=SCRIPTED)
async def test_tool_calls_come_whole(place: Place, node: Asker, kind: str) -> None:
    place.script(kind, chunks=(), tools=(CALL,))
    tools: Any = [{"type": "function", "function": WEATHER}]
    answer = await node.answer(do="chat", model=MODELS[kind], tools=tools)
    [call] = answer["tools"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == CALL


@cell("/v1/completions")
async def test_a_completion_comes_whole(place: Place, node: Asker, kind: str) -> None:
    answer = await node.answer(do="completion", model=MODELS[kind])
    assert place.could_write(kind, answer["text"])
    assert answer["usage"]["completion_tokens"] > 0


@cell("/v1/completions", streamed=True)
async def test_a_completion_streams(place: Place, node: Asker, kind: str) -> None:
    asking = node.ask(do="completion", model=MODELS[kind], stream=True)
    *pieces, last = [said async for said in asking]
    assert "done" in last, last
    assert place.could_write(kind, "".join(piece["text"] for piece in pieces))
    assert last["done"]["finish"] in ("stop", "length")


@cell("/v1/embeddings")
async def test_texts_are_embedded(place: Place, node: Asker, kind: str) -> None:
    answer = await node.answer(do="embeddings", model=MODELS[kind])
    assert len(answer["vectors"]) == 2
    assert all(len(vector) > 2 and any(vector) for vector in answer["vectors"])


@cell("/v1/models")
async def test_models_are_listed_and_described(place: Place, node: Asker, kind: str) -> None:
    answer = await node.answer(do="models", model=MODELS[kind])
    assert MODELS[kind] in answer["found"]
    assert answer["model"]["id"] == MODELS[kind]


@cell("/v1/responses")
async def test_a_response_comes_whole(place: Place, node: Asker, kind: str) -> None:
    answer = await node.answer(do="response", model=MODELS[kind])
    assert place.could_write(kind, answer["text"])
    assert answer["status"] in ("completed", "incomplete")
    assert answer["usage"]["output_tokens"] > 0


@cell("/v1/responses", streamed=True)
async def test_a_response_streams(place: Place, node: Asker, kind: str) -> None:
    asking = node.ask(do="response", model=MODELS[kind], stream=True)
    *pieces, last = [said async for said in asking]
    assert "done" in last, last
    assert place.could_write(kind, "".join(piece["text"] for piece in pieces))
    assert last["done"]["type"] in ("response.completed", "response.incomplete")
    assert last["done"]["usage"]["output_tokens"] > 0


async def test_errors_have_classes_of_their_own_and_request_ids(node: Asker) -> None:
    wrong_key = await node.error(do="models", model="any", key="sk-fab-nobody")
    assert (wrong_key["class"], wrong_key["code"]) == ("AuthenticationError", "invalid_api_key")
    unknown = await node.error(do="chat", model="nobody-has-this")
    assert (unknown["class"], unknown["code"]) == ("NotFoundError", "model_not_found")
    no_path = await node.error(do="unknown")
    assert (no_path["class"], no_path["status"]) == ("NotFoundError", 404)
    assert all(error["id"] for error in (wrong_key, unknown, no_path))


async def test_what_may_work_later_is_tried_again(place: Place, node: Asker) -> None:
    place.script("vllm", status=503, headers={"retry-after": "1"})
    before = len(place.engines["vllm"].requests)
    assert (await node.answer(do="chat", model=MODELS["vllm"], retries=1))["text"]
    assert len(place.engines["vllm"].requests) == before + 2
