"""Figures in answers of one piece, beside the rules by which they are found, written plainly."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fabric_server.metering.openai import BodyMeter
from fabric_server.metering.sse import UNREADABLE
from fabric_server.metering.usage import Usage

EDGE = 8192
GUESSES = 4
ODD = [b"", *b'{ } " , \\ 0 \xff \x00 "usage":{ \\u0075'.split(b" ")]
"""Bytes that find their way into an answer."""


class Figures(msgspec.Struct):
    prompt_tokens: Any = None
    completion_tokens: Any = None
    input_tokens: Any = None
    output_tokens: Any = None
    cache_creation_input_tokens: Any = None
    cache_read_input_tokens: Any = None
    total_tokens: Any = None


def usage_in(text: bytes) -> Usage | None:
    """What Python's decoder reads of the last objects called usage, one after the other."""
    begins = [found.end() for found in re.finditer(rb'"usage"\s*:\s*(?=\{)', text)]
    for at in reversed(begins[-GUESSES:]):
        try:
            fields, _ = json.JSONDecoder().raw_decode(text[at:].decode(errors="replace"))
            told = msgspec.convert(fields, Figures)
        except UNREADABLE:
            continue
        counts = [getattr(told, name) for name in Figures.__struct_fields__]
        if any(one is not None and (type(one) is not int or one < 0) for one in counts):
            continue
        usage = Usage(told.prompt_tokens, told.completion_tokens)
        if usage == Usage():
            usage = Usage(told.input_tokens, told.output_tokens)
            if told.input_tokens is not None:
                cached = (told.cache_creation_input_tokens, told.cache_read_input_tokens)
                usage.prompt_tokens = told.input_tokens + sum(one or 0 for one in cached)
            elif told.output_tokens is None:
                usage.prompt_tokens = told.total_tokens
        if usage != Usage():
            return usage
    return None


def metered(text: bytes) -> Usage:
    meter = BodyMeter()
    meter.feed(text[:1])
    meter.feed(text[1:])
    meter.end()
    return meter.usage


numbers = st.one_of(
    st.integers(-1, 99),
    st.integers(),
    st.integers(2**62, 2**66),
    st.just(10**30),
    st.floats(),
    st.sampled_from([1e400, -0.0, 3.0, 1e15]),
)
words = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        ["usage", '"usage":{', "{", "}}", '"usage":{"prompt_tokens":7}', "\ud800", "\\"]
    ),
)
scalars = st.one_of(numbers, words, st.none(), st.booleans())
fields = st.sampled_from(Figures.__struct_fields__)
few = st.integers(0, 99)
counts = st.one_of(
    st.dictionaries(fields, few, min_size=1, max_size=4),
    st.dictionaries(fields, st.one_of(few, scalars), max_size=4),
)
details = st.dictionaries(
    words, st.one_of(scalars, st.lists(scalars, max_size=3), counts), max_size=3
)
figures = st.builds(lambda a, b: {**a, **b}, counts, details)
documents = st.recursive(
    st.one_of(scalars, figures),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(words, st.just("usage")), inner, max_size=4),
        st.builds(lambda usage, rest: {**rest, "usage": usage}, figures, details),
    ),
    max_leaves=6,
)


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """JSON as one engine or another writes it, at times cut, changed, or longer than an edge."""
    document = {**draw(details), "usage": draw(figures), "more": draw(documents)}
    if draw(st.sampled_from([False, False, True])):
        document = {"before": draw(documents), **document, "usage": draw(documents)}
    text = json.dumps(
        document,
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, None, 1])),
        separators=draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,", "\t:\r\n")])),
    ).encode(errors="surrogatepass")
    for _ in range(draw(st.sampled_from([0, 0, 1, 3]))):
        at = draw(st.integers(0, len(text)))
        piece = draw(st.sampled_from(ODD))
        text = text[:at] + piece + text[at + draw(st.integers(0, 2)) :]
    text = text[draw(st.sampled_from([0, 0, 0, 1, 9])) :]
    text = text[: len(text) - draw(st.sampled_from([0, 0, 0, 1, 2, 9]))]
    long = b"[%b]," % (b"1," * draw(st.sampled_from([0, 0, 0, 300, EDGE])))
    return draw(st.sampled_from([text, text + long, long + text]))


@settings(deadline=None, max_examples=400)
@given(answers())
@example(b'{"usage":{"x":%b,"prompt_tokens":1,"completion_tokens":2}}' % (b"1" * 5000))
@example(b'{"usage":{"x":"}","y":"{","z":{"a":{}},"prompt_tokens":1}}')
@example(b'{"us\\u0061ge":{"prompt_tokens":1},"x":{"usage":{"prompt_tokens":2}}}')
@example(b'{"usage":{"prompt\\u005ftokens":1,"prompt_tokens":2,"cost":NaN}}')
@example(b'{"usage":{"prompt_tokens":-1,"prompt_tokens":2,"completion_tokens":3}}')
@example(b'{"usage":' * 5 + b'{"prompt_tokens":1}' + b"}" * 5)
@example(b'{"usage":{"x":%b%b,"prompt_tokens":1}}' % (b"[" * 1500, b"]" * 1500))
@example(b'{"usage":{"x":%b1%b,"prompt_tokens":1}}' % (b'{"a":' * 20, b"}" * 20))
def test_figures_are_those_that_pythons_own_decoder_finds(text: bytes) -> None:
    assert metered(text) == (usage_in(text[-EDGE:]) or usage_in(text[:EDGE]) or Usage())


@pytest.mark.parametrize("filler", [b'"usage"', b'"usage":{', b'{"usage":{}}', b"{}", b"}{"])
def test_what_only_looks_like_figures_is_searched_a_few_times(filler: bytes) -> None:
    text = b'{"usage":{"prompt_tokens":9},' + filler * (EDGE // len(filler))
    expected = usage_in(text[-EDGE:]) or usage_in(text[:EDGE]) or Usage()
    assert metered(text) == expected
