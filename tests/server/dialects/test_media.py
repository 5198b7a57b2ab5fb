"""What of a request's body may not reach an engine in its owner's home: URLs, paths, their kin."""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_server.dialects.errors import ApiError
from fabric_server.dialects.media import MEDIA, MEDIA_TYPES, OTHERS, Kind, Rule
from fabric_server.dialects.media_guard import may_have_media
from fabric_server.dialects.media_scanner import MAX_KEPT, MediaScanner, Reference
from fabric_server.dialects.media_values import Policy

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)
PNG64 = base64.b64encode(PNG).decode()
DATA = f"data:image/png;base64,{PNG64}"
FETCH = Policy()
HOME = "http://192.168.1.1/cgi?reboot"


def scan(
    body: object,
    policy: Policy = FETCH,
    *,
    piece: int | None = None,
) -> list[Reference]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    scanner = MediaScanner(policy)
    if piece is None:
        scanner.feed(raw, last=True)
    else:
        for at in range(0, len(raw), piece):
            scanner.feed(raw[at : at + piece], last=at + piece >= len(raw))
    return scanner.references


def verdict(body: object, policy: Policy = FETCH) -> str:
    """``passes``, ``fetched``, or the parameter that is refused."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        found = scan(raw, policy)
    except ApiError as error:
        assert error.status == 400
        assert may_have_media(raw), "the guard lets it pass unseen"
        assert error.param is not None
        return error.param
    if found:
        assert may_have_media(raw), "the guard lets it pass unseen"
    return "fetched" if found else "passes"


def chat(*parts: object) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": list(parts)}]}


def responses(*items: object) -> dict[str, Any]:
    return {"model": "m", "input": [{"role": "user", "content": list(items)}]}


def tool_result(part: object) -> dict[str, Any]:
    return chat({"type": "tool_result", "tool_use_id": "t", "content": [part]})


# Each field that engines take URLs in, by dialect: a function from the URL to the body.
FETCHED = {
    "chat image": lambda url: chat({"type": "image_url", "image_url": {"url": url}}),
    "chat image as string": lambda url: chat({"type": "image_url", "image_url": url}),
    "chat image without type": lambda url: chat({"image_url": {"url": url}}),
    "chat image with detail": lambda url: chat(
        {"type": "image_url", "image_url": {"detail": "low", "url": url, "uuid": "x"}}
    ),
    "chat audio": lambda url: chat({"type": "audio_url", "audio_url": {"url": url}}),
    "chat video": lambda url: chat({"type": "video_url", "video_url": {"url": url}}),
    "chat file": lambda url: chat({"type": "file", "file": {"file_url": url}}),
    "responses image": lambda url: responses({"type": "input_image", "image_url": url}),
    "responses file": lambda url: responses({"type": "input_file", "file_url": url}),
    "responses screenshot": lambda url: {
        "model": "m",
        "input": [
            {
                "type": "computer_call_output",
                "output": {"type": "computer_screenshot", "image_url": url},
            }
        ],
    },
    "responses tool's image": lambda url: {
        "model": "m",
        "input": [
            {
                "type": "function_call_output",
                "output": [{"type": "input_image", "image_url": url}],
            }
        ],
    },
    "messages image": lambda url: chat({"type": "image", "source": {"type": "url", "url": url}}),
    "messages document": lambda url: chat(
        {"source": {"url": url, "type": "url"}, "type": "document"}
    ),
    "messages tool result": lambda url: tool_result(
        {"type": "image", "source": {"type": "url", "url": url}}
    ),
    "embeddings": lambda url: {"model": "m", "messages": chat({"image_url": url})["messages"]},
    "embeddings beside text": lambda url: {"model": "m", "input": [{"text": "a", "image": url}]},
    "score": lambda url: {
        "model": "m",
        "text_2": {"content": [{"type": "image_url", "image_url": {"url": url}}]},
    },
    "rerank": lambda url: {
        "model": "m",
        "query": "a",
        "documents": [{"content": [{"type": "video_url", "video_url": {"url": url}}]}],
    },
    "transformers": lambda url: chat({"type": "image", "url": url}),
    "transformers, type last": lambda url: chat({"url": url, "type": "image"}),
    "speech": lambda url: {"model": "m", "input": "say", "ref_audio": url},
    "ollama with parts": lambda url: chat({"type": "image_url", "image_url": {"url": url}}),
    "upper case": lambda url: chat({"type": "image_url", "Image_URL": {"URL": url}}),
    "array": lambda url: chat({"type": "image_url", "image_url": [url]}),
    "deep": lambda url: chat({"image_url": {"image_url": {"url": [[url]]}}}),
}
BASE64_ONLY = {
    "input_audio": lambda value: chat({"type": "input_audio", "input_audio": {"data": value}}),
    "file_data": lambda value: chat({"type": "file", "file": {"file_data": value}}),
    "responses file_data": lambda value: responses({"type": "input_file", "file_data": value}),
    "url of unknown use": lambda value: chat({"type": "text", "text": "a", "url": value}),
    "other url": lambda value: {"model": "m", "callback_url": value},
    "other urls": lambda value: {"model": "m", "x": [{"thing_urls": [value]}]},
}
NEVER = [
    *("file:///etc/passwd", "FILE:///etc/passwd", "ftp://example.com/a.png", "gopher://a/"),
    *("//192.168.1.1/a.png", "\\\\192.168.1.1\\a", "/etc/passwd", "/etc/passwdd", "./a.png"),
    *("../secret", "~/.ssh/id_rsa", "C:\\secret.png", "a.png", "http:192.168.1.1", "http:/a/b"),
    *(" http://192.168.1.1/", "\thttp://192.168.1.1/", "\nfile:///etc/passwd", " data:,"),
    *("DATA:image/png;base64,AAAA", "data:", "data: image/png,a", "javascript:1", "blob:x"),
    *("jar:http://192.168.1.1/!/", "photos/cat", "\ud800", "unix:///run/docker.sock"),
    "data:video/mp4;base64," + base64.b64encode(b"#EXTM3U\nhttp://192.168.1.1/a.ts").decode(),
    "data:video/mp4,%23EXTM3U%0Ahttp://192.168.1.1/a.ts",
    "data:audio/wav;base64," + base64.b64encode(b"ffconcat version 1.0\nfile /etc/a").decode(),
    "data:video/mp4;base64," + base64.b64encode(b'<?xml version="1.0"?>\n<MPD a="">').decode(),
]


@pytest.mark.parametrize("field", FETCHED)
@pytest.mark.parametrize("value", NEVER)
def test_what_is_no_web_url_is_refused_in_every_field(field: str, value: str) -> None:
    assert verdict(FETCHED[field](value)) not in ("passes", "fetched")


@pytest.mark.parametrize("field", FETCHED)
def test_web_urls_are_fetched_by_the_server(field: str) -> None:
    for url in (HOME, "https://example.com/a.png", "HTTP://EXAMPLE.com/", "http://[::1]/"):
        (reference,) = scan(FETCHED[field](url))
        assert reference.url == url
    assert verdict(FETCHED[field](HOME)) == "fetched"
    assert verdict(FETCHED[field](HOME), Policy("data")) not in ("passes", "fetched")
    assert verdict(FETCHED[field](HOME), Policy("off")) not in ("passes", "fetched")


@pytest.mark.parametrize("field", FETCHED)
def test_data_urls_pass_unless_media_are_off(field: str) -> None:
    for url in (DATA, "data:,", "data:image/png;base64,AAAA", "data:text/plain;charset=utf-8,a"):
        assert verdict(FETCHED[field](url)) == "passes"
        assert verdict(FETCHED[field](url), Policy("data")) == "passes"
        assert verdict(FETCHED[field](url), Policy("off")) not in ("passes", "fetched")


@pytest.mark.parametrize("field", BASE64_ONLY)
def test_fields_for_data_take_no_urls(field: str) -> None:
    for value in (*NEVER, HOME, "https://example.com/a.wav"):
        assert verdict(BASE64_ONLY[field](value)) not in ("passes", "fetched"), value
    for value in (DATA, PNG64, "aGk=", base64.b64encode(bytes(9000)).decode()):
        assert verdict(BASE64_ONLY[field](value)) == "passes", value


OLLAMA = Policy(ollama=True)


@pytest.mark.parametrize(
    "body",
    [
        lambda value: {"model": "m", "messages": [{"role": "user", "images": [value]}]},
        lambda value: {"model": "m", "prompt": "a", "images": [PNG64, value]},
        lambda value: {"model": "m", "prompt": "a", "IMAGES": value},
        lambda value: {"model": "m", "prompt": "a", "image\u017f": [value]},
    ],
)
def test_ollamas_images_are_base64(body: Any) -> None:
    for value in (*NEVER, HOME):
        assert verdict(body(value), OLLAMA) not in ("passes", "fetched"), value
    for value in (PNG64, "aGk=", base64.b64encode(b"\xff\xd8\xff\xe0" + bytes(30)).decode()):
        assert verdict(body(value), OLLAMA) == "passes"
        assert verdict(body(value), Policy("off", ollama=True)) not in ("passes", "fetched")


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "mcp", "server_label": "a", "server_url": "https://mcp.example/"}]},
        {"mcp_servers": [{"type": "url", "url": "https://mcp.example/sse", "name": "a"}]},
        {"lora_request": {"lora_name": "a", "lora_path": "/models/a"}},
        {"lora_path": "adapter"},
        {"adapters": "/home/me/adapter"},
        {"draft_model": "someone/model"},
        {"kv_transfer_params": {"remote_host": "192.168.1.1", "remote_port": 80}},
        {"bootstrap_host": "192.168.1.1"},
        {"bootstrap_host": ["192.168.1.1"]},
        {"logits_processors": ["os.system"]},
        {"mm_processor_kwargs": {"a": [{"chat_template": "/etc/passwd"}]}},
        {"media_io_kwargs": {"video": {"path": "http://192.168.1.1/"}}},
        {"chat_template": "/etc/passwd"},
        {"chat_template": "http://192.168.1.1/template"},
        {"response_format": {"json_schema": {"schema": {"$ref": "http://192.168.1.1/"}}}},
        {"tools": [{"function": {"parameters": {"properties": {"a": {"$ref": "a.json"}}}}}]},
        {"tools": [{"input_schema": {"$dynamicRef": "file:///etc/passwd"}}]},
        {"guided_json": '{"$ref": "http://192.168.1.1/"}'},
        {"guided_json": '{"\\u0024ref": "http://192.168.1.1/"}'},
        {"structured_outputs": {"json": '{"$ref": "http://192.168.1.1/"}'}},
    ],
)
def test_options_that_open_something_are_refused_by_name(fields: dict[str, Any]) -> None:
    assert verdict({"model": "m", **fields}).startswith(next(iter(fields)))


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": "see http://192.168.1.1/ and file:///etc"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": HOME}]}]},
        {"prompt": '"image_url": "http://192.168.1.1/"'},
        {"prompt": 'a\\", "image_url": "http://192.168.1.1/'},
        {"messages": [{"tool_calls": [{"function": {"arguments": {"url": HOME, "image": "/a"}}}]}]},
        {"messages": [{"tool_calls": [{"function": {"arguments": json.dumps({"url": HOME})}}]}]},
        {"messages": [{"content": [{"type": "tool_use", "input": {"url": HOME, "path": "/a"}}]}]},
        {"messages": [{"content": [{"type": "tool_result", "content": HOME}]}]},
        {"messages": [{"content": [{"type": "search_result", "source": HOME, "content": []}]}]},
        {
            "messages": [
                {"content": [{"type": "image", "source": {"type": "file", "file_id": "a"}}]}
            ]
        },
        {
            "messages": [
                {"content": [{"type": "document", "source": {"type": "text", "data": "/"}}]}
            ]
        },
        {"messages": [{"content": [{"type": "text", "citations": [{"url": HOME}]}]}]},
        {"messages": [{"annotations": [{"type": "url_citation", "url_citation": {"url": HOME}}]}]},
        {"input": [{"type": "web_search_call", "action": {"type": "open_page", "url": HOME}}]},
        {"content": [{"type": "web_search_result", "url": HOME, "title": "a"}]},
        {"tools": [{"function": {"parameters": {"properties": {"url": {"type": "string"}}}}}]},
        {"tools": [{"input_schema": {"$schema": "http://json-schema.org/draft-07/schema#"}}]},
        {"tools": [{"input_schema": {"properties": {"a": {"$ref": "#/$defs/a"}}}}]},
        {"tools": [{"input_schema": {"properties": {"url": {"default": HOME, "format": "uri"}}}}]},
        {"tools": [{"type": "web_search", "filters": {"allowed_domains": ["example.com"]}}]},
        {"format": {"type": "object", "properties": {"image": {"type": "string"}}}},
        {"metadata": {"url": HOME, "file": "/a"}},
        {"audio": {"voice": "alloy", "format": "wav"}, "modalities": ["text", "audio"]},
        {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]},
        {"mm_processor_kwargs": {"num_crops": 4, "size": {"a": 1}}, "mcp_servers": []},
        {"lora_request": None, "chat_template": "{% for m in messages %}{{ m }}{% endfor %}"},
        {"chat_template_kwargs": {"enable_thinking": False, "url": HOME}},
        {"messages": [{"content": [{"type": "file", "file": {"filename": "/a.pdf"}}]}]},
        {"image_url": None, "image": 5, "file": True},
        {"stop": ["url", "image_url"], "input": ["http://192.168.1.1/", "/etc/passwd"]},
        {"operation": {"type": "update_file", "path": "/a/b.py", "diff": "+"}},
    ],
)
def test_text_that_only_mentions_urls_passes(fields: dict[str, Any]) -> None:
    assert verdict({"model": "m", **fields}) == "passes"


# ── spelling and structure ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "body",
    [
        rb'{"messages":[{"content":[{"\u0069mage_url":{"url":"http://192.168.1.1/"}}]}]}',
        rb'{"messages":[{"content":[{"image_url":{"\u0075rl":"http://192.168.1.1/"}}]}]}',
        rb'{"messages":[{"content":[{"image\u005Furl":"http\u003a\/\/192.168.1.1\/"}]}]}',
        rb'{"messages":[{"content":[{"image_url" : { "url"	:'
        + b'\n"http:\\/\\/192.168.1.1/"}}]}]}',
        rb'{"messages":[{"content":[{"\u0069\u006d\u0061\u0067\u0065\u005f\u0075\u0072\u006c":'
        rb'"http://192.168.1.1/"}]}]}',
        b'{"image_url":"data:,","image_url":"http://192.168.1.1/"}',
        b'{"image_url":"http://192.168.1.1/","image_url":"data:,"}',
        b'{"image_url":{"url":"http://192.168.1.1/"},"image_url":null}',
        b'{"content":[{"type":"url_citation","type":"image","url":"http://192.168.1.1/"}]}',
    ],
)
def test_other_spellings_and_second_fields_are_seen(body: bytes) -> None:
    assert verdict(body) == "fetched"


def test_of_several_fields_each_is_fetched() -> None:
    body = b'{"image_url":"http://a.example/","image_url":"http://b.example/"}'
    assert [one.url for one in scan(body)] == ["http://a.example/", "http://b.example/"]
    body = b'{"source":{"url":"http://a.example/","url":"http://b.example/"}}'
    assert verdict(body) == "source.url"


def test_references_say_where_they_are() -> None:
    body = json.dumps(chat("a", {"type": "image_url", "image_url": {"url": HOME}})).encode()
    (found,) = scan(body)
    assert found.param == "messages[0].content[1].image_url.url"
    assert body[slice(*found.value)] == json.dumps(HOME).encode()
    assert found.kind is Kind.IMAGE
    body = json.dumps(FETCHED["messages document"](HOME)).encode()
    (found,) = scan(body)
    assert json.loads(body[slice(*found.value)]) == {"url": HOME, "type": "url"}
    assert found.source
    body = json.dumps(FETCHED["responses file"](HOME)).encode()
    (found,) = scan(body)
    assert found.name is not None
    assert body[slice(*found.name)] == b'"file_url"'


def test_a_refusal_names_the_url_short_and_printable() -> None:
    url = "file:///\u202e\x1b[31m" + "x" * 5000
    with pytest.raises(ApiError) as caught:
        scan(FETCHED["chat image"](url))
    assert "file:///\\u202e\\x1b[31mxxx" in caught.value.message
    assert caught.value.message.isascii()
    assert len(caught.value.message) < 300
    assert caught.value.param == "messages[0].content[0].image_url.url"


def test_a_request_has_a_bounded_number_of_urls() -> None:
    assert len(scan({"image_url": [HOME] * 8})) == 8
    assert verdict({"image_url": [HOME] * 9}) == "image_url[8]"
    assert verdict({"content": [{"type": "text", "url": HOME}] * 99}) == "content[0].url"


def test_depth_is_bounded() -> None:
    assert verdict(b'{"image":' + b"[" * 5000) == "body"


# ── pieces ────────────────────────────────────────────────────────────────────────────────────

_values = st.recursive(
    st.none() | st.integers() | st.sampled_from([HOME, DATA, "a", "\\", '"', "é\U0001f600", "x\n"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["image_url", "url", "type", "source", "text", "input", "a\\", '"', "é"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(_values, st.integers(1, 40), st.booleans())
def test_pieces_make_no_difference(body: object, piece: int, ascii_only: bool) -> None:
    raw = json.dumps({"a": body}, ensure_ascii=ascii_only).encode()
    policy = Policy(max_urls=100)

    def outcome(size: int | None) -> object:
        try:
            return scan(raw, policy, piece=size)
        except ApiError as error:
            return error.message

    assert outcome(piece) == outcome(None)
    for reference in outcome(None) if isinstance(outcome(None), list) else ():
        assert json.loads(raw[slice(*reference.value)]) in (reference.url, *_sources(body))


def _sources(body: object) -> list[object]:
    if isinstance(body, list):
        return [found for one in body for found in _sources(one)]
    if isinstance(body, dict):
        return [body, *(found for one in body.values() for found in _sources(one))]
    return []


@pytest.mark.parametrize("ending", ["", "\\", '\\"', "é", "\U0001f600", "\\u00e9"])
@pytest.mark.parametrize("piece", [1000, 4096, MAX_KEPT + 3])
def test_long_strings_are_kept_in_part_only(piece: int, ending: str) -> None:
    text = ("A" * 3 * MAX_KEPT) + ending
    raw = json.dumps({"text": text, "image_url": [DATA + text, HOME], "x": text}).encode()
    scanner = MediaScanner(Policy())
    for at in range(0, len(raw), piece):
        scanner.feed(raw[at : at + piece], last=at + piece >= len(raw))
    (found,) = scanner.references
    assert raw[slice(*found.value)] == json.dumps(HOME).encode()


def test_work_grows_with_the_body_and_no_faster() -> None:
    def calls(body: bytes) -> int:
        count = 0

        def on_event(frame: object, event: str, arg: object) -> None:
            nonlocal count
            count += 1

        scanner = MediaScanner(Policy())
        sys.setprofile(on_event)
        try:
            for at in range(0, len(body), 4096):
                scanner.feed(body[at : at + 4096])
        except ApiError:
            pass
        finally:
            sys.setprofile(None)
        return count

    for shape in (b'{"a":[],', b'"url":"a",', b'{"url":{', b'\\"', b'"image_url":"data:,",', b"["):
        small = calls(b'{"x":[' + shape * 2000)
        assert calls(b'{"x":[' + shape * 8000) <= 5 * small + 2000, shape


def test_plain_questions_are_known_without_a_search() -> None:
    """The guard of common requests costs one call: the decoder's."""
    plain = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    calls = []
    sys.setprofile(lambda frame, event, arg: calls.append(event))
    try:
        found = may_have_media(json.dumps(plain).encode())
    finally:
        sys.setprofile(None)
    assert not found
    # json.dumps and encode are in it, too; a search would add six more.
    assert calls.count("c_call") <= 8


def test_no_plain_field_is_a_field_of_media() -> None:
    assert not {"model", "prompt", "system", "options", "stop"} & (MEDIA.keys() | OTHERS.keys())


def has_names(body: bytes) -> bool:
    """The guard's rules for bodies that are more than plain questions, one name after the other."""

    def has(names: Iterable[str], value: bytes) -> bool:
        return any(re.search(b'"%b"%b' % (name.encode(), value), body) for name in names)

    def named(*rules: Rule) -> list[str]:
        return [name for name, rule in OTHERS.items() if rule in rules]

    text = rb'\s*:\s*["\[]'
    anything = [*MEDIA, *named(Rule.REFUSED, Rule.OPTIONS, Rule.TEMPLATE)]
    if has(anything, rb"\s*:(?!\s*(?:null|true|false|-?\d))") or has(named(Rule.LINK), text):
        return True
    is_medium = re.search(rb'"type"\s*:\s*"(?:%b)"' % "|".join(MEDIA_TYPES).encode(), body)
    if is_medium and has(named(Rule.WEAK_LINK, Rule.SOURCE), text):
        return True
    return bool(re.search(rb'_ur[il]s?"\s*:', body))


OUR_NAMES = st.sampled_from(
    [*MEDIA, *OTHERS, "type", "name", "x", "ur", "image_", "description", "foo_url", "foo_uris"]
)
OUR_VALUES = st.recursive(
    st.sampled_from([None, True, 7, -1.5, "text", "url", "image", "http://a", *MEDIA_TYPES]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(OUR_NAMES, inner, min_size=1, max_size=3)
    ),
    max_leaves=8,
)


@given(name=OUR_NAMES, value=OUR_VALUES, spaced=st.booleans())
def test_the_guard_finds_what_looking_for_each_name_finds(
    name: str, value: Any, spaced: bool
) -> None:
    separators = (", ", " : ") if spaced else (",", ":")
    fields = {"tools": [{"function": {name: value}}], "model": "m"}
    body = json.dumps(fields, separators=separators).encode()
    assert may_have_media(body) == has_names(body)


@pytest.mark.parametrize("name", [*MEDIA, *OTHERS])
@pytest.mark.parametrize("value", ['"a"', '["a"]', "{}", "null", "1"])
def test_the_guard_knows_every_name_of_the_table(name: str, value: str) -> None:
    body = f'{{"tools":[{{"type":"image","{name}":{value}}}]}}'.encode()
    assert may_have_media(body) == has_names(body)
