"""Which characters of an answer are markers, in any cut: all others come out, in order."""

from __future__ import annotations

import pytest
from hypothesis import example, given

from fabric_client.reasoning.splitter import (
    CONTENT,
    LONGEST,
    PAIRS,
    REASONING,
    Part,
    Splitter,
)
from tests.client.reasoning.rules import MARKERS, deltas, expected, merged


def split(*texts: str) -> list[Part]:
    splitter = Splitter()
    parts = [part for text in texts for part in splitter.feed(text)]
    return merged(parts + splitter.feed("", last=True))


@given(deltas)
@example(list("<think>a</think>b"))
@example(
    list("<|channel|>analysis<|message|>模<|end|><|start|>assistant<|channel|>final<|message|>🦙")
)
@example(["<think>", "<think>a</think>b</think>"])
def test_in_any_cut_all_but_the_markers_comes_out_in_order(texts: list[str]) -> None:
    assert split(*texts) == expected("".join(texts))


@given(deltas)
def test_nothing_is_held_back_that_is_not_the_beginning_of_a_marker(texts: list[str]) -> None:
    splitter = Splitter()
    fed, out = "", ""
    for text in texts:
        fed += text
        out += "".join(part for _, part in splitter.feed(text))
        due = "".join(part for _, part in expected(fed))
        assert due.startswith(out)
        held = due[len(out) :]
        assert len(held) < LONGEST
        assert not held or any(marker.startswith(held) for marker in MARKERS)


@given(deltas)
def test_once_settled_everything_is_content_and_at_once(texts: list[str]) -> None:
    splitter = Splitter()
    for text in texts:
        settled = splitter.settled
        parts = splitter.feed(text)
        if settled:
            assert splitter.settled
            assert parts == merged([(CONTENT, text)])


@pytest.mark.parametrize(("opening", "closing"), PAIRS.items())
def test_a_block_at_the_beginning_is_reasoning_whatever_its_markers(
    opening: str, closing: str
) -> None:
    text = f"\n {opening}a<b\n{closing}\n\nc"
    assert split(*text) == [(CONTENT, "\n "), (REASONING, "a<b\n"), (CONTENT, "\n\nc")]


def test_gpt_oss_thinks_speaks_on_the_way_and_answers() -> None:
    text = (
        "<|channel|>analysis<|message|>Let me see<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>I will look. <|end|>"
        "<|start|>assistant<|channel|>final <|constrain|>json<|message|>{}<|return|>"
    )
    assert split(*text) == [(REASONING, "Let me see"), (CONTENT, "I will look. {}")]


def test_a_message_to_a_tool_stays_as_it_was_written() -> None:
    call = '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"a":1}<|call|>'
    text = f"<|channel|>analysis<|message|>Let me see<|end|><|start|>assistant{call}"
    assert split(*text) == [(REASONING, "Let me see"), (CONTENT, call)]


@pytest.mark.parametrize(
    "text",
    [
        "Models write <think>like this</think> before they answer.",
        "so I think</think>The answer is 42.",  # its template opened the block in the prompt
        "`<think>`: a marker",
        "<thinking>as I was asked to</thinking>",
        "gpt-oss writes <|channel|>analysis<|message|>",
        "<thin",
        "<|channel|>anal",
        " \n ",
        "</think>",
        "<|end|>",
    ],
)
def test_prose_about_markers_stays_prose(text: str) -> None:
    assert split(*text) == [(CONTENT, text)]


def test_a_second_block_is_text_and_blocks_do_not_nest() -> None:
    text = "<think>a<think>b</think>c<think>d</think>"
    assert split(*text) == [(REASONING, "a<think>b"), (CONTENT, "c<think>d</think>")]


def test_a_block_that_is_cut_short_is_reasoning_to_its_end() -> None:
    assert split("<think>a</thi") == [(REASONING, "a</thi")]


def test_the_first_character_settles_it() -> None:
    splitter = Splitter()
    assert splitter.feed(" \n") == [(CONTENT, " \n")]
    assert not splitter.settled
    assert splitter.feed("W") == [(CONTENT, "W")]
    assert splitter.settled
