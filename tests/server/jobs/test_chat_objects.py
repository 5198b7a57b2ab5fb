"""The JSON of stored chats, where an engine's answer is odd, or a user's request."""

from __future__ import annotations

import json

import pytest

from fabric_server.dialects.body import parse_body
from fabric_server.jobs.chat_objects import OtherId, read_asked, read_fields, stored_chat


@pytest.mark.parametrize(
    "more", [b'"\xff":1', b'"user":"\xff"', b'"x":"\xff"'], ids=["a key", "a text", "any text"]
)
def test_a_request_that_is_not_all_utf8_is_kept_so_that_clients_can_read_it(more: bytes) -> None:
    body = b'{"model":"m","messages":[{"content":"\xff!"}],"store":true,%b}' % more
    assert parse_body(body).model == "m", "an engine may be able to read it"
    asked = read_asked(body)
    assert asked is not None
    assert json.loads(asked.messages) == [{"content": "\ufffd!"}]
    user = "\ufffd" if b"user" in more else None
    assert json.loads(asked.shown)["input_user"] == user


def test_an_answer_with_another_id_is_told_from_one_that_is_no_chat() -> None:
    with pytest.raises(OtherId):
        stored_chat(read_fields(b'{"id":"1","choices":[{}]}'), {}, "chatcmpl-1")
    assert stored_chat(read_fields(b'{"id":"1","choices":[]}'), {}, "chatcmpl-1") is None


def test_an_answer_that_is_not_all_utf8_is_stored_so_that_clients_can_read_it() -> None:
    answer = b'{"id":"chatcmpl-1","choices":[{"message":{"content":"\xff!"}}]}'
    found = stored_chat(read_fields(answer), {}, "chatcmpl-1")
    assert found is not None
    assert json.loads(found)["choices"][0]["message"]["content"] == "\ufffd!"
