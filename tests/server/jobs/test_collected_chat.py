"""Streams of chats, collected: what the official client makes of the same chunks, and odd ones."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from fabric_server.jobs.collected_chat import CAN_NOT_BE_READ, CollectedChat
from fabric_server.jobs.held_answer import TOO_LARGE
from fabric_server.metering.answer_ids import MAX_ANSWER
from fabric_server.metering.usage import Usage

FIRST = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "tiny"}


def chunk(*choices: Any, **more: Any) -> dict[str, Any]:
    return {**FIRST, "choices": list(choices), **more}


def choice(index: int = 0, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    logprobs = delta.pop("logprobs", None)
    return {"index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}


def collected(*chunks: Any, usage: Usage | None = None) -> Any:
    chat = CollectedChat()
    for one in chunks:
        chat.add(one if isinstance(one, bytes) else f"data: {json.dumps(one)}\n\n".encode())
    found = chat.completion(usage)
    return None if found is None else json.loads(msgspec.json.encode(found))


def piece(index: int | None, id: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"index": index, "id": id, "type": "function", "function": function}


texts = st.text(max_size=8)
deltas = st.fixed_dictionaries({}, optional={"content": texts, "refusal": texts, "role": st.none()})


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 2), deltas), max_size=3), min_size=1, max_size=8))
def test_texts_are_those_that_the_official_client_puts_together(
    events: list[list[tuple[int, dict[str, Any]]]],
) -> None:
    chunks = [chunk(choice(0, role="assistant"), choice(1, role="assistant"), choice(2))]
    chunks += [chunk(*(choice(index, **delta) for index, delta in one)) for one in events]
    chunks.append(chunk(*(choice(index, "stop") for index in range(3))))
    state: Any = ChatCompletionStreamState()
    for one in chunks:
        state.handle_chunk(ChatCompletionChunk.model_validate(one))
    wanted: ChatCompletion = state.current_completion_snapshot
    found = collected(*chunks)
    assert [one["index"] for one in found["choices"]] == [0, 1, 2]
    for ours, theirs in zip(found["choices"], wanted.choices, strict=True):
        assert ours["message"]["content"] == (theirs.message.content or "")
        assert ours["message"]["refusal"] == (theirs.message.refusal or None)
        assert ours["finish_reason"] == "stop"


def test_calls_of_tools_whose_pieces_come_in_turns() -> None:
    found = collected(
        chunk(choice(tool_calls=[piece(0, "a", "one", ""), piece(1, "b", "two", "")])),
        chunk(choice(tool_calls=[piece(1, None, None, '{"x"')])),
        chunk(choice(tool_calls=[piece(0, None, None, "{"), piece(1, None, "two", ":1}")])),
        chunk(choice(tool_calls=[piece(0, "a", None, "}")])),
        chunk(choice(0, "tool_calls")),
    )
    [told] = found["choices"]
    calls = told["message"]["tool_calls"]
    assert [(call["id"], call["type"], *call["function"].values()) for call in calls] == [
        ("a", "function", "one", "{}"),
        ("b", "function", "two", '{"x":1}'),
    ]
    assert told["message"]["content"] is None


@pytest.mark.parametrize("index", [0, None])
def test_another_id_is_another_call_whatever_its_index(index: int | None) -> None:
    found = collected(
        chunk(choice(tool_calls=[piece(index, "a", "one", "{}")])),
        chunk(choice(tool_calls=[piece(index, "b", "two", "{}")])),
    )
    calls = found["choices"][0]["message"]["tool_calls"]
    assert [(call["id"], call["function"]["name"]) for call in calls] == [
        ("a", "one"),
        ("b", "two"),
    ]


def test_everything_else_that_a_stream_tells() -> None:
    logprob = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
    found = collected(
        b": waiting\n\n",
        chunk(
            choice(reasoning="Hm", reasoning_content="Hm"),
            system_fingerprint="fp",
            service_tier="x",
        ),
        chunk(choice(content="a", logprobs={"content": [logprob]})),
        chunk(choice(content="b", logprobs={"content": [logprob], "refusal": None})),
        chunk(choice(function_call={"name": "f", "arguments": "{"})),
        chunk(choice(0, "length", function_call={"arguments": "}"})),
        chunk(usage={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "more": {}}),
        b"data: [DONE]\n\n",
    )
    assert found == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 7,
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "ab",
                    "refusal": None,
                    "reasoning": "Hm",
                    "reasoning_content": "Hm",
                    "function_call": {"name": "f", "arguments": "{}"},
                },
                "logprobs": {"content": [logprob, logprob], "refusal": None},
                "finish_reason": "length",
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "more": {}},
        "system_fingerprint": "fp",
        "service_tier": "x",
    }


def test_figures_that_are_not_in_the_stream_are_those_of_the_meter() -> None:
    answer = chunk(choice(0, "stop", content="a"))
    assert collected(answer)["usage"] is None
    figures = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert collected(answer, usage=Usage(3, 4))["usage"] == figures


@pytest.mark.parametrize(
    "event",
    [b"data: {\n\n", b"data: []\n\n", chunk(choice(content=7)), {"id": "a"}, {"choices": []}],
    ids=str,
)
def test_a_stream_that_can_not_be_read_is_none(event: Any) -> None:
    assert collected(chunk(choice(content="a")), event) is None


def test_a_stream_without_choices_is_none() -> None:
    assert collected() is None
    assert collected(chunk()) is None
    assert collected(b"data: [DONE]\n\n") is None


def test_what_is_held_counts_also_where_it_has_no_text() -> None:
    pieces = [
        chunk(*(choice(index) for index in range(100))),
        chunk(choice(tool_calls=[piece(index, None, None, "") for index in range(100)])),
        chunk(choice(logprobs={"content": [{}] * 100})),
    ]
    for one in pieces:
        chat = CollectedChat()
        chat.add(f"data: {json.dumps(one)}\n\n".encode())
        assert chat.size > 100 * 100


LONG = "x" * 1000
HELD_OF_ENGINES = [
    ("a role", chunk(*(choice(index, role=LONG) for index in range(100)))),
    ("an end", chunk(*(choice(index, LONG) for index in range(100)))),
    ("a type", chunk(choice(tool_calls=[{"id": "a", "type": LONG * 100}]))),
    ("a later id", chunk(choice(tool_calls=[{"index": 0}, {"index": 0, "id": LONG * 100}]))),
    ("a fingerprint", chunk(system_fingerprint=LONG * 100)),
    ("a tier", chunk(service_tier=LONG * 100)),
]


@pytest.mark.parametrize("one", [one for _, one in HELD_OF_ENGINES], ids=dict(HELD_OF_ENGINES))
def test_each_text_of_an_engine_counts(one: Any) -> None:
    chat = CollectedChat()
    chat.add(f"data: {json.dumps(one)}\n\n".encode())
    assert chat.size >= 100 * 1000


@pytest.mark.parametrize(
    "one",
    [
        chunk(*(choice(index) for index in range(129))),
        chunk(choice(tool_calls=[{"index": index} for index in range(129)])),
        chunk(choice(logprobs={"content": [0] * (MAX_ANSWER // 128 + 1)})),
    ],
    ids=["choices", "calls", "log probabilities"],
)
def test_a_chunk_with_more_parts_than_any_real_one_is_not_read(one: Any) -> None:
    chat = CollectedChat()
    chat.add(f"data: {json.dumps(one)}\n\n".encode())
    assert (chat.lost, chat.size, chat.completion()) == (CAN_NOT_BE_READ, 0, None)


def test_a_stream_is_given_up_in_the_midst_of_a_chunk() -> None:
    calls = [{"index": index} for index in range(128)]
    one = chunk(*(choice(index, tool_calls=calls) for index in range(128)))
    chat = CollectedChat()
    chat.add(f"data: {json.dumps(one)}\n\n".encode())
    assert (chat.lost, chat.size, chat.completion()) == (TOO_LARGE, 0, None)


def test_many_small_pieces_take_time_in_proportion() -> None:
    event = f"data: {json.dumps(chunk(choice(content='a')))}\n\n".encode()
    chat = CollectedChat()
    for _ in range(100):
        chat.add(event * 1000)
    assert chat.size < 102_000
    found = chat.completion()
    assert found is not None
    assert found["choices"][0]["message"]["content"] == "a" * 100_000
