"""A node is killed in the middle of an answer, and another node continues it: real processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from fabric_server.storage.connect import open_store
from ledger.records import LedgerEntry
from tests.engine import Json, Plan, ScriptedEngine
from tests.lab.llama import LlamaServer
from tests.stack import Alone, Process

MESSAGES: Any = [{"role": "user", "content": "Tell me about Python."}]
ASK: Json = {"model": "tiny", "messages": MESSAGES, "stream": True}
CONTINUE = {"x-fabric-failover": "continue"}
SEAM = b": continued on another node"
WORDS = ["Once ", "upon ", "a ", "time ", "there ", "was ", "a ", "node."]
CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}


@asynccontextmanager
async def two_engines() -> AsyncIterator[tuple[ScriptedEngine, ScriptedEngine]]:
    async with ScriptedEngine(ollama=True) as first, ScriptedEngine(ollama=True) as second:
        yield first, second


async def replace(stack: Alone, first: Process, engine: str) -> None:
    """Start another node, and kill the first one."""
    await stack.join(engine, "second")
    await first.kill()


@asynccontextmanager
async def ask(
    stack: Alone, body: Json, headers: dict[str, str]
) -> AsyncIterator[aiohttp.ClientResponse]:
    key = (await stack.command("keys", "create", "user"))["text"]
    headers = {"authorization": f"Bearer {key}", **headers}
    url = f"{stack.public}/v1/chat/completions"
    async with stack.session() as own, own.post(url, json=body, headers=headers) as answer:
        assert answer.status == 200
        yield answer


async def ledger(stack: Alone) -> LedgerEntry:
    """Return the one entry, which is written about a second after the request's end."""
    store = await open_store(stack.store_url)
    try:
        async with asyncio.timeout(10):
            while not (entries := await store.requests()):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
        [entry] = entries
        return entry
    finally:
        await store.close()


async def test_the_openai_client_does_not_notice_that_a_node_is_killed(tmp_path: Path) -> None:
    async with Alone(tmp_path) as stack, two_engines() as (one, other):
        first = await stack.join(one.url, "first")
        one.plan = Plan(chunks=[*WORDS[:4], asyncio.Event()])
        other.plan = Plan(chunks=WORDS[4:], usage=(24, 4))
        key = (await stack.command("keys", "create", "user", "--failover", "continue"))["text"]
        trust = openai.DefaultAsyncHttpxClient(verify=stack.trust())
        url = f"{stack.public}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=key, http_client=trust) as client:
            stream = await client.chat.completions.create(
                model="tiny",
                messages=MESSAGES,
                max_tokens=50,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = []
            async for chunk in stream:
                chunks.append(chunk)
                if len(chunks) == 4:
                    await replace(stack, first, other.url)
        choices = [choice for chunk in chunks for choice in chunk.choices]
        assert [choice.delta.content for choice in choices] == [*WORDS, None]
        assert choices[-1].finish_reason == "stop"
        assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
        usage = chunks[-1].usage
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (20, 8, 28)
        rest = (await other.started()).json
        said = {"role": "assistant", "content": "Once upon a time"}
        assert (rest["messages"], rest["max_tokens"]) == ([*MESSAGES, said], 46)
        entry = await ledger(stack)
        assert (entry.outcome, entry.continued, entry.attempts) == ("ok", 1, 2)
        assert (entry.prompt_tokens, entry.completion_tokens) == (20, 8)
        assert entry.route.startswith("the only one that can")


@pytest.mark.parametrize("why", ["no header", "tool call"])
async def test_what_is_not_to_go_on_ends_with_an_error(tmp_path: Path, why: str) -> None:
    call = {"choices": [{"index": 0, "delta": {"tool_calls": [CALL]}, "finish_reason": None}]}
    said = b"data: " + json.dumps(call).encode() + b"\n\n" if why == "tool call" else "Hel"
    async with Alone(tmp_path) as stack, two_engines() as (one, other):
        first = await stack.join(one.url, "first")
        one.plan = Plan(chunks=[said, asyncio.Event()])
        async with ask(stack, ASK, {} if why == "no header" else CONTINUE) as answer:
            await answer.content.readline()
            await replace(stack, first, other.url)
            last = (await answer.read()).splitlines()[-2]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_lost"
        assert not other.requests
        entry = await ledger(stack)
        assert (entry.outcome, entry.continued, entry.attempts) == ("failed", 0, 1)


async def test_a_real_engine_says_the_very_words_that_the_first_would_have_said(
    tmp_path: Path,
) -> None:
    """The answer at temperature 0.  It holds if the text is tokenized to the same tokens that it
    was made of: this model's are at each of 118 places that were tried."""
    body = {**ASK, "temperature": 0, "max_tokens": 1500, "ignore_eos": True}
    body["stream_options"] = {"include_usage": True}
    with LlamaServer() as llama:
        async with Alone(tmp_path) as stack:
            first = await stack.join(llama.url, "first", "--upload-limit", "16KiB")
            async with ask(stack, body, CONTINUE) as answer:
                begun = b"".join([await answer.content.readline() for _ in range(60)])
                await replace(stack, first, llama.url)
                stream = begun + await answer.read()
            entry = await ledger(stack)
        async with aiohttp.ClientSession() as own:
            url = f"{llama.url}/v1/chat/completions"
            async with own.post(url, json=body) as answer:
                uninterrupted = await answer.read()
    before, _, after = stream.partition(SEAM)
    assert 20 < len(chunks_of(before)) < 1400, "it was cut in the middle"
    assert text_of(after)
    assert text_of(stream) == text_of(uninterrupted)
    read, whole = chunks_of(stream), chunks_of(uninterrupted)
    # llama-server asks its clock for each chunk: "created" differs already within one answer.
    assert len({(chunk["id"], chunk["model"]) for chunk in read}) == 1
    assert stream.endswith(b"data: [DONE]\n\n")
    assert read[-2]["choices"][0]["finish_reason"] == "length"
    for figure in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert read[-1]["usage"][figure] == whole[-1]["usage"][figure]
    assert (entry.outcome, entry.continued, entry.completion_tokens) == ("ok", 1, 1500)


def chunks_of(stream: bytes) -> list[Json]:
    lines = [line.removeprefix(b"data: ") for line in stream.splitlines()]
    return [json.loads(line) for line in lines if line.startswith(b"{")]


def text_of(stream: bytes) -> str:
    choices = [choice for chunk in chunks_of(stream) for choice in chunk["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)
