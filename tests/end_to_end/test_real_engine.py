"""The whole path with a real llama-server and the real openai client, over TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.fabric import Fabric
from tests.lab.llama import LlamaServer


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaServer]:
    with LlamaServer() as server:
        yield server


@pytest.fixture
async def fabric(tmp_path: Path, llama: LlamaServer) -> AsyncIterator[Fabric]:
    async with Fabric(tmp_path) as fabric:
        await fabric.join(llama.url)
        yield fabric


@pytest.fixture
async def client(fabric: Fabric) -> AsyncIterator[openai.AsyncOpenAI]:
    async with fabric.openai() as client:
        yield client


MESSAGES: Any = [{"role": "user", "content": "Tell me about Python."}]
ALL_TOKENS = {"ignore_eos": True}
"""The model speaks word salad, and may say its last word at any time."""


async def test_the_model_is_listed_and_described(client: openai.AsyncOpenAI) -> None:
    models = [model.id async for model in client.models.list()]
    assert models == ["tiny"]
    assert (await client.models.retrieve("tiny")).id == "tiny"


async def test_a_chat_completion_comes_whole(client: openai.AsyncOpenAI, fabric: Fabric) -> None:
    answer = await client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=12, extra_body=ALL_TOKENS
    )
    assert answer.choices[0].message.content
    assert answer.usage is not None
    entry = (await fabric.ledger())[0]
    assert entry.outcome == "ok"
    assert entry.prompt_tokens == answer.usage.prompt_tokens
    assert entry.completion_tokens == answer.usage.completion_tokens == 12


async def test_a_chat_completion_streams_and_its_usage_is_metered_but_not_shown(
    client: openai.AsyncOpenAI, fabric: Fabric
) -> None:
    stream = await client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=20,
        extra_body=ALL_TOKENS,
        stream=True,
    )
    chunks = [chunk async for chunk in stream]
    assert len(chunks) > 10
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all(chunk.usage is None for chunk in chunks)
    entry = (await fabric.ledger())[0]
    assert (entry.outcome, entry.completion_tokens, entry.stream) == ("ok", 20, True)
    assert entry.first_byte_ms is not None
    assert 0 < entry.first_byte_ms <= entry.total_ms


async def test_a_user_who_asks_for_usage_gets_the_usage_chunk(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=5,
        extra_body=ALL_TOKENS,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5


async def test_a_plain_completion_comes_whole_and_streams(client: openai.AsyncOpenAI) -> None:
    whole = await client.completions.create(
        model="tiny", prompt="Once", max_tokens=8, extra_body=ALL_TOKENS
    )
    assert whole.choices[0].text
    stream = await client.completions.create(
        model="tiny", prompt="Once", max_tokens=8, extra_body=ALL_TOKENS, stream=True
    )
    assert "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])


async def test_embeddings_come_back(client: openai.AsyncOpenAI, fabric: Fabric) -> None:
    answer = await client.embeddings.create(model="tiny", input=["one", "two"])
    assert len(answer.data) == 2
    assert len(answer.data[0].embedding) > 8
    entry = (await fabric.ledger())[0]
    assert entry.outcome == "ok"
    assert entry.prompt_tokens == answer.usage.prompt_tokens


async def test_a_user_who_hangs_up_frees_the_engine(
    client: openai.AsyncOpenAI, fabric: Fabric, llama: LlamaServer
) -> None:
    stream = await client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=3000,
        extra_body=ALL_TOKENS,
        stream=True,
    )
    await anext(aiter(stream))
    await stream.close()
    await llama.idle(timeout=2)
    await slots_free(fabric)
    assert (await fabric.ledger())[0].outcome == "cancelled"


async def test_many_streams_at_once_are_not_mixed_up(client: openai.AsyncOpenAI) -> None:
    async def one(number: int) -> tuple[str, str]:
        settings = {"model": "tiny", "max_tokens": 30, "temperature": 0, "seed": number}
        messages = [{"role": "user", "content": f"Story number {number}"}]
        stream = await client.chat.completions.create(messages=messages, stream=True, **settings)  # type: ignore[call-overload]
        streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        whole = await client.chat.completions.create(messages=messages, **settings)  # type: ignore[call-overload]
        return streamed, whole.choices[0].message.content

    for streamed, whole in await asyncio.gather(*(one(number) for number in range(12))):
        assert streamed == whole


async def test_the_engine_s_own_complaint_is_the_user_s_answer(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            response_format={"type": "nonsense"},  # type: ignore[arg-type]
        )
    assert caught.value.request_id


async def slots_free(fabric: Fabric) -> None:
    async with asyncio.timeout(2):
        while any(node.active for node in fabric.app.control_plane.registry.nodes()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
