"""What is told of a request from a few bytes of its body is what a plain search finds."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from fabric_client.proxy.preparation import ASKED_OTHERWISE, asks_stream, find_usage
from fabric_client.translation import TranslationError
from fabric_client.translation.media_guard import refuse_links

STREAM = re.compile(rb'"stream"\s*:\s*true')
USAGE = re.compile(rb'"stream_options"\s*:\s*\{\s*"include_usage"\s*:\s*true\s*\}\s*')

pieces = st.sampled_from(
    [
        *(b'"stream"', b'"stream_options"', b'"include_usage"', b'"', b":", b" ", b"\n", b","),
        *(b"true", b"false", b"{", b"}", b'\\"', b'"stream":true', b'"stream":false'),
        b'"stream_options":{"include_usage":true}',
    ]
)
bodies = st.lists(pieces | st.binary(max_size=3), max_size=16).map(b"".join)


@given(bodies)
@example(b'{"stream" :\ttrue,"metadata":{"stream":false}}')
@example(b'{"stream":false,"metadata":{"stream":"stream"}}')
def test_a_stream_is_asked_for_wherever_the_key_stands(body: bytes) -> None:
    assert asks_stream(body) == (STREAM.search(body) is not None)


@given(bodies)
@example(b'{"stream_options":{"include_usage":true},"stream":true}')
@example(b'{"stream_options":{},"x":{"stream_options" : {"include_usage":true}}}')
def test_what_asks_for_usage_is_found_with_one_of_its_commas(body: bytes) -> None:
    usage, found = find_usage(body), USAGE.search(body)
    if found is None:
        assert usage == (ASKED_OTHERWISE if b'"stream_options"' in body else None)
        return
    assert usage is not None
    start, stop = usage
    taken = body[start:stop]
    assert found[0] in taken
    assert taken.strip(b", \n\r\t\v\f") == found[0].strip(b" \n\r\t\v\f")
    assert taken.count(b",") <= 1


names = st.sampled_from(
    ["image_url", "Image_URL", "file_url", "source", "url", "text", "arguments", "_url", "a"]
)
links = st.sampled_from(["data:,", "http://a", "/a", "", "source", "_url"])
sources = st.fixed_dictionaries({"source": st.fixed_dictionaries({"url": links})})
documents = st.recursive(
    links | st.none() | sources,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=12,
)


def is_link(value: Any) -> bool:
    for one in value if isinstance(value, list) else [value]:
        text = one.get("url") if isinstance(one, dict) else one
        if isinstance(text, str) and text and not text.startswith("data:"):
            return True
    return False


def has_links(value: Any) -> bool:
    """Return whether a medium in a document is anything but data."""
    if isinstance(value, list):
        return any(has_links(one) for one in value)
    if not isinstance(value, dict):
        return False
    for name, inner in value.items():
        if name.lower() in ("image_url", "file_url") and is_link(inner):
            return True
        if name == "source" and isinstance(inner, dict) and is_link(inner.get("url")):
            return True
        if name != "arguments" and has_links(inner):
            return True
    return False


@given(documents, st.sampled_from([1, 9, 1000]))
@example({"image_url": "/a"}, 1000)
@example({"Image_URL": ["/a"]}, 1000)
@example({"source": {"url": "/a"}}, 1000)
@example({"image_url": "/a"}, 1)
def test_links_are_refused_wherever_they_are_and_however_they_are_written(
    document: Any, escaped: int
) -> None:
    text = json.dumps({"m": document}).replace("null", "0")
    written = re.sub(  # every so many letters are written as escapes
        r"[a-z_]",
        lambda found: f"\\u{ord(found[0]):04x}" if found.start() % escaped == 0 else found[0],
        text,
    )
    refused = False
    try:
        refuse_links(written.encode())
    except TranslationError:
        refused = True
    assert refused == has_links(document)
