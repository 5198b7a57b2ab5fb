"""What is taken out of an engine's answers: its own names for models, and what is held back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fabric_client.offer.name_filter import NameFilter, ShowFilter
from fabric_client.offer.private_text import INSTEAD, PrivateText

OWN = "/home/joé/models/tiny.gguf"
PRIVATE = PrivateText({OWN: "tiny"}, {"secret:latest"})
EVENTS = [("content-type", "text/event-stream")]
JSON = [("content-type", "application/json"), ("content-length", "99")]


def passed(body: bytes, headers: list[tuple[str, str]] = EVENTS, size: int = 1 << 20) -> bytes:
    names = NameFilter(PRIVATE, OWN, "tiny")
    assert names.head(200, headers) == (200, [headers[0]])
    pieces = [names.feed(body[at : at + size]) for at in range(0, len(body), size)]
    return b"".join(pieces) + names.end()


SPELLINGS = [
    json.dumps(OWN).encode(),
    json.dumps(OWN, ensure_ascii=False).encode(),
    json.dumps(OWN).replace("/", "\\/").encode(),
]


@pytest.mark.parametrize("spelled", SPELLINGS)
@pytest.mark.parametrize("space", [b"", b" ", b" \n "])
@given(size=some.integers(1, 70))
def test_the_name_asked_for_comes_back_however_the_bytes_are_cut(
    spelled: bytes, space: bytes, size: int
) -> None:
    chunk = b'{"id":"a","model":' + space + spelled + b',"choices":[]}'
    asked = b'{"id":"a","model":' + space + b'"tiny","choices":[]}'
    assert passed(chunk * 2, JSON, size) == asked * 2
    if b"\n" not in space:
        events = b"data: " + chunk + b"\n\n: ping\n\ndata: [DONE]\n\n"
        assert passed(events, EVENTS, size) == events.replace(chunk, asked)


def test_whole_events_are_not_held() -> None:
    names = NameFilter(PRIVATE, OWN, "tiny")
    names.head(200, EVENTS)
    assert names.feed(b'data: {"model":"/home/joe/x"}\n\n') == b'data: {"model":"/home/joe/x"}\n\n'
    assert names.feed(b"data: {") == b""


def test_text_of_the_model_is_not_touched() -> None:
    texts = [OWN, f'"model": "{OWN}"', "secret:latest", "/etc/passwd", 'an "error"']
    for text in texts:
        body = (
            b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"
        )
        assert passed(body) == body


def test_a_document_of_any_length_has_the_name() -> None:
    body = json.dumps({"data": ["x" * 100] * 80_000, "model": OWN}).encode()
    assert passed(body, JSON, 50_000) == body.replace(json.dumps(OWN).encode(), b'"tiny"')


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error":{"message":"no model x; there are secret:latest, tiny"}}\n\n',
        b'data: {"error":"secret failed"}\n\n',
        b"error: secret failed\n\n",
        b'{"error":"secret failed"}\n',
        b'event: error\ndata: {"type":"error","error":{"message":"secret failed"}}\n\n',
        b'data: {"type":"response.failed","response":{"error":{"message":"secret failed"}}}\n\n',
        b'{"object": "error", "message": "secret failed"}',
    ],
)
def test_errors_in_a_stream_say_nothing_of_what_is_held_back(event: bytes) -> None:
    for size in (1, 1000):
        told = passed(event, EVENTS, size)
        assert b"secret" not in told
        assert INSTEAD.encode() in told


def test_sound_passes_as_it_is() -> None:
    names = NameFilter(PRIVATE, OWN, "tiny")
    headers = [("content-type", "audio/mpeg"), ("content-length", "3")]
    assert names.head(200, headers) == (200, headers)
    assert names.feed(b'"error') == b'"error'
    assert names.end() == b""


def test_what_a_model_was_made_from_is_not_shown_if_it_is_held_back() -> None:
    shown = ShowFilter(PRIVATE)
    assert shown.head(200, JSON) is None
    document = {
        "modelfile": "# FROM secret:latest\nFROM secret\nSYSTEM the secret is out",
        "details": {"parent_model": "secret:latest", "family": "llama"},
    }
    shown.feed(json.dumps(document).encode())
    told = json.loads(shown.end())
    assert told["modelfile"] == "# FROM (not offered)\nFROM (not offered)\nSYSTEM the secret is out"
    assert told["details"] == {"parent_model": INSTEAD, "family": "llama"}


@given(some.binary(max_size=200), some.integers(1, 50))
def test_no_bytes_break_the_filters(data: bytes, size: int) -> None:
    passed(data, EVENTS, size)
