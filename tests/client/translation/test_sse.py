"""Events of an engine's stream, in any cut and any of the ways that the standard allows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_client.translation.sse import MAX_EVENT, EndlessEvent, Events

LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A stream, and the data of its events."""
    end = draw(LINE_ENDS)
    text = st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), min_size=1)
    stream, told = [], []
    for lines in draw(st.lists(st.lists(text, min_size=1, max_size=3), max_size=4)):
        if draw(st.booleans()):
            stream += [b": ping", end, end] if draw(st.booleans()) else [b"event: x", end]
        for line in lines:
            stream += [b"data: ", line.encode(), end]
        stream.append(end)
        told.append("\n".join(lines).encode())
    return b"".join(stream), told


@given(streams(), st.data())
def test_any_cut_gives_the_same_events(streamed: tuple[bytes, list[bytes]], data: st.DataObject):
    stream, told = streamed
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    reader = Events()
    found = []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:stop])
    assert found + reader.end() == told


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_is_told_with_its_last_byte(end: bytes):
    reader = Events()
    assert reader.feed(b"data: a" + end) == []
    # After CR CR the event is over, whether or not an LF follows.
    assert reader.feed(end) == [b"a"]
    assert reader.feed(b"data: b" + end + end) == [b"b"]


def test_an_event_without_a_blank_line_is_told_at_the_end():
    reader = Events()
    assert reader.feed(b"data: [DONE]\n") == []
    assert reader.end() == [b"[DONE]"]
    assert reader.end() == []


def test_an_older_llama_servers_error_field_is_data():
    assert Events().feed(b'error: {"code":500}\n\n') == [b'{"code":500}']


def test_an_event_without_an_end_is_not_held_for_ever():
    reader = Events()
    reader.feed(b"data: ".ljust(MAX_EVENT, b"x"))
    with pytest.raises(EndlessEvent):
        reader.feed(b"x")
