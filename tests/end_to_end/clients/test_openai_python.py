"""openai-python, the newest: every endpoint that it and we have, and how it takes errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tests.end_to_end.clients.matrix import KINDS, REFUSED, SCRIPTED, cell
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
from tests.open_responses import problems_of_response, problems_of_stream

CLIENT = "openai-python"
pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RESPONSES, TRANSCRIPTIONS = "/v1/responses", "/v1/audio/transcriptions"
TOOLS: Any = [{"type": "function", "function": WEATHER}]
USAGE: Any = {"include_usage": True}


def client_of(place: Place, **settings: Any) -> openai.AsyncOpenAI:
    hooks = settings.pop("event_hooks", None)
    settings = {"api_key": place.key, "max_retries": 0, "timeout": PATIENCE, **settings}
    return openai.AsyncOpenAI(
        base_url=f"{place.url}/v1",
        http_client=openai.DefaultAsyncHttpxClient(verify=place.trust(), event_hooks=hooks),
        **settings,
    )


@pytest.fixture
async def client(place: Place) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(place) as client:
        yield client


# ── the endpoints ─────────────────────────────────────────────────────────────────────────────


@cell(CHAT)
async def test_a_chat_comes_whole(place: Place, client: openai.AsyncOpenAI, kind: str) -> None:
    answer = await client.chat.completions.create(
        model=MODELS[kind], messages=MESSAGES, max_tokens=TOKENS, temperature=0
    )
    [choice] = answer.choices
    assert place.could_write(kind, choice.message.content)
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    assert answer.id
    assert answer._request_id
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 0
    assert 0 < answer.usage.completion_tokens <= TOKENS
    parts = answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.total_tokens == parts


@cell(CHAT, streamed=True)
async def test_a_chat_streams(place: Place, client: openai.AsyncOpenAI, kind: str) -> None:
    stream = await client.chat.completions.create(
        model=MODELS[kind],
        messages=MESSAGES,
        max_tokens=TOKENS,
        temperature=0,
        stream=True,
        stream_options=USAGE,
    )
    assert stream.response.headers["x-request-id"]
    *chunks, last = [chunk async for chunk in stream]
    texts = [chunk.choices[0].delta.content for chunk in chunks]
    assert place.could_write(kind, "".join(text or "" for text in texts))
    assert sum(map(bool, texts)) > 1
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert len({chunk.id for chunk in chunks}) == 1
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens > 0


@cell(CHAT, streamed=True, kinds=SCRIPTED)
async def test_tokens_of_a_chat_arrive_as_they_are_made(
    place: Place, client: openai.AsyncOpenAI, kind: str
) -> None:
    seen = asyncio.Event()
    place.script(kind, chunks=("Hel", seen, "lo"))
    async with asyncio.timeout(PATIENCE):
        stream = await client.chat.completions.create(
            model=MODELS[kind], messages=MESSAGES, stream=True
        )
        text = ""
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            if text == "Hel":
                seen.set()
    assert text == "Hello"


@cell(CHAT, kinds=SCRIPTED)
async def test_tool_calls_come_whole(place: Place, client: openai.AsyncOpenAI, kind: str) -> None:
    place.script(kind, chunks=(), tools=(CALL,))
    answer = await client.chat.completions.create(
        model=MODELS[kind], messages=MESSAGES, tools=TOOLS
    )
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls or ()
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == CALL


@cell(CHAT, streamed=True, kinds=SCRIPTED)
async def test_tool_calls_stream(place: Place, client: openai.AsyncOpenAI, kind: str) -> None:
    place.script(kind, chunks=(), tools=(CALL,))
    async with client.chat.completions.stream(
        model=MODELS[kind], messages=MESSAGES, tools=TOOLS
    ) as stream:
        whole = await stream.get_final_completion()
    [call] = whole.choices[0].message.tool_calls or ()
    assert (call.function.name, json.loads(call.function.arguments)) == CALL


@cell(CHAT, kinds=("vllm",))
async def test_what_a_model_thinks_reaches_the_user(
    place: Place, client: openai.AsyncOpenAI, kind: str
) -> None:
    place.script(kind, reasoning="Hm.")
    answer = await client.chat.completions.create(model=MODELS[kind], messages=MESSAGES)
    assert (answer.choices[0].message.model_extra or {})["reasoning"] == "Hm."
    place.script(kind, reasoning="Hm.")
    stream = await client.chat.completions.create(
        model=MODELS[kind], messages=MESSAGES, stream=True
    )
    extras = [(chunk.choices[0].delta.model_extra or {}) async for chunk in stream]
    assert "".join(extra.get("reasoning", "") for extra in extras) == "Hm."


@cell(COMPLETIONS)
async def test_a_completion_comes_whole(
    place: Place, client: openai.AsyncOpenAI, kind: str
) -> None:
    answer = await client.completions.create(
        model=MODELS[kind], prompt="Once", max_tokens=TOKENS, temperature=0
    )
    [choice] = answer.choices
    assert place.could_write(kind, choice.text)
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    assert answer._request_id


@cell(COMPLETIONS, streamed=True)
async def test_a_completion_streams(place: Place, client: openai.AsyncOpenAI, kind: str) -> None:
    stream = await client.completions.create(
        model=MODELS[kind],
        prompt="Once",
        max_tokens=TOKENS,
        temperature=0,
        stream=True,
        stream_options=USAGE,
    )
    chunks = [chunk async for chunk in stream]
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert place.could_write(kind, "".join(choice.text for choice in choices))
    assert choices[-1].finish_reason in ("stop", "length")
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


@cell(EMBEDDINGS)
async def test_embeddings_come_the_same_as_numbers_and_as_base64(
    place: Place, client: openai.AsyncOpenAI, kind: str
) -> None:
    words = ["one", "two"]
    numbers = await client.embeddings.create(
        model=MODELS[kind], input=words, encoding_format="float"
    )
    packed = await client.embeddings.create(
        model=MODELS[kind], input=words, encoding_format="base64"
    )
    unsaid = await client.embeddings.create(model=MODELS[kind], input=words)
    assert len(numbers.data) == 2
    assert [one.index for one in numbers.data] == [0, 1]
    assert all(isinstance(one.embedding, list) for one in numbers.data)
    # The client unpacks what it has asked for itself, and leaves alone what its user has.
    assert all(isinstance(one.embedding, str) for one in packed.data)
    for asked, default in zip(numbers.data, unsaid.data, strict=True):
        assert default.embedding == pytest.approx(asked.embedding, abs=1e-4)
    assert numbers.usage.prompt_tokens > 0
    assert numbers._request_id


@cell(EMBEDDINGS)
async def test_embeddings_of_token_numbers_come_or_are_refused_with_a_reason(
    place: Place, client: openai.AsyncOpenAI, kind: str
) -> None:
    asking = client.embeddings.create(model=MODELS[kind], input=[[75, 76], [266]])
    if kind in ("ollama", "openai"):  # which know texts only, or may
        with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length"):
            await asking
    else:
        answer = await asking
        assert len(answer.data) == 2
        assert all(answer.data[0].embedding)


@cell("/v1/models")
async def test_models_are_listed_and_described(
    place: Place, client: openai.AsyncOpenAI, kind: str
) -> None:
    models = [model async for model in client.models.list()]
    [listed] = [model for model in models if model.id == MODELS[kind]]
    found = await client.models.retrieve(MODELS[kind])
    assert found.id == listed.id
    assert found.object == "model"
    assert isinstance(found.created, int)
    assert found.owned_by
    assert found._request_id


@cell(RESPONSES)
async def test_a_response_comes_whole(place: Place, client: openai.AsyncOpenAI, kind: str) -> None:
    answer = await client.responses.create(
        model=MODELS[kind],
        input="Tell me about Python.",
        max_output_tokens=TOKENS,
        temperature=0,
    )
    assert place.could_write(kind, answer.output_text)
    assert answer.status in ("completed", "incomplete")
    assert answer.usage is not None
    assert answer.usage.output_tokens > 0
    assert answer.id
    assert answer._request_id


@cell(RESPONSES, streamed=True)
async def test_a_response_streams(place: Place, client: openai.AsyncOpenAI, kind: str) -> None:
    stream = await client.responses.create(
        model=MODELS[kind],
        input="Tell me about Python.",
        max_output_tokens=TOKENS,
        temperature=0,
        stream=True,
    )
    events = [event async for event in stream]
    assert events[0].type == "response.created"
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert place.could_write(kind, "".join(deltas))
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert last.response.usage is not None
    assert last.response.usage.output_tokens > 0


@cell(RESPONSES, streamed=True, kinds=SCRIPTED)
async def test_tokens_of_a_response_arrive_as_they_are_made(
    place: Place, client: openai.AsyncOpenAI, kind: str
) -> None:
    seen = asyncio.Event()
    place.script(kind, chunks=("Hel", seen, "lo"))
    async with asyncio.timeout(PATIENCE):
        stream = await client.responses.create(model=MODELS[kind], input="Hi", stream=True)
        text = ""
        async for event in stream:
            if event.type == "response.output_text.delta":
                text += event.delta
                seen.set()
    assert text == "Hello"


@cell(RESPONSES, kinds=SCRIPTED)
async def test_tool_calls_of_a_response_come_whole(
    place: Place, client: openai.AsyncOpenAI, kind: str
) -> None:
    place.script(kind, chunks=(), tools=(CALL,))
    tool: Any = {"type": "function", "strict": False, **WEATHER}
    answer = await client.responses.create(model=MODELS[kind], input="Hi", tools=[tool])
    [call] = [item for item in answer.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == CALL


@cell(RESPONSES)
async def test_a_response_that_goes_on_from_another_is_refused(
    place: Place,
    client: openai.AsyncOpenAI,
    kind: str,
) -> None:
    """Nodes remember no answers."""
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(
            model=MODELS[kind], input="And then?", previous_response_id="resp_1"
        )
    assert caught.value.param == "previous_response_id"


# ── reasoning ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", SCRIPTED)
async def test_reasoning_is_split_unless_the_header_or_the_key_says_raw(
    place: Place, client: openai.AsyncOpenAI, kind: str
) -> None:
    written = "<think>Hm.</think>Yes."
    new = await place.stack.command("keys", "create", "raw", "--reasoning", "raw")
    raw, split = {"x-fabric-reasoning": "raw"}, {"x-fabric-reasoning": "split"}

    async def ask_both(client: openai.AsyncOpenAI, headers: dict[str, str]) -> tuple[str, str]:
        place.script(kind, chunks=[written])
        stream = await client.chat.completions.create(
            model=MODELS[kind], messages=MESSAGES, stream=True, extra_headers=headers
        )
        deltas = [chunk.choices[0].delta async for chunk in stream if chunk.choices]
        thought = [(delta.model_extra or {}).get("reasoning_content", "") for delta in deltas]
        return "".join(thought), "".join(delta.content or "" for delta in deltas)

    assert await ask_both(client, {}) == ("Hm.", "Yes.")
    assert await ask_both(client, raw) == ("", written)
    async with client_of(place, api_key=new["text"]) as other:
        assert await ask_both(other, {}) == ("", written)
        assert await ask_both(other, split) == ("Hm.", "Yes.")


# ── errors ────────────────────────────────────────────────────────────────────────────────────


async def test_an_unknown_key_is_an_authentication_error(place: Place) -> None:
    async with client_of(place, api_key="sk-fab-nobody") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.models.list()
    assert caught.value.code == "invalid_api_key"
    assert caught.value.request_id


async def test_an_unknown_model_is_not_found(client: openai.AsyncOpenAI) -> None:
    for streamed in (False, True):
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(
                model="nobody-has-this", messages=MESSAGES, stream=streamed
            )
        assert caught.value.code == "model_not_found"
        assert caught.value.request_id
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nobody/has:this")


async def test_an_unknown_path_is_not_found(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.get("/_stainless_unknown_path", cast_to=object)
    assert caught.value.request_id


async def test_a_body_that_names_no_model_is_a_bad_request(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.post(CHAT.removeprefix("/v1"), body={"messages": []}, cast_to=object)
    assert caught.value.param == "model"


async def test_an_engine_s_complaint_is_a_bad_request(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(
            model=MODELS["llama-server"],
            messages=MESSAGES,
            response_format={"type": "nonsense"},  # type: ignore[arg-type]
        )
    assert caught.value.request_id


@pytest.mark.parametrize("wrong", [[], [""], 1, {}], ids=str)
@pytest.mark.parametrize("kind", ["llama-server", "ollama"])
async def test_what_can_t_be_embedded_is_a_bad_request(
    client: openai.AsyncOpenAI, kind: str, wrong: Any
) -> None:
    """Both engines call some of it their own failure, for which they would be ejected."""
    with pytest.raises(openai.BadRequestError) as caught:
        await client.embeddings.create(model=MODELS[kind], input=wrong)
    assert caught.value.code == "invalid_value"


async def test_an_answer_that_breaks_off_is_an_error(
    place: Place, client: openai.AsyncOpenAI
) -> None:
    place.script("vllm", cut_after=2)
    stream = await client.chat.completions.create(
        model=MODELS["vllm"], messages=MESSAGES, stream=True
    )
    text = ""
    with pytest.raises(openai.APIError):
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
    assert text == "Hello,"


async def test_what_may_work_later_is_tried_again_and_the_rest_is_not(place: Place) -> None:
    asked: list[str] = []

    async def count(request: Any) -> None:
        asked.append(request.url.path)

    hooks = {"request": [count]}
    async with client_of(place, max_retries=1, event_hooks=hooks) as client:
        place.script("vllm", status=503, headers={"retry-after": "1"})
        answer = await client.chat.completions.create(model=MODELS["vllm"], messages=MESSAGES)
        assert answer.choices[0].message.content == HELLO
        assert len(asked) == 2
        asked.clear()
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="nobody-has-this", messages=MESSAGES)
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert len(asked) == 1
    asked.clear()
    async with client_of(place, max_retries=1, event_hooks=hooks, api_key="no") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
    assert len(asked) == 1


SPEECH = ("speech.wav", b"RIFF" + bytes(300_000), "audio/wav")
"""Longer than what is read before a request is looked at."""


@cell(TRANSCRIPTIONS, kinds=("vllm",))
async def test_speech_becomes_text(place: Place, client: openai.AsyncOpenAI, kind: str) -> None:
    heard = await client.audio.transcriptions.create(model=MODELS[kind], file=SPEECH, language="en")
    assert heard.text == HELLO
    assert heard.usage is not None
    assert heard.usage.type == "tokens"
    assert heard.usage.output_tokens == 3


@cell(TRANSCRIPTIONS, streamed=True, kinds=("vllm",))
async def test_speech_becomes_text_while_it_is_heard(
    place: Place, client: openai.AsyncOpenAI, kind: str
) -> None:
    seen = asyncio.Event()
    place.script(kind, chunks=("Hel", seen, "lo"))
    text = ""
    async with asyncio.timeout(PATIENCE):
        stream = await client.audio.transcriptions.create(
            model=MODELS[kind], file=SPEECH, stream=True
        )
        async for event in stream:
            if event.type == "transcript.text.delta":
                text += event.delta
                seen.set()
    assert (text, event.type) == ("Hello", "transcript.text.done")


@cell(TRANSCRIPTIONS, kinds=("llama-server", "openai", "ollama"))
async def test_who_can_not_hear_says_so(
    place: Place, client: openai.AsyncOpenAI, kind: str, record_property: Any
) -> None:
    with pytest.raises(openai.NotFoundError, match="transcriptions"):
        await client.audio.transcriptions.create(model=MODELS[kind], file=SPEECH)
    record_property("answer", REFUSED)


# ── Open Responses ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["llama-server", "openai"])
async def test_translated_responses_have_all_that_open_responses_requires(
    place: Place, client: openai.AsyncOpenAI, kind: str
) -> None:
    asked: Any = {"model": MODELS[kind], "input": MESSAGES, "max_output_tokens": TOKENS}
    raw = await client.responses.with_raw_response.create(**asked)
    assert problems_of_response(json.loads(raw.content)) == []
    async with client.responses.with_streaming_response.create(**asked, stream=True) as stream:
        lines = [line async for line in stream.iter_lines()]
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert problems_of_stream(events) == []
    assert events[-1]["type"] in ("response.completed", "response.incomplete")


@pytest.mark.parametrize("kind", KINDS)
async def test_the_tokens_of_an_input_are_counted(
    place: Place, client: openai.AsyncOpenAI, kind: str
) -> None:
    counted = await client.responses.input_tokens.count(model=MODELS[kind], input="Hello you")
    assert counted.object == "response.input_tokens"
    assert counted.input_tokens > 0
