"""Shared by the tests of translation from the Messages API."""

from __future__ import annotations

import anthropic
from anthropic.types import RawMessageStreamEvent
from pydantic import TypeAdapter

from fabric_client.translation.messages import translate
from tests.chat_streams import (
    Engine,
    TranslatorCase,
)

USER = [{"role": "user", "content": "Say"}]
WEATHER = {"name": "weather", "description": "Now", "input_schema": {"type": "object"}}
stream_event: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)


asking = TranslatorCase(translate, model="m", max_tokens=100, messages=USER)
body, chat, rejection, streamed = asking.body, asking.chat, asking.rejection, asking.streamed


def client(engine: Engine) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        api_key="k", base_url="http://fabric", http_client=engine.client(), max_retries=0
    )
