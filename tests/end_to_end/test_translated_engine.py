"""A real llama-server behind the node's translation, for the official clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from fabric_client.translation import RequestTranslator, messages, responses
from tests.lab.llama import LlamaServer

MORE = {"ignore_eos": True}
"""llama-server's own; lest the tiny model say nothing."""
USER: Any = [{"role": "user", "content": "Say something"}]


class Translating(httpx2.BaseTransport):
    """A transport that translates, as the node does between a user and an engine."""

    def __init__(self, translate: RequestTranslator, engine: str) -> None:
        self._translate = translate
        self._engine = engine

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        question = self._translate(request.read())
        with httpx2.stream("POST", self._engine + question.path, content=question.body) as engine:
            told = [(name.lower(), value) for name, value in engine.headers.items()]
            answer = question.response_filter
            decided = answer.head(engine.status_code, told)
            body = b"".join(answer.feed(data) for data in engine.iter_raw()) + answer.end()
        status, headers = decided or answer.decided
        kept = [pair for pair in headers if pair[0] == "content-type"]
        return httpx2.Response(status, headers=kept, content=body)


@pytest.fixture(scope="module")
def engine() -> Iterator[LlamaServer]:
    with LlamaServer() as running:
        yield running


@pytest.fixture
def claude(engine: LlamaServer) -> anthropic.Anthropic:
    http = httpx2.Client(transport=Translating(messages.translate, engine.url))
    return anthropic.Anthropic(api_key="k", base_url="http://f", http_client=http, max_retries=0)


@pytest.fixture
def gpt(engine: LlamaServer) -> openai.OpenAI:
    http = httpx2.Client(transport=Translating(responses.translate, engine.url))
    return openai.OpenAI(api_key="k", base_url="http://f/v1", http_client=http, max_retries=0)


def test_messages_streamed_and_not(claude: anthropic.Anthropic):
    with claude.messages.stream(
        model="tiny", max_tokens=7, messages=USER, extra_body=MORE
    ) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 7)
    message = claude.messages.create(model="tiny", max_tokens=7, messages=USER, extra_body=MORE)
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 7)


def test_an_answer_is_gone_on_with_not_repeated(claude: anthropic.Anthropic):
    begun = [*USER, {"role": "assistant", "content": "well known then"}]
    with claude.messages.stream(model="tiny", max_tokens=7, messages=begun) as stream:
        assert not "".join(stream.text_stream).startswith("well known then")
    answer = claude.messages.create(model="tiny", max_tokens=7, messages=begun)
    told = "".join(block.text for block in answer.content if block.type == "text")
    assert not told.startswith("well known then")


def test_responses_streamed_and_not(gpt: openai.OpenAI):
    asked: Any = {"model": "tiny", "input": USER, "max_output_tokens": 7, "extra_body": MORE}
    events = list(gpt.responses.create(**asked, stream=True))
    pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert events[-1].type == "response.incomplete"
    response = events[-1].response
    assert response.output_text == "".join(pieces) != ""
    assert response.usage is not None
    assert (response.status, response.usage.output_tokens) == ("incomplete", 7)
    response = gpt.responses.create(**asked)
    assert response.usage is not None
    assert (response.status, response.usage.output_tokens) == ("incomplete", 7)


def test_an_answer_fits_the_schema_that_was_asked_for(gpt: openai.OpenAI):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    shape: Any = {"type": "json_schema", "name": "o", "schema": schema, "strict": True}
    answer = gpt.responses.create(model="tiny", input="x", text={"format": shape})
    assert answer.output_text.replace(" ", "").replace("\n", "").startswith('{"a":')


def test_a_prompt_that_is_too_long_is_refused_as_the_official_apis_do(
    claude: anthropic.Anthropic, gpt: openai.OpenAI
):
    long: Any = [{"role": "user", "content": "x " * 9000}]
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        claude.messages.create(model="tiny", max_tokens=1, messages=long)
    with pytest.raises(openai.BadRequestError) as caught:
        gpt.responses.create(model="tiny", input=long)
    assert caught.value.code == "context_length_exceeded"
