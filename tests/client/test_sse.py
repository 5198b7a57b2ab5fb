"""Events of a stream, in any cut and any of the ways that the standard allows."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_client.sse import (
    MAX_EVENT,
    EventFramer,
    EventTooLong,
    decode_events,
    encode_event,
    split_events,
)

LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
BOM = b"\xef\xbb\xbf"


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A stream, and the data of its events."""
    end = draw(LINE_ENDS)
    text = st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), min_size=1)
    stream, expected = [], []
    if draw(st.booleans()):
        stream.append(BOM)
    for lines in draw(st.lists(st.lists(text, min_size=1, max_size=3), max_size=4)):
        if draw(st.booleans()):
            stream += [b": ping", end, end] if draw(st.booleans()) else [b"event: x", end]
        for line in lines:
            stream += [b"data: ", line.encode(), end]
        stream.append(end)
        expected.append("\n".join(lines).encode())
    return b"".join(stream), expected


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    cuts.sort()
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


def read(framer: EventFramer, data: bytes) -> list[bytes]:
    return decode_events(framer.feed(data))


@given(streams(), st.data())
def test_any_cut_gives_the_same_events(streamed: tuple[bytes, list[bytes]], data: st.DataObject):
    stream, expected = streamed
    framer = EventFramer()
    found = []
    for piece in pieces(stream, data.draw(st.lists(st.integers(0, len(stream))))):
        found += read(framer, piece)
    assert found + decode_events(framer.end()) == expected


@given(streams(), st.data())
def test_framed_and_split_events_are_the_bytes_that_came(
    streamed: tuple[bytes, list[bytes]], data: st.DataObject
):
    stream, expected = streamed
    framer = EventFramer()
    cuts = data.draw(st.lists(st.integers(0, len(stream))))
    framed = [framer.feed(piece) for piece in pieces(stream, cuts)]
    assert b"".join(framed) + framer.end() == stream
    events = [event for whole in framed for event in split_events(whole)]
    assert b"".join(events) == b"".join(framed)
    found = [one for event in events for one in decode_events(event)]
    assert found == expected


@given(st.lists(st.sampled_from([b"data: a", b"\n", b"\n\n", b"\r"]), max_size=12).map(b"".join))
def test_events_are_split_behind_their_blank_lines(events: bytes) -> None:
    ends = [found.end() for found in re.finditer(rb"\n\n|\n\r\n|\r\r|\n\r(?=[^\n])", events)]
    places = sorted({0, *ends, len(events)})
    expected = [events[a:b] for a, b in pairwise(places)]
    assert list(split_events(events)) == expected


@given(st.lists(st.sampled_from([b"data: a", b"\n", b"\r"])), st.data())
def test_mixed_line_ends_in_any_cut_are_those_of_the_standard(
    parts: list[bytes], data: st.DataObject
):
    stream = b"".join(parts)
    lines = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n")
    expected = [one for block in lines for one in decode_events(block + b"\n\n")]
    framer = EventFramer()
    found = []
    for piece in pieces(stream, data.draw(st.lists(st.integers(0, len(stream))))):
        found += read(framer, piece)
    assert found + decode_events(framer.end()) == expected


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_is_told_with_its_last_byte(end: bytes):
    framer = EventFramer()
    assert read(framer, b"data: a" + end) == []
    # After CR CR the event is over, whether or not an LF follows.
    assert read(framer, end) == [b"a"]
    assert read(framer, b"data: b" + end + end) == [b"b"]


def test_an_event_without_a_blank_line_is_told_at_the_end():
    framer = EventFramer()
    assert read(framer, b"data: [DONE]\n") == []
    assert decode_events(framer.end()) == [b"[DONE]"]
    assert decode_events(framer.end()) == []


def test_an_older_llama_servers_error_field_is_data():
    assert read(EventFramer(), b'error: {"code":500}\n\n') == [b'{"code":500}']


def test_an_event_without_an_end_is_not_held_for_ever():
    framer = EventFramer()
    framer.feed(b"data: ".ljust(MAX_EVENT, b"x"))
    with pytest.raises(EventTooLong):
        framer.feed(b"x")


def test_what_is_too_long_can_be_passed_on_until_it_ends():
    framer = EventFramer(max_event=8)
    with pytest.raises(EventTooLong):
        framer.feed(b"data: 1234\r\n")
    assert framer.release() == b"data: 1234"
    assert framer.feed(b"\r\ndata: 5\r\n\r\nda") == b"\r\n\r\ndata: 5\r\n\r\n"
    assert framer.end() == b"da"


def test_an_encoded_event_is_decoded():
    assert decode_events(encode_event("ping", b"{}")) == [b"{}"]
