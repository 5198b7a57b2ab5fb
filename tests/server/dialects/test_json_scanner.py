"""The scanner of JSON in pieces: what it finds is what a parser finds, whatever the pieces are."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_server.dialects.json_scanner import Fields, NotJson, Scanner, Value

TABLE = {"model": 4096, "stream": 64, "options": 64}
FIELDS = Fields(TABLE)


def scan(text: bytes, cuts: list[int] | None = None, fields: Fields = FIELDS) -> list[Value]:
    """Return what is found; ``cuts`` are where the pieces end."""
    found: list[Value] = []
    scanner = Scanner(fields, found.append)
    edges = [0, *sorted(cuts or []), len(text)]
    for start, stop in pairwise(edges):
        scanner.feed(text[start:stop])
    scanner.end()
    assert scanner.offset == len(text)
    return found


def expected(value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return []
    return [(key.casefold(), inner) for key, inner in value.items() if key.casefold() in TABLE]


NAMES = "model stream Model options messages content x ſtream é [] OPTIONS"
names = st.sampled_from([*NAMES.split(" "), "", 'a"b', "\\"])
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "text", 'a"b\\', "http://x/", "é\U0001f600\n\x7f", "{", "x" * 2000])
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=5)
)
chats = st.fixed_dictionaries(
    {"messages": st.lists(st.fixed_dictionaries({"content": values}), max_size=3)},
    optional={"model": leaves, "stream": values, "options": values, "x": values},
)
layouts = st.fixed_dictionaries(
    {
        "ensure_ascii": st.booleans(),
        "indent": st.sampled_from([None, 0, 2]),
        "separators": st.sampled_from([None, (",", ":"), (" ,\t", " : ")]),
    }
)


@settings(deadline=None)
@given(chats | st.dictionaries(names, values) | values, layouts, st.data())
def test_all_that_is_wanted_is_found_in_any_pieces(
    value: Any, layout: dict[str, Any], data: st.DataObject
) -> None:
    text = json.dumps(value, **layout).encode()
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    for pieces in (cuts, list(range(len(text))) if len(text) < 500 else []):
        found = scan(text, pieces)
        assert [(one.name, json.loads(text[one.start : one.stop])) for one in found] == expected(
            value
        )
        for one in found:
            assert one.text == text[one.start : one.stop][: TABLE[one.name]]


@settings(deadline=None)
@given(
    st.binary(max_size=40) | st.text('{}[]",:\\ u00e9model1tru.-e', max_size=40).map(str.encode),
    st.data(),
)
def test_it_accepts_what_msgspec_accepts(text: bytes, data: st.DataObject) -> None:
    check_against_msgspec(text, data.draw(st.lists(st.integers(0, len(text)), max_size=5)))


def check_against_msgspec(text: bytes, cuts: list[int]) -> None:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        with pytest.raises(NotJson):
            scan(text, cuts)
    else:
        scan(text, cuts)


@settings(deadline=None)
@given(values, st.binary(max_size=3), st.data())
def test_noise_in_good_text_is_seen_as_msgspec_sees_it(
    value: Any, noise: bytes, data: st.DataObject
) -> None:
    text = json.dumps({"messages": [value], "x": value}).encode()
    at = data.draw(st.integers(0, len(text)))
    check_against_msgspec(text[:at] + noise + text[at:], [at])


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        (b"", 0),
        (b"  ", 2),
        (b'{"a":1', 6),
        (b'{"a":1,,}', 7),
        (b'{"a":1,}', 7),
        (b"[1,]", 3),
        (b'{"a":[1,2}', 9),
        (b'{"a":{"b":1]', 11),
        (b'{"a" 1}', 5),
        (b'{"a":01}', 5),
        (b'{"a":nul}', 5),
        (b'{"a":"\n"}', 6),
        (b'{"a":"\\x"}', 6),
        (b'{"a":"\\u12', 10),
        (b'{"a":"%b\n"}' % (b"x" * 600), 606),
        (b'{"a":1} x', 8),
        (b"\xef\xbb\xbf{}", 0),
        (b"[" * 1000, 900),
    ],
)
def test_what_is_no_json_is_refused_with_its_place(text: bytes, offset: int) -> None:
    for cuts in ([], list(range(len(text)))):
        with pytest.raises(NotJson, match=rf"at byte {offset}$") as caught:
            scan(text, cuts)
        assert caught.value.offset == offset


@pytest.mark.parametrize("key", ["Model", "mod\\u0065l", "\\u004dODEL", "model"])
def test_each_spelling_of_a_key_is_seen(key: str) -> None:
    text = b'{"model":"a","x":{"%b":"c"},"%b":"b"}' % (key.encode(), key.encode())
    first, second = scan(text)
    assert (first.text, second.text) == (b'"a"', b'"b"')
    assert second.exact == (json.loads(f'"{key}"') == "model")


def test_a_value_under_way_can_be_held_back() -> None:
    found: list[Value] = []
    scanner = Scanner(FIELDS, found.append)
    scanner.feed(b'{"x":{"model":1},"options":[{"model":2}')
    assert scanner.pending == ("options", 27)
    assert scanner.closed_at is None
    scanner.feed(b"]} ")
    assert [one.text for one in found] == [b'[{"model":2}]']
    assert scanner.closed_at == scanner.offset - 2
    assert scanner.pending is None


def test_of_a_large_value_only_the_beginning_is_kept() -> None:
    (found,) = scan(b'{"stream":"%b"}' % (b"x" * 10**6))
    assert (len(found.text), found.whole, found.stop) == (64, False, 10**6 + 12)
