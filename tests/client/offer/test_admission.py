"""Requests for models that are not offered, in all the ways in which they can be written."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fabric_client.offer.admission import CHOOSERS, NotOffered, admit
from fabric_client.offer.forms import read_form
from fabric_client.offer.offered import choose
from fabric_client.offer.patterns import Offer
from fabric_client.translation import TranslationError
from protocol.messages import ModelReport

LISTED = ["open:latest", "secret:latest", "/home/joe/tiny.gguf"]
OFFERED = choose([ModelReport(name) for name in LISTED], "ollama", Offer(["*", "!secret"]))
JSON = [("content-type", "application/json")]
CHAT = "/v1/chat/completions"


def admitted(body: bytes | dict[str, Any], path: str = CHAT) -> dict[str, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    found: dict[str, Any] = json.loads(admit(OFFERED, path, JSON, data).body)
    return found


@pytest.mark.parametrize(("asked", "own"), [
    ("open:latest", "open:latest"), ("open", "open"), ("tiny", "/home/joe/tiny.gguf"),
])  # fmt: skip
def test_what_is_offered_is_admitted_by_its_public_name(asked: str, own: str) -> None:
    found = admit(OFFERED, CHAT, JSON, json.dumps({"model": asked}).encode())
    assert (found.asked, found.own) == (asked, own)


@pytest.mark.parametrize(
    "body",
    [
        {"model": "secret"},
        {"model": "secret:latest"},
        {"model": "SECRET"},
        {"model": "Open"},
        {"model": "unknown"},
        {"model": "/home/joe/tiny.gguf"},
        {"model": "open", "tools": [{"type": "image_generation", "model": "secret"}]},
        {"model": "open", "options": {"model": "unknown"}},
        rb'{"model":"open","options":{"mod\u0065l":"secret"}}',
        rb'{"model":"\u0073ecret"}',
        b'{"model":"open","model":"secret"}',
    ],
)
def test_what_is_not_offered_is_refused_without_saying_which(body: Any) -> None:
    with pytest.raises(NotOffered) as caught:
        admitted(body)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        {"Model": "secret", "model": "open"},
        {"model": "open", "MODEL": "secret"},
        {"messages": []},
        {"model": None},
        {"model": ["open"]},
        b"",
        b"[]",
        b'{"model":"open"',
        *({"model": "open", name: "secret"} for name in sorted(CHOOSERS)),
        {"model": "open", "Lora_Path": "secret"},
    ],
)
def test_what_engines_could_read_in_two_ways_is_refused(body: Any) -> None:
    with pytest.raises(TranslationError):
        admitted(body)


def test_of_two_models_the_engine_gets_the_one_that_was_looked_up() -> None:
    assert (
        admit(OFFERED, CHAT, JSON, b'{"model":"secret","model":"open"}').body == b'{"model":"open"}'
    )


def test_texts_that_speak_of_models_pass() -> None:
    body = {
        "model": "open",
        "messages": [{"role": "user", "content": '"model": "secret"'}],
        "metadata": {"model": "secret"},
        "tools": [{"function": {"parameters": {"properties": {"model": {"type": "string"}}}}}],
        "stop": ['"model":"secret"'],
        "seed": 1.0,
    }
    assert admitted(body) == body


def test_half_an_emoji_does_not_stop_a_request() -> None:
    assert admitted(rb'{"model":"open","prompt":"\ud83d"}')["model"] == "open"


def test_api_show_is_read_by_its_old_name_too() -> None:
    assert admitted({"name": "open"}, "/api/show") == {"model": "open"}
    for body in ({"name": "secret"}, {"name": "open", "model": "secret"}):
        with pytest.raises(NotOffered):
            admitted(body, "/api/show")
    with pytest.raises(TranslationError):
        admitted({"model": "open", "Name": "secret"}, "/api/show")
    assert admitted({"model": "open", "name": "secret"}, "/api/show") == {"model": "open"}


@given(some.binary(max_size=60), some.sampled_from([b"", b'"model":"open"', b'"MODEL":"secret"']))
def test_no_body_is_admitted_that_does_not_name_an_offered_model(data: bytes, more: bytes) -> None:
    try:
        found = admit(OFFERED, CHAT, JSON, b"{" + more + data)
    except (NotOffered, TranslationError):
        return
    keys = [key for key in json.loads(found.body) if key.casefold() == "model"]
    assert keys == ["model"]
    assert found.own in ("open", "open:latest", "/home/joe/tiny.gguf")


# ── forms ─────────────────────────────────────────────────────────────────────────────────────

FORM = [("content-type", "multipart/form-data; boundary=xyz")]
SPEECH = "/v1/audio/transcriptions"


def part(name: str, content: bytes, more: str = "") -> bytes:
    return (
        f'--xyz\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode()
        + content
        + b"\r\n"
    )


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--xyz--\r\n"


SMUGGLED = quote('"\r\n\r\nx\r\n--xyz\r\ncontent-disposition: form-data; name="a"\r\n\r\nb')
"""What a percent-decoded file name would put into a form that is written anew."""
FILE = part("file", b"RIFF\r\n\x00", '; filename="a.wav"\r\nContent-Type: audio/wav')


def test_a_form_reaches_its_engine_with_the_engine_s_name() -> None:
    found = admit(OFFERED, SPEECH, FORM, form(FILE, part("model", b"tiny")))
    assert found.is_form
    again = read_form([FORM[0][1]], found.body)
    assert again.names == ["file", "model"]
    assert again.value("model") == "/home/joe/tiny.gguf"
    assert b"RIFF\r\n\x00" in found.body


@given(some.text(max_size=30) | some.sampled_from(["--xyz", 'a"; name="model', "a\\", "a\u202fb"]))
def test_a_form_is_read_anew_as_it_was_authorised(filename: str) -> None:
    file = part("file", b"RIFF", f"; filename*=utf-8''{quote(filename, safe='', errors='ignore')}")
    try:
        found = admit(OFFERED, SPEECH, FORM, form(file, part("model", b"tiny")))
    except TranslationError:
        return
    assert found.body.split(b"\r\n\r\n")[0].count(b"\r\n") == 1
    assert read_form([FORM[0][1]], found.body).names == ["file", "model"]


@pytest.mark.parametrize(
    "body",
    [
        form(FILE, part("model", b"secret")),
        form(FILE, part("model", b"")),
    ],
)
def test_a_form_for_what_is_not_offered_is_refused(body: bytes) -> None:
    with pytest.raises(NotOffered):
        admit(OFFERED, SPEECH, FORM, body)


@pytest.mark.parametrize(
    "body",
    [
        form(FILE),
        form(part("model", b"open"), part("model", b"secret")),
        form(part("model", b"open"), part("MODEL", b"secret")),
        form(part("model", b"open"), part("mod\\el", b"secret")),
        form(part("model", b"open"), part("mod%65l", b"secret")),
        form(part("model", b"open", '; filename="x"')),
        form(part("model", b"open", "\r\nContent-Transfer-Encoding: quoted-printable")),
        form(part("model", b"open"), part("lora", b"secret")),
        form(part("model", b"open"), part("file", b"x", f"; filename*=utf-8''a{SMUGGLED}")),
        form(part("model", b"open"))[:-9],
        b"x" + form(part("model", b"open")),
        form(part("model", b"open")) + form(part("model", b"secret")),
        b"",
    ],
)
def test_a_form_that_could_be_read_in_two_ways_is_refused(body: bytes) -> None:
    with pytest.raises(TranslationError):
        admit(OFFERED, SPEECH, FORM, body)


@pytest.mark.parametrize(
    "types",
    [
        ["multipart/form-data"],
        ["multipart/form-data; boundary=xyz; boundary=abc"],
        ["multipart/form-data; boundary=xyz", "multipart/form-data; boundary=abc"],
        ["multipart/form-data; boundary=xyz", "application/json"],
    ],
)
def test_a_form_needs_one_boundary(types: list[str]) -> None:
    headers = [("content-type", one) for one in types]
    with pytest.raises(TranslationError):
        admit(OFFERED, SPEECH, headers, form(part("model", b"open")))
