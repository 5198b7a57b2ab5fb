"""The demo engine: OpenAI's shapes, and no pretence of being a language model."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import openai
import pytest

from fabric_client.engines.addresses import local
from fabric_client.engines.discovery import Engine
from fabric_client.engines.echo import EchoEngine, serve


@asynccontextmanager
async def listening(words_per_second: float = 0) -> AsyncIterator[str]:
    """The address of an echo engine."""
    engine = EchoEngine(words_per_second=words_per_second)
    runner, port = await serve(engine, host="127.0.0.1", port=0)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def client() -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        listening() as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


async def test_the_answer_says_that_it_is_a_demo_and_what_was_asked() -> None:
    async with client() as ai:
        answer = await ai.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": "Why is the sky blue?"}]
        )
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    text = choice.message.content or ""
    assert "a demo, and no language model" in text
    assert "You wrote: Why is the sky blue?" in text
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 5
    assert answer.usage.completion_tokens == len(text.split())
    assert answer.usage.total_tokens == 5 + len(text.split())


async def test_a_stream_comes_word_by_word_and_is_the_same_text() -> None:
    async with client() as ai:
        messages: Any = [{"role": "user", "content": [{"type": "text", "text": "hello there"}]}]
        whole = await ai.chat.completions.create(model="echo", messages=messages)
        stream = await ai.chat.completions.create(model="echo", messages=messages, stream=True)
        chunks = [chunk async for chunk in stream]
    words = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(words) == whole.choices[0].message.content
    assert all(len(word.split()) <= 1 for word in words)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert all(chunk.usage is None for chunk in chunks)
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


async def test_usage_comes_last_when_it_is_asked_for() -> None:
    async with client() as ai:
        stream = await ai.chat.completions.create(
            model="echo",
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    *rest, last = chunks
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.prompt_tokens == 1
    assert last.usage.completion_tokens == len(rest) - 2  # without the role's and the finish's
    assert all(chunk.usage is None for chunk in rest)


async def test_completions_answer_a_prompt_streamed_and_not() -> None:
    async with client() as ai:
        whole = await ai.completions.create(model="echo", prompt="once upon a time")
        stream = await ai.completions.create(model="echo", prompt=["once upon a time"], stream=True)
        text = "".join([chunk.choices[0].text async for chunk in stream])
    assert whole.object == "text_completion"
    assert "You wrote: once upon a time" in whole.choices[0].text
    assert text == whole.choices[0].text


async def test_an_answer_stops_at_the_most_tokens_allowed() -> None:
    async with client() as ai:
        answer = await ai.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": "hi"}], max_completion_tokens=3
        )
    assert answer.choices[0].finish_reason == "length"
    assert len((answer.choices[0].message.content or "").split()) == 3
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


async def test_a_long_question_is_echoed_in_part() -> None:
    async with client() as ai:
        answer = await ai.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": "word " * 100_000}]
        )
    assert len((answer.choices[0].message.content or "").split()) < 120


async def test_the_only_model_is_echo() -> None:
    async with client() as ai:
        assert [model.id async for model in ai.models.list()] == ["echo"]
        with pytest.raises(openai.NotFoundError, match="The only model here is 'echo'"):
            await ai.chat.completions.create(model="gpt-5", messages=[])


async def test_a_node_takes_it_for_an_engine() -> None:
    async with listening() as url, aiohttp.ClientSession() as session:
        report = await Engine(session, local(int(url.rpartition(":")[2]))).probe()
    assert (report.kind, report.healthy) == ("openai", True)
    assert [model.name for model in report.models] == ["echo"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"messages": []}', b'{"model": 5}', b"\xff", b"[" * 100_000]
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_what_is_no_request_is_refused_in_openais_shape(path: str, body: bytes) -> None:
    async with (
        listening() as url,
        aiohttp.ClientSession() as session,
        session.post(url + path, data=body) as response,
    ):
        assert response.status == 400
        error = (await response.json())["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith("The request can't be read")


async def test_a_reader_who_leaves_ends_the_answer_quietly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", "fabric_client.engines.echo")
    question = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    async with listening(words_per_second=50) as url:
        async with aiohttp.ClientSession() as session:
            response = await session.post(f"{url}/v1/chat/completions", json=question)
            assert (await response.content.readline()).startswith(b"data: {")
            response.close()
        async with aiohttp.ClientSession() as session, session.get(f"{url}/health") as response:
            assert (await response.json())["is_language_model"] is False
    # Closing the engine has waited for the answer to end.
    assert "client disconnected" in caplog.messages
    assert all(record.levelname != "ERROR" for record in caplog.records)


async def test_it_runs_as_a_program_and_logs_its_port() -> None:
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "fabric_client.engines.echo",
            "--port",
            "0",
            "--words-per-second",
            "0",
        ),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    try:
        assert process.stderr is not None
        line = json.loads(await asyncio.wait_for(process.stderr.readline(), 20))
        assert re.search("no language model", line["event"])
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{line['port']}/v1/models"
            async with session.get(url) as response:
                assert (await response.json())["data"][0]["id"] == "echo"
    finally:
        process.kill()
        await process.communicate()
