"""The usage that the fabric asks engines for never shows, and takes no text with it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.site import DONE, STREAM, Site, ask, chunk, event

FIGURES = {
    "prompt_tokens": 5,
    "completion_tokens": 2,
    "total_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": None},
}
ROLE = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
HEL, LO, STOP = chunk("Hel"), chunk("lo"), chunk(None)


def silent(delta: Any, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None, **more}]}


ONLY_USAGE = {
    "as documented": event({"choices": [], "usage": FIGURES}),
    "choices null": event({"choices": None, "usage": FIGURES}),
    "choices an object": event({"choices": {}, "usage": FIGURES}),
    "no choices": event({"id": "a", "object": "chat.completion.chunk", "usage": FIGURES}),
    "empty delta": event({**silent({}), "usage": FIGURES}),
    "delta null": event({**silent(None), "usage": FIGURES}),
    "empty content": event({**silent({"content": ""}), "usage": FIGURES}),
    "empty fields": event(
        {
            **silent(
                {"content": None, "tool_calls": [], "refusal": None}, logprobs={"content": []}
            ),
            "usage": FIGURES,
        }
    ),
    "role once more": event({**silent({"role": "assistant", "content": ""}), "usage": FIGURES}),
    "no reason": event(
        {
            "choices": [{"index": 0, "text": "", "finish_reason": "null", "stop_reason": None}],
            "usage": FIGURES,
        }
    ),
    "timings beside": event(
        {"choices": [], "usage": FIGURES, "timings": {"predicted_ms": 1.5}, "x_groq": {"id": "a"}}
    ),
    "NaN beside": b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2},'
    b'"timings":{"per_second":NaN}}\n\n',
    "bad UTF-8 beside": b'data: {"choices":[],"model":"\xff",'
    b'"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n',
    "lines of data": b'event: message\ndata: {"choices": [],\ndata:  "usage":\ndata: '
    b'{"prompt_tokens": 5,\ndata: "completion_tokens": 2}}\n\n',
    "odd figures beside good ones": event({"choices": [], "usage": "much"})
    + event({"choices": [], "usage": FIGURES})
    + event({"choices": [], "usage": [1]}),
    "twice": 2 * event({"choices": [], "usage": FIGURES}),
    "null after the end, too": event({"choices": [], "usage": FIGURES})
    + event({"choices": [], "usage": None}),
}
"""What engines send after an answer's end only because usage was asked for."""


async def stream(sent: bytes, size: int = 65536, *, asked: bool = False) -> tuple[bytes, Any]:
    """Return what the user gets when an engine sends this in pieces of ``size``, and the entry."""
    site = Site()
    node = site.node()
    body = {**STREAM, "stream_options": {"include_usage": True}} if asked else STREAM
    user = ask(site, body)
    call = await node.call()
    call.begin_stream()
    for at in range(0, len(sent), size):
        call.data(sent[at : at + size])
    call.end()
    return (await user.answer()).body, await site.entry()


@pytest.mark.parametrize("size", [1, 7, 65536])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("extra", ONLY_USAGE.values(), ids=ONLY_USAGE.keys())
async def test_a_chunk_that_is_there_for_usage_shows_only_to_those_who_asked(
    extra: bytes, newline: bytes, size: int
) -> None:
    def lines(text: bytes) -> bytes:
        return text.replace(b"\n", newline)

    before = lines(ROLE + HEL + LO + STOP)
    for asked, expected in ((False, before + lines(DONE)), (True, before + lines(extra + DONE))):
        body, entry = await stream(before + lines(extra + DONE), size, asked=asked)
        assert body == expected
        assert (entry.outcome, entry.prompt_tokens, entry.completion_tokens) == ("ok", 5, 2)


@pytest.mark.parametrize("size", [1, 65536])
async def test_usage_behind_the_last_marker_does_not_show(size: int) -> None:
    late = event({"choices": [], "usage": FIGURES})
    body, entry = await stream(HEL + STOP + DONE + late, size)
    assert (body, entry.outcome) == (HEL + STOP + DONE, "ok")
    body, _ = await stream(HEL + STOP + DONE + late, asked=True)
    assert body.startswith(HEL + STOP + DONE)


def usage(prompt: int, completion: int) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": prompt, "completion_tokens": completion}}


KEPT = {
    "null in each chunk": [
        chunk("", usage=None),
        chunk("Hel", usage=None),
        chunk(None, usage=None),
    ],
    "a first chunk with no choices": [
        event({"choices": [], "prompt_filter_results": [{"index": 0}], "usage": None}),
        HEL,
        STOP,
    ],
    "usage in each chunk": [
        event({**silent({"role": "assistant", "content": ""}), **usage(5, 0)}),
        chunk("Hel", **usage(5, 1)),
        chunk("lo", **usage(5, 2)),
        chunk(None, **usage(5, 2)),
    ],
    "an end with usage": [HEL, chunk(None, **usage(5, 2))],
    "two choices' ends": [
        HEL,
        STOP,
        event({"choices": [{"index": 1, "delta": {}, "finish_reason": "length"}], **usage(5, 2)}),
    ],
    "text after an end": [HEL, STOP, chunk("!", **usage(5, 2))],
    "reasoning": [event({**silent({"reasoning": "so"}), **usage(5, 1)}), HEL, STOP],
    "a tool call": [
        event({**silent({"tool_calls": [{"index": 0, "id": "a", "function": {}}]}), **usage(5, 1)}),
        STOP,
    ],
    "a refusal": [event({**silent({"refusal": "no"}), **usage(5, 1)}), STOP],
    "text beside choices": [event({"content": "Hel", "choices": [], **usage(5, 1)}), STOP],
    "words that look like it": [chunk('"usage": {}'), chunk("usage"), STOP],
    "something unreadable": [HEL, STOP, b'data: {"choices":[],"usage":{\n\n'],
    "a list": [HEL, STOP, b'data: [{"usage":{"prompt_tokens":5}}]\n\n'],
}


@pytest.mark.parametrize("size", [1, 65536])
@pytest.mark.parametrize("events", KEPT.values(), ids=KEPT.keys())
async def test_a_chunk_that_says_something_else_is_never_taken_out(
    events: list[bytes], size: int
) -> None:
    for asked in (False, True):
        sent = b"".join(events) + DONE
        body, entry = await stream(sent, size, asked=asked)
        assert (body, entry.outcome) == (sent, "ok")


async def test_an_error_with_usage_is_told() -> None:
    failure = event({"error": {"message": "out of memory"}, "choices": [], **usage(5, 1)})
    body, entry = await stream(HEL + failure)
    assert b"out of memory" in body
    assert entry.outcome == "failed"


async def test_nesting_without_end_does_no_harm() -> None:
    deep = b'data: {"choices":' + b"[" * 5000 + b"]" * 5000 + b',"usage":{"prompt_tokens":5}}\n\n'
    body, entry = await stream(HEL + STOP + deep + DONE)
    assert body == HEL + STOP + deep + DONE
    assert entry.outcome == "ok"
