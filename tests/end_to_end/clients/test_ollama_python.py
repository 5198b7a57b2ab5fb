"""ollama-python: Ollama's own API, whatever the node's engine speaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import ollama
import pytest

from tests.end_to_end.clients.matrix import SCRIPTED, cell
from tests.end_to_end.clients.place import (
    CALL,
    MESSAGES,
    MODELS,
    PATIENCE,
    TOKENS,
    WEATHER,
    Place,
)

CLIENT = "ollama-python"
pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT, GENERATE = "/api/chat", "/api/generate"
OPTIONS: Any = {"num_predict": TOKENS, "temperature": 0}
TOOLS: Any = [{"type": "function", "function": WEATHER}]


def client_of(place: Place, key: str | None = None, below: str = "") -> ollama.AsyncClient:
    headers = {"authorization": f"Bearer {key or place.key}"}
    return ollama.AsyncClient(
        host=place.url + below, headers=headers, verify=place.trust(), timeout=PATIENCE
    )


@pytest.fixture
async def client(place: Place) -> AsyncIterator[ollama.AsyncClient]:
    async with client_of(place) as client:
        yield client


def check_end(last: ollama.ChatResponse | ollama.GenerateResponse) -> None:
    assert last.done
    assert last.done_reason in ("stop", "length")
    assert last.created_at
    assert last.prompt_eval_count
    assert last.eval_count
    assert last.total_duration
    assert last.eval_duration is not None


@cell(CHAT)
async def test_a_chat_comes_whole(place: Place, client: ollama.AsyncClient, kind: str) -> None:
    answer = await client.chat(MODELS[kind], MESSAGES, options=OPTIONS)
    assert place.could_write(kind, answer.message.content)
    assert answer.message.role == "assistant"
    assert answer.model == MODELS[kind]
    check_end(answer)


@cell(CHAT, streamed=True)
async def test_a_chat_streams(place: Place, client: ollama.AsyncClient, kind: str) -> None:
    stream = await client.chat(MODELS[kind], MESSAGES, options=OPTIONS, stream=True)
    chunks = [chunk async for chunk in stream]
    texts = [chunk.message.content for chunk in chunks]
    assert place.could_write(kind, "".join(text or "" for text in texts))
    assert sum(map(bool, texts)) > 1
    assert not any(chunk.done for chunk in chunks[:-1])
    check_end(chunks[-1])


@cell(CHAT, streamed=True, kinds=SCRIPTED)
async def test_tokens_of_a_chat_arrive_as_they_are_made(
    place: Place, client: ollama.AsyncClient, kind: str
) -> None:
    seen = asyncio.Event()
    place.script(kind, chunks=("Hel", seen, "lo"))
    text = ""
    async with asyncio.timeout(PATIENCE):
        async for chunk in await client.chat(MODELS[kind], MESSAGES, stream=True):
            text += chunk.message.content or ""
            if text == "Hel":
                seen.set()
    assert text == "Hello"


@cell(CHAT, kinds=SCRIPTED)
async def test_tool_calls_come_whole(place: Place, client: ollama.AsyncClient, kind: str) -> None:
    place.script(kind, chunks=(), tools=(CALL,))
    answer = await client.chat(MODELS[kind], MESSAGES, tools=TOOLS)
    [call] = answer.message.tool_calls or ()
    assert (call.function.name, call.function.arguments) == CALL


@cell(CHAT, streamed=True, kinds=SCRIPTED)
async def test_tool_calls_stream(place: Place, client: ollama.AsyncClient, kind: str) -> None:
    place.script(kind, chunks=(), tools=(CALL,))
    stream = await client.chat(MODELS[kind], MESSAGES, tools=TOOLS, stream=True)
    calls = [call async for chunk in stream for call in chunk.message.tool_calls or ()]
    assert [(call.function.name, call.function.arguments) for call in calls] == [CALL]


@cell(CHAT, kinds=SCRIPTED)
async def test_what_a_model_thinks_is_told(
    place: Place, client: ollama.AsyncClient, kind: str
) -> None:
    place.script(kind, reasoning="Hm.")
    answer = await client.chat(MODELS[kind], MESSAGES, think=True)
    assert answer.message.thinking == "Hm."


@cell(GENERATE)
async def test_a_text_comes_whole(place: Place, client: ollama.AsyncClient, kind: str) -> None:
    answer = await client.generate(MODELS[kind], "Once", options=OPTIONS)
    assert place.could_write(kind, answer.response)
    check_end(answer)


@cell(GENERATE, streamed=True)
async def test_a_text_streams(place: Place, client: ollama.AsyncClient, kind: str) -> None:
    stream = await client.generate(MODELS[kind], "Once", options=OPTIONS, stream=True)
    chunks = [chunk async for chunk in stream]
    assert place.could_write(kind, "".join(chunk.response for chunk in chunks))
    assert len(chunks) > 2
    check_end(chunks[-1])


@cell(GENERATE, streamed=True, kinds=SCRIPTED)
async def test_tokens_of_a_text_arrive_as_they_are_made(
    place: Place, client: ollama.AsyncClient, kind: str
) -> None:
    seen = asyncio.Event()
    place.script(kind, chunks=("Hel", seen, "lo"))
    text = ""
    async with asyncio.timeout(PATIENCE):
        async for chunk in await client.generate(MODELS[kind], "Once", stream=True):
            text += chunk.response
            if text == "Hel":
                seen.set()
    assert text == "Hello"


@cell("/api/embed")
async def test_embeddings_of_several_texts_come(
    place: Place, client: ollama.AsyncClient, kind: str
) -> None:
    answer = await client.embed(MODELS[kind], ["one", "two"])
    assert len(answer.embeddings) == 2
    assert all(len(vector) > 2 for vector in answer.embeddings)
    assert answer.prompt_eval_count
    alone = await client.embed(MODELS[kind], "one")
    assert alone.embeddings[0] == pytest.approx(answer.embeddings[0], abs=1e-3)


@cell("/api/embeddings")
async def test_the_embedding_of_one_prompt_comes(
    place: Place, client: ollama.AsyncClient, kind: str
) -> None:
    answer = await client.embeddings(MODELS[kind], "one")
    assert len(answer.embedding) > 2


@cell("/api/tags")
async def test_models_are_listed(place: Place, client: ollama.AsyncClient, kind: str) -> None:
    listed = await client.list()
    [model] = [model for model in listed.models if model.model == MODELS[kind]]
    assert model.digest
    assert model.size is not None
    assert model.modified_at is not None
    assert model.details is not None


@cell("/api/show")
async def test_a_model_is_described(place: Place, client: ollama.AsyncClient, kind: str) -> None:
    told = await client.show(MODELS[kind])
    assert "completion" in (told.capabilities or ())
    assert told.details is not None
    assert str(place.directory) not in told.model_dump_json(), "a path of the node's"


@cell("/api/ps")
async def test_models_in_memory_are_listed(
    place: Place, client: ollama.AsyncClient, kind: str
) -> None:
    """Other engines always have theirs in memory, or don't report it."""
    await client.chat(MODELS[kind], MESSAGES, options=OPTIONS)
    names = [model.model for model in (await client.ps()).models]
    if kind in ("llama-server", "vllm"):
        assert MODELS[kind] in names
    assert set(names) <= set(MODELS.values())


@cell(CHAT)
async def test_everything_is_below_ollama_too(place: Place, kind: str) -> None:
    async with client_of(place, below="/ollama") as client:
        answer = await client.chat(MODELS[kind], MESSAGES, options=OPTIONS)
        assert place.could_write(kind, answer.message.content)
        assert MODELS[kind] in [model.model for model in (await client.list()).models]


async def test_an_unknown_model_is_a_404_with_ollama_s_error(client: ollama.AsyncClient) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        await client.chat("nobody-has-this", MESSAGES)
    assert caught.value.status_code == 404
    assert "nobody-has-this" in caught.value.error
    assert not caught.value.error.startswith("{")
    with pytest.raises(ollama.ResponseError) as caught:
        async for _ in await client.chat("nobody-has-this", MESSAGES, stream=True):
            pass
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError) as caught:
        await client.show("nobody-has-this")
    assert caught.value.status_code == 404


async def test_an_unknown_key_is_a_401_with_ollama_s_error(place: Place) -> None:
    async with client_of(place, key="sk-fab-nobody") as client:
        with pytest.raises(ollama.ResponseError) as caught:
            await client.list()
    assert caught.value.status_code == 401
    assert not caught.value.error.startswith("{")


async def test_a_stream_that_breaks_off_is_an_error(
    place: Place, client: ollama.AsyncClient
) -> None:
    place.script("vllm", cut_after=2)
    text = ""
    with pytest.raises(ollama.ResponseError):
        async for chunk in await client.chat(MODELS["vllm"], MESSAGES, stream=True):
            text += chunk.message.content or ""
    assert text == "Hello,"


async def test_models_are_not_made_or_deleted_by_users(client: ollama.AsyncClient) -> None:
    asks: list[tuple[Any, Any]] = [(client.delete, [MODELS["ollama"]]), (client.copy, ["a", "b"])]
    for ask, names in asks:
        with pytest.raises(ollama.ResponseError) as caught:
            await ask(*names)
        assert caught.value.status_code in (403, 404, 405, 501)
