"""LangChain's ChatOpenAI and OpenAIEmbeddings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessageChunk
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from tests.end_to_end.clients.matrix import SCRIPTED, cell
from tests.end_to_end.clients.place import (
    CALL,
    MODELS,
    PATIENCE,
    TOKENS,
    WEATHER,
    Place,
)

CLIENT = "langchain-openai"
pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = "/v1/chat/completions"
QUESTION = "Tell me about Python."


Settings = dict[str, Any]


@pytest.fixture
async def settings(place: Place) -> AsyncIterator[Settings]:
    async with openai.DefaultAsyncHttpxClient(verify=place.trust()) as client:
        yield {
            "base_url": f"{place.url}/v1",
            "api_key": place.key,
            "timeout": PATIENCE,
            "max_retries": 0,
            "http_async_client": client,
        }


def chat(settings: Settings, kind: str, **more: Any) -> ChatOpenAI:
    short = {"max_tokens": TOKENS, "temperature": 0}
    return ChatOpenAI(model=MODELS[kind], **{**short, **settings, **more})


@cell(CHAT)
async def test_a_chat_is_invoked(place: Place, settings: Settings, kind: str) -> None:
    answer = await chat(settings, kind).ainvoke(QUESTION)
    assert place.could_write(kind, answer.text)
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0
    assert answer.response_metadata["finish_reason"] in ("stop", "length")


@cell(CHAT, streamed=True)
async def test_a_chat_streams_with_its_usage(place: Place, settings: Settings, kind: str) -> None:
    whole: AIMessageChunk | None = None
    pieces = 0
    async for chunk in chat(settings, kind, stream_usage=True).astream(QUESTION):
        assert isinstance(chunk, AIMessageChunk)
        pieces += bool(chunk.text)
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    assert pieces > 1
    assert place.could_write(kind, whole.text)
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] > 0


@cell(CHAT, streamed=True, kinds=SCRIPTED)
async def test_tokens_of_a_chat_arrive_as_they_are_made(
    place: Place, settings: Settings, kind: str
) -> None:
    seen = asyncio.Event()
    place.script(kind, chunks=("Hel", seen, "lo"))
    text = ""
    async with asyncio.timeout(PATIENCE):
        async for chunk in chat(settings, kind).astream(QUESTION):
            text += chunk.text
            if text == "Hel":
                seen.set()
    assert text == "Hello"


@cell(CHAT, kinds=SCRIPTED)
async def test_tools_are_called(place: Place, settings: Settings, kind: str) -> None:
    place.script(kind, chunks=(), tools=(CALL,))
    tools: Any = [{"type": "function", "function": WEATHER}]
    answer = await chat(settings, kind).bind_tools(tools).ainvoke(QUESTION)
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [CALL]


@cell("/v1/responses")
async def test_a_response_is_invoked(place: Place, settings: Settings, kind: str) -> None:
    answer = await chat(settings, kind, use_responses_api=True).ainvoke(QUESTION)
    assert place.could_write(kind, answer.text)
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0


@cell("/v1/embeddings")
async def test_texts_are_embedded(place: Place, settings: Settings, kind: str) -> None:
    """Texts are sent as texts: otherwise LangChain fetches a tokenizer, not that of the model."""
    embeddings = OpenAIEmbeddings(model=MODELS[kind], check_embedding_ctx_length=False, **settings)
    vectors = await embeddings.aembed_documents(["one", "two"])
    assert len(vectors) == 2
    assert all(len(vector) > 2 for vector in vectors)
    assert await embeddings.aembed_query("one") == pytest.approx(vectors[0], abs=1e-3)


async def test_errors_are_those_of_openai(settings: Settings) -> None:
    with pytest.raises(openai.NotFoundError):
        await ChatOpenAI(model="nobody-has-this", **settings).ainvoke(QUESTION)
    with pytest.raises(openai.AuthenticationError):
        await chat(settings, "vllm", api_key="sk-fab-nobody").ainvoke(QUESTION)
