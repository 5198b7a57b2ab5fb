"""Counting tokens with vLLM's /tokenize."""

from __future__ import annotations

import json

from fabric_client.translation.messages import count_tokens
from tests.chat_streams import (
    translated,
)
from tests.client.translation.messages.common import (
    WEATHER,
    body,
)


def test_tokens_are_counted_by_vllm():
    question = count_tokens(body(max_tokens=..., system="s", tools=[WEATHER]))
    asked = json.loads(question.body)
    assert question.path == "/tokenize"
    assert set(asked) == {"model", "messages", "tools", "chat_template_kwargs"}
    counted = b'{"count":17,"max_model_len":4096,"tokens":[1]}'
    assert json.loads(translated(question, counted)) == {"input_tokens": 17}


def test_an_error_while_counting_has_anthropics_shape():
    error = json.loads(translated(count_tokens(body()), b'{"detail":"Not Found"}', 404))
    assert error == {"type": "error", "error": {"type": "not_found_error", "message": "Not Found"}}
