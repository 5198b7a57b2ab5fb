"""What is read of a body, and that nothing else in it changes."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_server.dialects.body import EarlyBody, ParsedBody, parse_body
from fabric_server.dialects.errors import ApiError
from fabric_server.dialects.json_keys import Scanner

MiB = 2**20


def patched(body: bytes, ask: ParsedBody) -> bytes:
    """What goes out."""
    if ask.patch is None:
        return body
    start, stop, text = ask.patch
    return body[:start] + text + body[stop:]


def refused(body: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_body(body)
    assert caught.value.status == 400
    return caught.value


# ── any body ──────────────────────────────────────────────────────────────────────────────────

names = st.text(min_size=1, max_size=20).filter(str.isprintable)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
)
KEYS = ["model", "stream", "stream_options", "include_usage", "messages", 'a"b', "\\", "x"]
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
options = st.none() | st.fixed_dictionaries(
    {}, optional={"include_usage": st.none() | st.booleans(), "other": values}
)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[dict[str, Any], bytes]:
    """A good body as Python and as JSON: any order, any spacing, escaped or not."""
    fields: dict[str, Any] = {"model": draw(names)}
    if draw(st.booleans()):
        fields["stream"] = draw(st.none() | st.booleans())
    if draw(st.booleans()):
        fields["stream_options"] = draw(options)
    extra = draw(st.dictionaries(st.text(max_size=8), values, max_size=4))
    for key, value in extra.items():
        if key.casefold() not in ("model", "stream", "stream_options"):
            fields[key] = value
    order = draw(st.permutations(list(fields)))
    fields = {key: fields[key] for key in order}
    text = json.dumps(
        fields,
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, 0, 3])),
        separators=draw(st.sampled_from([None, (",", ":"), (" , ", " :\t")])),
    )
    return fields, (draw(st.sampled_from(["", " ", "\r\n\t"])) + text + "\n").encode()


@settings(deadline=None)
@given(bodies())
def test_what_goes_out_is_what_came_in_and_asks_for_usage(
    body: tuple[dict[str, Any], bytes],
) -> None:
    fields, text = body
    ask = parse_body(text)
    assert (ask.model, ask.stream) == (fields["model"], bool(fields.get("stream")))
    sent = json.loads(patched(text, ask))
    if not ask.stream:
        assert ask.patch is None
        return
    given_options = fields.get("stream_options") or {}
    assert ask.usage_requested == (given_options.get("include_usage") is True)
    assert sent.pop("stream_options") == {**given_options, "include_usage": True}
    assert sent == {key: value for key, value in fields.items() if key != "stream_options"}


@settings(deadline=None)
@given(bodies(), st.data())
def test_a_body_in_pieces_is_read_as_the_whole_one(
    body: tuple[dict[str, Any], bytes], data: st.DataObject
) -> None:
    fields, text = body
    whole, early = parse_body(text), EarlyBody()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
        ask = early.feed(text[start:stop])
        if ask is not None:
            break
    assert early.text == text[:stop]
    if ask is None:
        assert "stream" not in fields or not all(key.isascii() for key in fields)
        return
    assert (ask.model, ask.stream) == (whole.model, whole.stream)
    sent = json.loads(patched(text, ask))
    assert sent == {**json.loads(patched(text, whole)), **_late(fields, ask)}


def _late(fields: dict[str, Any], ask: ParsedBody) -> dict[str, Any]:
    """The user's own options, when they came behind ours: then they win."""
    if not ask.stream or ask.patch is None or "stream_options" not in fields:
        return {}
    return {"stream_options": fields["stream_options"]} if ask.patch[0] == ask.patch[1] else {}


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), values, min_size=1, max_size=6),
    st.data(),
)
def test_the_scanner_finds_what_json_finds_in_any_pieces(
    fields: dict[str, Any], data: st.DataObject
) -> None:
    text = json.dumps(fields, indent=data.draw(st.sampled_from([None, 1]))).encode()
    wanted = frozenset(json.dumps(key)[1:-1].encode() for key in fields)
    scanner = Scanner(wanted)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
        scanner.feed(text[start:stop])
    assert scanner.text == text
    found = {
        json.loads(b'"%b"' % key): json.loads(text[start:stop])
        for key, (start, stop) in scanner.spans.items()
    }
    assert found == fields


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text('{}[]",:\\model stream12tru', max_size=60).map(str.encode))
def test_no_bytes_at_all_raise_anything_but_a_refusal(body: bytes) -> None:
    early = EarlyBody()
    for read in (parse_body, early.feed):
        try:
            read(body)
        except ApiError as refusal:
            assert refusal.status == 400
            assert refusal.body()


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 200))
def test_a_good_body_with_noise_in_it_raises_nothing_but_a_refusal(noise: bytes, at: int) -> None:
    good = b'{"model":"tiny","stream":true,"stream_options":{"a":[1]},"messages":["x"]}'
    body = good[:at] + noise + good[at:]
    try:
        ask = parse_body(body)
    except ApiError:
        return
    if ask.stream:
        try:
            before = json.loads(body)
        except ValueError:
            return  # bytes that are no UTF-8, within a text: they pass
        assert (
            json.loads(patched(body, ask)).items()
            >= {key: value for key, value in before.items() if key != "stream_options"}.items()
        )


# ── what is said about a body that is wrong ───────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"", "invalid_json", "ends too early, at byte 0"),
        (b'{"model":"a"', "invalid_json", "ends too early, at byte 12"),
        (b'{"model":"a",,}', "invalid_json", "byte 13"),
        (b'{"model":"a"} x', "invalid_json", "trailing characters"),
        (b'\xef\xbb\xbf{"model":"a"}', "invalid_json", "byte 0"),
        (b'{"model":"a","x":NaN}', "invalid_json", "byte 17"),
        (b'{"model":"a","x":01}', "invalid_json", "byte 18"),
        (b'{"model":"a","x":"\n"}', "invalid_json", "byte 18"),
        (b'{"model":"\xff"}', "invalid_json", "utf-8"),
        (b"[1]", "invalid_value", "must be a JSON object"),
        (b'"model"', "invalid_value", "must be a JSON object"),
        (b"{}", "invalid_value", "'model' is missing"),
        (b'{"model":null}', "invalid_value", "'model' has the wrong type"),
        (b'{"model":["a"]}', "invalid_value", "'model' has the wrong type"),
        (b'{"model":1e999}', "invalid_value", "'model' has the wrong type"),
        (b'{"model":""}', "invalid_value", "1 to 256 printable characters"),
        (b'{"model":"%b"}' % (b"x" * 257), "invalid_value", "1 to 256 printable characters"),
        (b'{"model":"a\\nb"}', "invalid_value", "1 to 256 printable characters"),
        (b'{"model":"a","stream":"yes"}', "invalid_value", "'stream' has the wrong type"),
        (b'{"model":"a","stream":1}', "invalid_value", "'stream' has the wrong type"),
        (
            b'{"model":"a","stream":true,"stream_options":[]}',
            "invalid_value",
            "'stream_options' must be an object",
        ),
        (
            b'{"model":"a","stream":true,"stream_options":{"include_usage":1}}',
            "invalid_value",
            "'stream_options' must be an object",
        ),
        (b'{"Model":"a"}', "invalid_value", "'model' is missing"),
    ],
)
def test_a_refusal_names_the_field_or_the_position(body: bytes, code: str, words: str) -> None:
    refusal = refused(body)
    assert refusal.code == code
    assert words in refusal.message
    if code == "invalid_value" and "object" not in words:
        assert refusal.param in ("model", "stream")


@pytest.mark.parametrize(
    "other", ["Model", "MODEL", "mOdEl", "\\u004dodel", "Mod\\u0065l", "\\u004d\\u004f\\u0044EL"]
)
@pytest.mark.parametrize("filling", ["", "x" * 1000, "\\ud83d"])
def test_a_second_model_in_other_letters_is_refused(other: str, filling: str) -> None:
    """Ollama would take it."""
    body = '{"model":"a","x":"%s","%s":"b"}'
    assert "'model' must be given once" in refused((body % (filling, other)).encode()).message
    # As a key further inside, or as a text, it means nothing.
    for harmless in ('{"model":"a","x":{"%s":1}}', '{"model":"a","x":"%s","y":["Model"]}'):
        assert parse_body((harmless % other).encode()).model == "a"


def test_of_one_key_given_twice_the_last_counts_as_it_does_for_engines() -> None:
    assert parse_body(b'{"model":"a","model":"b"}').model == "b"
    assert parse_body(b'{"model":"a","mod\\u0065l":"b"}').model == "b"


def test_escaped_keys_are_keys() -> None:
    body = b'{"mod\\u0065l":"a","str\\u0065am":true,"stream\\u005foptions":{"include_usage":true}}'
    ask = parse_body(body)
    assert (ask.model, ask.stream, ask.usage_requested, ask.patch) == ("a", True, True, None)


def test_half_an_emoji_in_a_text_passes() -> None:
    body = b'{"model":"a","stream":true,"x":"\\ud83d","stream_options":{"y":"\\ude00"}}'
    ask = parse_body(body)
    assert json.loads(patched(body, ask))["x"] == "\ud83d"
    assert parse_body(b'{"model":"\xf0\x9f\x98\x80"}').model == "\U0001f600"
    assert parse_body(b'{"model":"\\ud83d\\ude00"}').model == "\U0001f600"


@pytest.mark.parametrize(
    "given_options",
    [
        '{"include_usage":true,"Include_Usage":false}',
        '{"INCLUDE_USAGE":false}',
        '{"include_usage":false}',
        "{}",
        "null",
        '{"other":[1, 2.50, "\\u0041"]}',
    ],
)
def test_no_spelling_of_options_gets_around_the_usage(given_options: str) -> None:
    body = b'{"model":"a","stream":true,"stream_options": %b }' % given_options.encode()
    sent = json.loads(patched(body, parse_body(body)))["stream_options"]
    assert sent["include_usage"] is True
    assert [key for key in sent if key.casefold() == "include_usage"] == ["include_usage"]
    others = json.loads(given_options) or {}
    assert sent.get("other") == others.get("other")


def test_options_further_inside_are_not_mistaken_for_the_user_s() -> None:
    tool = b'{"stream_options":{"include_usage":false}}'
    body = b'{"x":%b,"model":"a","stream":true,"stream_options":{"include_usage":false},"y":%b}'
    body = body % (tool, tool)
    sent = patched(body, parse_body(body))
    assert json.loads(sent)["stream_options"] == {"include_usage": True}
    assert sent.count(tool) == 2


def test_model_names_that_people_use_are_read() -> None:
    for name in ("llama3", "llama3:latest", "org/model-7B.Q4_K_M:tag", "模型", "a b", "x" * 256):
        assert parse_body(json.dumps({"model": name}).encode()).model == name


# ── what is large, and what is meant to be slow ───────────────────────────────────────────────


def test_a_large_body_flows_when_model_and_stream_come_early() -> None:
    early = EarlyBody()
    assert early.feed(b'{ "model" : "tiny" , "str') is None
    assert early.feed(b'eam" : true') is None, "true may go on"
    ask = early.feed(b' , "messages": "xxxxx')
    assert ask is not None
    assert (ask.model, ask.stream, ask.usage_requested) == ("tiny", True, False)
    assert patched(early.text, ask).startswith(b'{"stream_options":{"include_usage":true}, "model"')


def test_what_is_wrong_early_is_refused_early() -> None:
    with pytest.raises(ApiError, match="'stream' has the wrong type"):
        EarlyBody().feed(b'{"model":"tiny","stream":"yes","messages":"xxxxx')
    assert EarlyBody().feed(b'{"model":tiny,"stream":true,"messages":"xxxxx') is None


HOSTILE: dict[str, tuple[bytes, bytes, bytes]] = {
    # What it begins with, what is repeated until the body has 32 MiB, and what it ends with.
    "commas": (b"", b",", b""),
    "commas in an object": (b'{"model":"a","x":', b",", b"}"),
    "brackets": (b'{"model":"a","x":', b"[", b""),
    "objects": (b'{"model":"a","x":', b'{"a":', b""),
    "backslashes": (b'{"x":"', b"\\\\", b'"}'),
    "quotes": (b'{"x":["', b'","', b'"]}'),
    "a long text": (b'{"x":"', b"x", b'","model":"a"}'),
    "many fields": (b'{"model":"a",', b'"x":1,', b'"y":1}'),
    "many other models": (b'{"model":"a",', b'"y":{"Model":1},', b'"y":1}'),
    "many options": (
        b'{"model":"a","stream":true,"stream_options":{"a":1},',
        b'"x":{"stream_options":{"a":1}},',
        b'"y":1}',
    ),
    "zeros": (b"", b"\0", b""),
    "high bytes": (b"", b"\xff", b""),
    "surrogates": (b'{"x":"', b"\\ud800", b'"}'),
    "a long number": (b'{"model":"a","x":', b"1", b"}"),
    "spaces": (b" ", b" ", b" "),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_no_body_blocks_the_server_for_long(what: str) -> None:
    """The bounds are ten times what was seen: some tenths of a second for 32 MiB in one piece."""
    first, part, last = HOSTILE[what]
    body, early = first + part * (32 * MiB // len(part)) + last, EarlyBody()
    start = time.process_time()
    with contextlib.suppress(ApiError):
        parse_body(body)
    assert time.process_time() - start < 3
    worst = 0.0
    for at in range(0, len(body), 256 * 1024):
        start = time.process_time()
        try:
            early.feed(body[at : at + 256 * 1024])
        except ApiError:
            break
        worst = max(worst, time.process_time() - start)
    assert worst < 0.5


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 64), st.sampled_from(['"', "\\", "[", "{"]))
def test_a_piece_may_end_anywhere_within_what_is_escaped(count: int, what: str) -> None:
    text = json.dumps({"x": what * count, "model": "a", "stream": False, "y": 1}).encode()
    early = EarlyBody()
    found = None
    for at in range(len(text)):
        found = found or early.feed(text[at : at + 1])
    assert found == ParsedBody("a", False, False, None)
