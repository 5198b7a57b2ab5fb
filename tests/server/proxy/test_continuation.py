"""A stream that goes on at another node, without nodes: any text, cut anywhere, comes whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fabric_server.metering.openai import StreamMeter
from fabric_server.metering.usage import Usage
from fabric_server.proxy.continuation import Continuation
from fabric_server.proxy.transcript import MAX_TEXT, MIN_ECHO, NotContinued
from tests.site import DONE, event

MESSAGES = [{"role": "user", "content": "Tell me."}]
PROMPT = 11
"""Tokens of ``MESSAGES``, as the scripted engine counts."""
Json = dict[str, Any]


class Engine:
    """Says a text, a token an event; asked to go on, what is left of it."""

    def __init__(self, name: str, kind: str, tokens: list[str], newline: bytes = b"\n") -> None:
        self.kind = kind
        self._head = {"id": f"chatcmpl-{name}", "created": len(name), "model": f"at {name}"}
        self._tokens = tokens
        self._newline = newline

    def answer(self, body: bytes) -> bytes:
        asked = json.loads(body)
        messages = asked["messages"]
        said, tokens = "", list(self._tokens)
        if messages[-1]["role"] == "assistant":
            assert asked.get("continue_final_message", False) is (self.kind != "ollama")
            said = messages[-1]["content"]
            assert said == said.rstrip(), "templates differ in what they do with it"
            assert "".join(tokens).startswith(said)
            while len(said) >= len(tokens[0]):
                said = said[len(tokens.pop(0)) :]
                if not tokens:
                    break
            if said:  # the rest of a token is one, too
                tokens[0] = tokens[0][len(said) :]
        prompt = PROMPT + len(self._tokens) - len(tokens)
        finish = "stop"
        if len(tokens) > (most := asked.get("max_tokens", len(tokens))):
            tokens, finish = tokens[:most], "length"
        usage = {"prompt_tokens": prompt, "completion_tokens": len(tokens), "total_tokens": 0}
        events = [self._chunk({"role": "assistant", "content": ""})]
        events += [self._chunk({"content": token}) for token in tokens]
        events += [self._chunk({}, finish), event({**self._head, "choices": [], "usage": usage})]
        return b"".join([*events, DONE]).replace(b"\n", self._newline)

    def _chunk(self, delta: Json, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return event({**self._head, "choices": [choice]})


def chunks(stream: bytes) -> list[Json]:
    lines = stream.decode().replace("\r\n", "\n").split("\n\n")
    assert lines.pop() == ""
    found = [line.removeprefix("data: ") for line in lines]
    assert found.pop() == "[DONE]"
    return [json.loads(data) for data in found]


def text_of(read: list[Json]) -> str:
    choices = [choice for chunk in read for choice in chunk["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def ask(**more: Any) -> bytes:
    return json.dumps({"model": "m", "stream": True, "messages": MESSAGES, **more}).encode()


def lost(continuation: Continuation, *events: bytes) -> bytes:
    """What the user has of a stream that broke off."""
    meter = continuation.meter(StreamMeter(usage_requested=True), "vllm", splice=False)
    return b"".join(map(meter.feed, events))


def said(**delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return event({"id": "c1", "created": 5, "model": "m", "choices": [choice]})


TOKEN = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
BLANK = st.sampled_from([" ", "\n", "\n\n", "a ", " b", "c\n "])
TOKENS = st.lists(TOKEN | BLANK, max_size=12)


@settings(deadline=None, max_examples=150)
@given(
    TOKENS,
    st.lists(st.integers(0, 4000), max_size=2),
    st.sampled_from(["vllm", "ollama", "llama-server"]),
    st.sampled_from([b"\n", b"\r\n"]),
    st.integers(1, 97),
)
@example(["ha"] * 9, [900], "llama-server", b"\n", 7)
@example(['"usage":{', "data: [DONE]\n\n", "模型\r\n\r\n"], [400, 100], "vllm", b"\r\n", 1)
@example(["a", " ", "\n", " ", "\n\n", "b\n", "\n"], [800, 600], "ollama", b"\n", 50)
def test_wherever_streams_are_cut_the_user_gets_one_whole_stream(
    tokens: list[str], cuts: list[int], kind: str, newline: bytes, piece: int
) -> None:
    body = ask()
    continuation = Continuation(body)
    user = b""
    finished = False
    for number, cut in enumerate([*cuts, None]):
        engine = Engine(f"node{number}", kind, tokens, newline)
        question = body if number == 0 else continuation.body(kind)
        answer = engine.answer(question)[:cut]
        meter = continuation.meter(StreamMeter(usage_requested=True), kind, splice=number > 0)
        for at in range(0, len(answer), piece):
            user += meter.feed(answer[at : at + piece])
        if cut is not None and not meter.complete:
            assert continuation.possible
            continue
        finished = meter.done
        break
    if not finished:  # cut behind its reason to finish: nothing is left to be asked for
        assert not continuation.possible
        return
    read = chunks(user)
    assert text_of(read) == "".join(tokens)
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in read}) == 1
    figures = [chunk["usage"] for chunk in read if chunk.get("usage")]
    assert len(figures) == 1
    assert figures[0]["prompt_tokens"] == PROMPT
    assert figures[0]["completion_tokens"] == len(tokens)
    if cuts and number:
        assert figures[0]["total_tokens"] == PROMPT + len(tokens)
    assert meter.usage == Usage(PROMPT, len(tokens))


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_what_may_be_said_grows_by_nothing(limit: str) -> None:
    continuation = Continuation(ask(**{limit: 10, "seed": 7}))
    lost(continuation, said(role="assistant", content=""), said(content="a"), said(content="b"))
    asked = json.loads(continuation.body("vllm"))
    assert asked[limit] == 8
    assert asked["seed"] == 7
    assert asked["messages"] == [*MESSAGES, {"role": "assistant", "content": "ab"}]
    assert asked["add_generation_prompt"] is False
    assert "continue_final_message" not in json.loads(continuation.body("ollama"))


def test_an_answer_that_has_all_its_tokens_is_ended_and_not_asked_for() -> None:
    continuation = Continuation(ask(max_tokens=2))
    user = lost(continuation, said(content="a"))
    assert continuation.final_chunk() == b""
    user += lost(continuation, said(content="b"))
    assert not continuation.possible
    read = chunks(user + continuation.final_chunk())
    assert text_of(read) == "ab"
    assert read[-1]["choices"][0]["finish_reason"] == "length"
    assert {chunk["id"] for chunk in read} == {"c1"}


def test_an_answer_of_which_nothing_was_said_is_asked_for_as_it_was() -> None:
    body = ask(response_format={"type": "json_object"})
    continuation = Continuation(body)
    lost(continuation, said(role="assistant", content=""))
    assert continuation.possible
    assert not continuation.has_text
    assert continuation.body("openai") == body


CALL = {"index": 0, "id": "call_1", "function": {"name": "f", "arguments": ""}}


@pytest.mark.parametrize(
    "events",
    [
        [said(content="a"), said(tool_calls=[CALL])],
        [said(content="a"), said(function_call={"name": "f"})],
        [said(content="a"), said(refusal="no")],
        [said(reasoning="a thought")],
        [said(reasoning_content="a thought")],
        [said(content="a"), event({"error": {"message": "out of memory"}})],
        [said(content="a"), event(b"{not json")],
        [said(content="a"), event({"choices": [{"index": 1, "delta": {"content": "b"}}]})],
        [
            event(
                {"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": {"content": []}}]}
            )
        ],
        [event({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]})],
        [said(content="x" * 1000)] * (MAX_TEXT // 1000 + 1),
        [said(content="x" * 2**21)],
        [event({"id": "x" * 2000, "choices": [{"delta": {"content": "a"}}]})],
    ],
)
def test_what_could_not_be_joined_without_a_trace_is_not_continued(events: list[bytes]) -> None:
    continuation = Continuation(ask())
    lost(continuation, *events)
    assert not continuation.possible
    assert continuation.final_chunk() == b""


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2},
        {"logprobs": True},
        {"response_format": {"type": "json_object"}},
        {"tool_choice": "required"},
        {"guided_regex": "a+"},
        {"grammar": "root ::= x"},
        {"messages": []},
        {"messages": "Hi"},
        {"messages": [*MESSAGES, {"role": "assistant", "content": "As I"}]},
    ],
)
def test_a_question_whose_rest_can_t_be_asked_for_is_not_continued(more: Json) -> None:
    continuation = Continuation(ask(**more))
    lost(continuation, said(content="a"))
    assert not continuation.possible


def test_white_space_at_a_splice_point_comes_once_whether_repeated_or_not() -> None:
    for again, rest in ([" ", "\n", "x"], "x"), ([" \n", "x"], "x"), (["  x"], " x"), (["x"], "x"):
        continuation = Continuation(ask(max_tokens=10))
        lost(continuation, said(content="a"), said(content=" "), said(content="\n"))
        asked = json.loads(continuation.body("ollama"))
        assert asked["messages"][-1]["content"] == "a"
        assert asked["max_tokens"] == 9
        meter = continuation.meter(StreamMeter(usage_requested=True), "ollama", splice=True)
        user = b"".join(meter.feed(said(content=token)) for token in again)
        assert text_of(chunks(user + DONE)) == rest


def test_reasoning_before_an_answer_counts_and_is_not_said_again() -> None:
    continuation = Continuation(ask(max_tokens=10))
    lost(continuation, said(reasoning="hm"), said(reasoning="so"), said(content="a"))
    assert continuation.possible
    assert json.loads(continuation.body("vllm"))["max_tokens"] == 7
    meter = continuation.meter(StreamMeter(usage_requested=True), "vllm", splice=True)
    usage = {"prompt_tokens": PROMPT + 1, "completion_tokens": 4}
    meter.feed(said(content="b") + event({"choices": [], "usage": usage}))
    assert meter.usage == Usage(PROMPT, 4 + 3)


@pytest.mark.parametrize("event", [said(reasoning="Hm, anew"), event(b"[1]"), b"data: {\n\n"])
def test_an_engine_that_does_something_else_than_go_on_is_told_from_one_that_does(
    event: bytes,
) -> None:
    continuation = Continuation(ask())
    lost(continuation, said(content="a"))
    meter = continuation.meter(StreamMeter(usage_requested=True), "vllm", splice=True)
    with pytest.raises(NotContinued):
        meter.feed(event)
    assert continuation.possible, "nothing of it has reached the user"


def test_an_engine_that_says_the_beginning_again_is_not_heard_twice() -> None:
    text = "x" * MIN_ECHO
    continuation = Continuation(ask())
    lost(continuation, said(content=text))
    meter = continuation.meter(StreamMeter(usage_requested=True), "llama-server", splice=True)
    user = b"".join(meter.feed(said(content=piece)) for piece in (text + "y", text, "z"))
    assert text_of(chunks(user + DONE)) == "y" + text + "z"


def test_usage_is_never_less_than_nothing() -> None:
    continuation = Continuation(ask())
    lost(continuation, *[said(content="a")] * 5)
    meter = continuation.meter(StreamMeter(usage_requested=True), "vllm", splice=True)
    figures = {"prompt_tokens": 3, "completion_tokens": 1, "details": {"cached": 2}}
    user = meter.feed(event({"choices": [], "usage": figures}))
    [chunk] = chunks(user + DONE)
    totals = {"prompt_tokens": 0, "completion_tokens": 6, "total_tokens": 6}
    assert chunk["usage"] == {**totals, "details": {"cached": 2}}
