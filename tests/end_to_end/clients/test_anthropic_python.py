"""anthropic-python: the Messages API, whatever the node's engine speaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest

from tests.end_to_end.clients.matrix import SCRIPTED, cell
from tests.end_to_end.clients.place import (
    CALL,
    HELLO,
    MESSAGES,
    MODELS,
    PATIENCE,
    TOKENS,
    WEATHER,
    Place,
)

CLIENT = "anthropic-python"
pytestmark = pytest.mark.asyncio(loop_scope="session")

MESSAGE, COUNT = "/v1/messages", "/v1/messages/count_tokens"
LIKELY = {"temperature": 0}
"""The newest client has no argument for it any more."""
TOOL: Any = {
    "name": WEATHER["name"],
    "description": WEATHER["description"],
    "input_schema": WEATHER["parameters"],
}


def client_of(place: Place, **settings: Any) -> anthropic.AsyncAnthropic:
    settings = {"api_key": place.key, "max_retries": 0, "timeout": PATIENCE, **settings}
    return anthropic.AsyncAnthropic(
        base_url=place.url,
        http_client=anthropic.DefaultAsyncHttpxClient(verify=place.trust()),
        **settings,
    )


@pytest.fixture
async def client(place: Place) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with client_of(place) as client:
        yield client


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


@cell(MESSAGE)
async def test_a_message_comes_whole(
    place: Place, client: anthropic.AsyncAnthropic, kind: str
) -> None:
    message = await client.messages.create(
        model=MODELS[kind],
        messages=MESSAGES,
        max_tokens=TOKENS,
        system="Be brief.",
        extra_body=LIKELY,
    )
    assert place.could_write(kind, text_of(message))
    assert message.type == "message"
    assert message.role == "assistant"
    assert message.model == MODELS[kind]
    assert message.stop_reason in ("end_turn", "max_tokens", "stop_sequence")
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 0
    assert message.id
    assert message._request_id


@cell(MESSAGE, streamed=True)
async def test_a_message_streams(place: Place, client: anthropic.AsyncAnthropic, kind: str) -> None:
    async with client.messages.stream(
        model=MODELS[kind], messages=MESSAGES, max_tokens=TOKENS, extra_body=LIKELY
    ) as stream:
        kinds, texts = [], []
        async for event in stream:
            kinds.append(event.type)
            if event.type == "content_block_delta" and event.delta.type == "text_delta":
                texts.append(event.delta.text)
        message = await stream.get_final_message()
        assert stream.request_id
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert place.could_write(kind, "".join(texts))
    assert text_of(message) == "".join(texts)
    assert len(texts) > 1
    assert message.stop_reason in ("end_turn", "max_tokens", "stop_sequence")
    assert message.usage.output_tokens > 0


@cell(MESSAGE, streamed=True, kinds=SCRIPTED)
async def test_tokens_of_a_message_arrive_as_they_are_made(
    place: Place, client: anthropic.AsyncAnthropic, kind: str
) -> None:
    seen = asyncio.Event()
    place.script(kind, chunks=("Hel", seen, "lo"))
    text = ""
    async with (
        asyncio.timeout(PATIENCE),
        client.messages.stream(model=MODELS[kind], messages=MESSAGES, max_tokens=TOKENS) as stream,
    ):
        async for piece in stream.text_stream:
            text += piece
            if text == "Hel":
                seen.set()
    assert text == "Hello"


@cell(MESSAGE, kinds=SCRIPTED)
async def test_tool_uses_come_whole(
    place: Place, client: anthropic.AsyncAnthropic, kind: str
) -> None:
    place.script(kind, chunks=(), tools=(CALL,))
    message = await client.messages.create(
        model=MODELS[kind], messages=MESSAGES, max_tokens=TOKENS, tools=[TOOL]
    )
    assert message.stop_reason == "tool_use"
    [use] = [block for block in message.content if block.type == "tool_use"]
    assert (use.name, use.input) == CALL
    assert use.id


@cell(MESSAGE, streamed=True, kinds=SCRIPTED)
async def test_tool_uses_stream(place: Place, client: anthropic.AsyncAnthropic, kind: str) -> None:
    place.script(kind, chunks=(), tools=(CALL,))
    async with client.messages.stream(
        model=MODELS[kind], messages=MESSAGES, max_tokens=TOKENS, tools=[TOOL]
    ) as stream:
        message = await stream.get_final_message()
    assert message.stop_reason == "tool_use"
    [use] = [block for block in message.content if block.type == "tool_use"]
    assert (use.name, use.input) == CALL


@cell(COUNT)
async def test_tokens_are_counted_or_estimated(
    place: Place, client: anthropic.AsyncAnthropic, kind: str
) -> None:
    counting = client.messages.with_raw_response.count_tokens
    raw = await counting(model=MODELS[kind], messages=MESSAGES)
    counted = await raw.parse()
    assert counted.input_tokens > 0
    assert counted._request_id
    estimated = kind not in ("llama-server", "vllm")
    assert (raw.headers.get("x-fabric-estimated") == "true") is estimated


# ── keys and errors ───────────────────────────────────────────────────────────────────────────


async def test_a_key_may_come_as_a_bearer_token(place: Place) -> None:
    async with client_of(place, api_key=None, auth_token=place.key) as client:
        message = await client.messages.create(
            model=MODELS["vllm"], messages=MESSAGES, max_tokens=TOKENS
        )
    assert text_of(message) == HELLO


async def test_betas_that_nobody_here_knows_are_ignored(client: anthropic.AsyncAnthropic) -> None:
    message = await client.messages.create(
        model=MODELS["vllm"],
        messages=MESSAGES,
        max_tokens=TOKENS,
        extra_headers={"anthropic-beta": "nobody-knows-this-2030-01-01"},
    )
    assert text_of(message) == HELLO


def check_error(error: anthropic.APIStatusError, kind: str) -> None:
    """Check for Anthropic's error format, whichever engine answers."""
    body: Any = error.body
    assert body["type"] == "error"
    assert body["error"]["type"] == kind
    assert body["error"]["message"]
    assert error.request_id
    assert body["request_id"] == error.request_id


async def test_an_unknown_key_is_an_authentication_error(place: Place) -> None:
    async with client_of(place, api_key="sk-fab-nobody") as client:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await client.messages.create(model=MODELS["vllm"], messages=MESSAGES, max_tokens=TOKENS)
    check_error(caught.value, "authentication_error")


async def test_an_unknown_model_is_not_found(client: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        await client.messages.create(model="nobody-has-this", messages=MESSAGES, max_tokens=TOKENS)
    check_error(caught.value, "not_found_error")


async def test_a_body_that_names_no_model_is_a_bad_request(
    client: anthropic.AsyncAnthropic,
) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        await client.post(MESSAGE, body={"messages": [], "max_tokens": 1}, cast_to=object)
    check_error(caught.value, "invalid_request_error")


async def test_a_stream_that_breaks_off_is_an_error(
    place: Place, client: anthropic.AsyncAnthropic
) -> None:
    for kind in SCRIPTED:
        place.script(kind, cut_after=3)
        text = ""
        with pytest.raises(anthropic.APIError):
            async with client.messages.stream(
                model=MODELS[kind], messages=MESSAGES, max_tokens=TOKENS
            ) as stream:
                async for piece in stream.text_stream:
                    text += piece
        assert text
