"""What is read of a body, and that nothing else in it changes."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_server.dialects.body import parse_body
from fabric_server.dialects.endpoints import CHAT
from fabric_server.dialects.errors import ApiError
from fabric_server.dialects.fields import ParsedBody
from fabric_server.dialects.json_scanner import SLICE
from fabric_server.dialects.large_body import LargeBody, PlaceFinder

MiB = 2**20


def patched(body: bytes, ask: ParsedBody) -> bytes:
    """What goes out."""
    if ask.options is not None:
        finder = PlaceFinder()
        finder.feed(body)
        start, stop = finder.places["stream_options"]
        return body[:start] + ask.options + body[stop:]
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
        assert ask.patch is ask.options is None
        return
    given_options = fields.get("stream_options") or {}
    assert ask.usage_requested == (given_options.get("include_usage") is True)
    assert sent.pop("stream_options") == {**given_options, "include_usage": True}
    assert sent == {key: value for key, value in fields.items() if key != "stream_options"}


def in_pieces(text: bytes, cuts: list[int], *, flow: bool) -> tuple[ParsedBody, bytes, int]:
    """Return what a body in pieces asks for, what goes out, and what of it before the end."""
    body, sent, early = LargeBody(CHAT), b"", 0
    for start, stop in pairwise([0, *sorted(cuts), len(text)]):
        body.feed(text[start:stop])
        if flow and body.can_flow and not body.flows:
            body.begin_flow(announced=True)
        if body.flows:
            sent += body.take()
    early = len(sent)
    parsed = body.end()
    body.check()
    flowed = body.flows
    sent += body.take()
    if flowed:
        assert len(sent) == len(text) + body.growth
    return parsed, sent, early


@settings(deadline=None)
@given(bodies(), st.data())
def test_a_body_in_pieces_is_read_as_the_whole_one(
    body: tuple[dict[str, Any], bytes], data: st.DataObject
) -> None:
    _, text = body
    whole = parse_body(text)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6))
    for flow in (False, True):
        parsed, sent, early = in_pieces(text, cuts, flow=flow)
        assert (parsed.model, parsed.stream) == (whole.model, whole.stream)
        assert parsed.usage_requested == whole.usage_requested
        assert json.loads(sent) == json.loads(patched(text, whole))
        if not parsed.stream and not early:
            assert sent == text
        if parsed.place is not None and not early:
            assert json.loads(sent[slice(*parsed.place)]) == parsed.model
        with pytest.raises(ValueError, match=r".*"):
            json.loads(sent[:early])  # no engine can begin with that


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text('{}[]",:\\model stream12tru', max_size=60).map(str.encode))
def test_no_bytes_at_all_raise_anything_but_a_refusal(body: bytes) -> None:
    early = LargeBody(CHAT)
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


DECIDING_SPELT = ["model", "Model", "stream", "STREAM", "\u017ftream", "Stream_Options"]
OTHERS_SPELT = ["modelx", "mode", "n", "N", "\u212a", "\u00e9", "\U0001f600", "\ud83d"]
spellings = st.sampled_from(DECIDING_SPELT + OTHERS_SPELT)


@settings(deadline=None)
@given(st.lists(spellings, max_size=5, unique=True), spellings, st.booleans())
def test_only_deciding_fields_in_other_letters_are_refused(
    keys: list[str], text: str, escaped: bool
) -> None:
    fields = {**dict.fromkeys(keys), "model": "a", "x": {text: text}}
    body = json.dumps(fields, ensure_ascii=escaped).encode(errors="surrogatepass")
    deciding = ("model", "stream", "stream_options")
    other = any(key.casefold() in deciding and key not in deciding for key in fields)
    if other:
        assert "must be given once, in lower case" in refused(body).message
    else:
        assert parse_body(body).model == "a"


@pytest.mark.parametrize("filling", [b"", b"\\u00e9", b"\xc5\xbf", b"\\ud83d"])
def test_names_of_other_fields_may_be_no_text(filling: bytes) -> None:
    assert parse_body(b'{"model":"a","\xff\\udead":1,"x":"%b"}' % filling).model == "a"
    body = b'{"model":"a","\xff":1,"x":"%b","Model":"b"}' % filling
    assert "'model' must be given once" in refused(body).message


def test_of_one_key_given_twice_the_last_counts_as_it_does_for_engines() -> None:
    assert parse_body(b'{"model":"a","model":"b"}').model == "b"
    assert parse_body(b'{"model":"a","mod\\u0065l":"b"}').model == "b"


def test_escaped_keys_are_keys() -> None:
    body = b'{"mod\\u0065l":"a","str\\u0065am":true,"stream\\u005foptions":{"include_usage":true}}'
    ask = parse_body(body)
    assert (ask.model, ask.stream, ask.usage_requested) == ("a", True, True)
    assert ask.patch is ask.options is None


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
    large = LargeBody(CHAT)
    large.feed(b'{ "model" : "tiny" , "str')
    assert large.parsed is None
    large.feed(b'eam" : true')
    assert large.parsed is None, "true may go on"
    large.feed(b' , "messages": "xxxxx')
    ask = large.parsed
    assert ask is not None
    assert (ask.model, ask.stream, ask.usage_requested) == ("tiny", True, False)
    large.begin_flow(announced=True)
    assert large.take() == b'{ "model" : "tiny" , "stream" : true , "messages": "xxxxx'
    large.feed(b'"}\n')
    assert large.take() == b'"\n', "the bracket waits"
    large.end()
    assert large.take() == b',"stream_options":{"include_usage":true}}'


def test_options_that_come_late_are_held_back_and_replaced() -> None:
    large = LargeBody(CHAT)
    large.feed(b'{"model":"tiny","stream":true,"messages":"x","stream_options"')
    large.begin_flow(announced=True)
    first = large.take()
    for piece in (b':{"inclu', b'de_usage":false', b',"a":"}"', b"}"):
        large.feed(piece)
        first += large.take()
    assert first.endswith(b'"stream_options":{"a":"}","include_usage":true}')
    large.feed(b',"x":1}')
    assert not large.end().usage_requested
    sent = first + large.take()
    assert len(sent) == large._text.size + large.growth
    assert json.loads(sent)["stream_options"] == {"a": "}", "include_usage": True}


@pytest.mark.parametrize(
    "second",
    [
        *('"model":"b"', '"Model":"b"', '"mod\\u0065l":"b"', '"MODEL":null', '"\\u006dOdel":"a"'),
        *('"stream":false', '"Stream":true', '"\u017ftream":true', '"\\u017ftream":1'),
        *('"stream_options":{},"stream_options":{}', '"Stream_Options":{}'),
    ],
)
def test_what_decides_comes_once_in_a_large_body(second: str) -> None:
    text = f'{{"model":"a","stream":true,"x":"{"x" * 500}",{second},"y":1}}'.encode()
    for cuts, flow in (([], False), ([100], True), (list(range(len(text))), True)):
        with pytest.raises(ApiError, match="must be given once, in lower case") as caught:
            in_pieces(text, cuts, flow=flow)
        assert caught.value.status == 400


@pytest.mark.parametrize("second", ['"Stream":false', '"\u017ftream":false', '"STREAM_OPTIONS":{}'])
def test_another_spelling_of_stream_is_refused(second: str) -> None:
    """Ollama would take it, and the answer would not be what is billed."""
    body = f'{{"model":"a","stream":true,"x":{{{second}}},{second}}}'
    assert "must be given once" in refused(body.encode()).message
    escaped = body.replace("\u017f", "\\u017F").encode()
    assert "must be given once" in refused(escaped).message


def test_what_is_wrong_early_is_refused_early() -> None:
    for text, words in [
        (b'{"model":"tiny","stream":"yes","messages":"xxxxx', "'stream' has the wrong type"),
        (b'{"model":tiny,"stream":true,"messages":"xxxxx', "invalid character, at byte 9"),
        (b'{"model":"%b","stream":true,' % (b"x" * 5000), "1 to 256 printable characters"),
        (b'{"stream":true,"stream_options":{"a":"' + b"x" * 70_000, "'stream_options' is too long"),
    ]:
        with pytest.raises(ApiError, match=words):
            LargeBody(CHAT).feed(text)


@pytest.mark.parametrize("body", ["[1]", '"model"', "1", '{"model":["a"]}', "{}", '{"model":""}'])
def test_a_large_body_is_refused_as_a_small_one_is(body: str) -> None:
    with pytest.raises(ApiError) as caught:
        in_pieces(body.encode(), [], flow=False)
    assert caught.value.body() == refused(body.encode()).body()


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
    """The bound is many times what was seen for one slice."""
    first, part, last = HOSTILE[what]
    body, large = first + part * (MiB // len(part)) + last, LargeBody(CHAT)
    worst = 0.0
    for at in range(0, len(body), SLICE):
        start = time.process_time()
        try:
            large.feed(body[at : at + SLICE])
        except ApiError:
            break
        worst = max(worst, time.process_time() - start)
    assert worst < 0.5


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 64), st.sampled_from(['"', "\\", "[", "{"]))
def test_a_piece_may_end_anywhere_within_what_is_escaped(count: int, what: str) -> None:
    text = json.dumps({"x": what * count, "model": "a", "stream": False, "y": 1}).encode()
    early = LargeBody(CHAT)
    for at in range(len(text)):
        early.feed(text[at : at + 1])
    start = text.index(b'"a"')
    assert early.parsed == ParsedBody("a", False, False, None, place=(start, start + 3))
    early.end()
    assert early.take() == text
