"""Shared by the tests of translation from the Responses API."""

from __future__ import annotations

from functools import partial

import openai
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from fabric_client.translation import responses
from tests.chat_streams import (
    Engine,
    TranslatorCase,
)

WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: hunk+"},
}
CALENDAR = {
    "type": "namespace",
    "name": "mcp__calendar",
    "description": "All of March.",
    "tools": [
        {"type": "function", "name": "list", "parameters": {"type": "object"}},
        {"type": "function", "name": "add", "description": "One.", "parameters": {}},
    ],
}
NOW = 1795281800
translate = partial(responses.translate, clock=lambda: NOW * 1_000_000_000)
stream_event: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


asking = TranslatorCase(translate, model="m", input="Say")
body, chat, rejection, streamed = asking.body, asking.chat, asking.rejection, asking.streamed


def client(engine: Engine) -> openai.OpenAI:
    return openai.OpenAI(
        api_key="k", base_url="http://fabric/v1", http_client=engine.client(), max_retries=0
    )
