"""Ollama's dialect on engines that speak OpenAI's: questions and answers, without an engine.

``recorded/`` holds what a real llama-server sent, and an answer in the shape of vLLM's.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fabric_client.translation import (
    LocalReply,
    ResponseFilter,
    TranslatedRequest,
    TranslationError,
)
from fabric_client.translation.ollama import Ollama

Json = dict[str, Any]
RECORDED = Path(__file__).parent / "recorded"
LLAMA = (RECORDED / "llama_server_chat.sse").read_bytes()
LLAMA_TEXT = (RECORDED / "llama_server_completions.sse").read_bytes()
TOOLS = (RECORDED / "vllm_tools.sse").read_bytes()
STREAM = [("content-type", "text/event-stream; charset=utf-8")]
WHOLE = [("content-type", "application/json")]
NOW = 1_795_281_513_000_000_007
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(20)).decode()
HELLO = [{"role": "user", "content": "hello"}]


class Clock:
    """A millisecond passes at each look."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        self.now += 1_000_000
        return self.now


def ollama(kind: str = "vllm", clock: Callable[[], int] = lambda: NOW) -> Ollama:
    return Ollama(kind, clock)


def question(path: str, body: Json, kind: str = "vllm") -> Json:
    """What the engine is asked."""
    asked = getattr(ollama(kind), path)(json.dumps({"model": "tiny", **body}).encode())
    assert isinstance(asked, TranslatedRequest)
    found: Json = json.loads(asked.body)
    return {"path": asked.path, **found}


def refused(path: str, body: Json, kind: str = "vllm") -> TranslationError:
    with pytest.raises(TranslationError) as caught:
        question(path, body, kind)
    return caught.value


def answer(
    path: str = "chat", clock: Callable[[], int] | None = None, **body: Any
) -> ResponseFilter:
    words: Json = {"messages": HELLO, "prompt": "hello", "input": "hello"}
    asked = getattr(ollama(clock=clock or (lambda: NOW)), path)(
        json.dumps({"model": "tiny", **words, **body}).encode()
    )
    assert isinstance(asked, TranslatedRequest)
    assert asked.response_filter is not None
    return asked.response_filter


def heard(answer: ResponseFilter, pieces: Iterable[bytes], headers: Any = STREAM) -> bytes:
    answer.head(200, headers)
    return b"".join(answer.feed(piece) for piece in pieces) + answer.end()


def lines(data: bytes) -> list[Json]:
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def event(**choice: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


# ── questions ─────────────────────────────────────────────────────────────────────────────────


def test_a_chat_is_asked_for_as_a_stream_with_its_usage_unless_told_otherwise() -> None:
    asked = question("chat", {"messages": HELLO})
    assert asked == {
        "path": "/v1/chat/completions",
        "model": "tiny",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": HELLO,
    }
    asked = question("chat", {"messages": HELLO, "stream": False})
    assert asked["stream"] is False
    assert "stream_options" not in asked


def test_options_become_what_each_kind_of_engine_calls_them() -> None:
    options = {
        "temperature": 0.5,
        "top_k": 20.0,
        "seed": 7,
        "stop": ["a"],
        "num_predict": 9,
        "repeat_penalty": 1.2,
        "num_ctx": 8192,
        "num_gpu": 1,
        "min_p": None,
    }
    asked = question("chat", {"messages": HELLO, "options": options})
    fields = {name: asked[name] for name in ("temperature", "top_k", "seed", "stop", "max_tokens")}
    assert fields == {
        "temperature": 0.5,
        "top_k": 20,
        "seed": 7,
        "stop": ["a"],
        "max_tokens": 9,
    }
    assert asked["repetition_penalty"] == 1.2
    assert not {"num_ctx", "num_gpu", "min_p", "repeat_penalty"} & asked.keys()
    llama = {"repeat_penalty": 1.2, "typical_p": 0.9, "repeat_last_n": 64, "mirostat": 1}
    asked = question("chat", {"messages": HELLO, "options": llama}, "llama-server")
    assert llama.items() <= asked.items()


@pytest.mark.parametrize("most", [-2, -1, 0])
def test_an_answer_without_limit_has_none(most: int) -> None:
    assert "max_tokens" not in question(
        "chat", {"messages": HELLO, "options": {"num_predict": most}}
    )


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tfs_z": 0.5}, "options.tfs_z"),
        ({"mirostat": 1}, "options.mirostat"),
        ({"repeat_last_n": 9, "repeat_penalty": 1.1}, "options.repeat_last_n"),
        ({"temperatur": 1}, "options.temperatur"),
        ({"temperature": "1"}, "options.temperature"),
        ({"temperature": True}, "options.temperature"),
        ({"stop": [1]}, "options.stop"),
        ([], "options"),
    ],
)
def test_an_option_that_would_change_nothing_there_is_refused_by_name(
    options: Any, param: str
) -> None:
    assert refused("chat", {"messages": HELLO, "options": options}).param == param


def test_an_option_that_changes_nothing_anywhere_is_none() -> None:
    options = {"tfs_z": 1.0, "mirostat": 0, "mirostat_tau": 5.0, "repeat_last_n": 64}
    question("chat", {"messages": HELLO, "options": options})


def test_a_format_is_a_response_format() -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}}
    asked = question("chat", {"messages": HELLO, "format": schema})
    assert asked["response_format"]["json_schema"]["schema"] == schema
    asked = question("chat", {"messages": HELLO, "format": "json"})
    assert asked["response_format"] == {"type": "json_object"}
    assert "response_format" not in question("chat", {"messages": HELLO, "format": ""})
    assert refused("chat", {"messages": HELLO, "format": "xml"}).param == "format"


def test_think_reaches_the_template_and_the_engine() -> None:
    asked = question("chat", {"messages": HELLO, "think": False})
    assert asked["chat_template_kwargs"]["enable_thinking"] is False
    assert "reasoning_effort" not in asked
    asked = question("chat", {"messages": HELLO, "think": "low"})
    assert asked["reasoning_effort"] == "low"
    assert asked["chat_template_kwargs"]["enable_thinking"] is True
    assert refused("chat", {"messages": HELLO, "think": "hard"}).param == "think"


def test_images_say_what_they_are() -> None:
    message = {"role": "user", "content": "what?", "images": [PNG]}
    (asked,) = question("chat", {"messages": [message]})["messages"]
    text, image = asked["content"]
    assert text == {"type": "text", "text": "what?"}
    assert image["image_url"]["url"] == f"data:image/png;base64,{PNG}"
    sound = base64.b64encode(b"RIFF\0\0\0\0WAVEfmt " + bytes(9)).decode()
    (asked,) = question("chat", {"messages": [{**message, "images": [sound]}]})["messages"]
    assert asked["content"][1]["input_audio"]["format"] == "wav"
    for wrong in ("?", base64.b64encode(b"%PDF-1.7 and so on").decode(), 5):
        error = refused("chat", {"messages": [{**message, "images": [PNG, wrong]}]})
        assert error.param == "messages[0].images[1]"


def test_results_of_tools_find_their_calls_by_id_by_name_or_by_order() -> None:
    def call(name: str, **more: Any) -> Json:
        return {"function": {"name": name, "arguments": {"city": "東京"}}, **more}

    calls = [call("weather", id="w"), call("clock"), call("clock")]
    given = [
        *HELLO,
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": calls},
        {"role": "tool", "content": "3 pm", "tool_name": "clock"},
        {"role": "tool", "content": "sun", "tool_call_id": "w"},
        {"role": "tool", "content": "4 pm"},
    ]
    asked = question("chat", {"messages": given, "tools": [{"function": {"name": "clock"}}]})
    _, said, first, second, third = asked["messages"]
    assert said["reasoning_content"] == "hm"
    ids = [one["id"] for one in said["tool_calls"]]
    assert len(set(ids)) == 3
    assert json.loads(said["tool_calls"][0]["function"]["arguments"]) == {"city": "東京"}
    assert [one["tool_call_id"] for one in (first, second, third)] == [ids[1], "w", ids[2]]
    assert asked["tools"] == [{"type": "function", "function": {"name": "clock"}}]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"role": "wizard", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "tool_calls": [{}]}]},
            "messages[0].tool_calls[0].function",
        ),
        ({"messages": HELLO, "tools": {}}, "tools"),
        ({"messages": HELLO, "stream": "yes"}, "stream"),
        ({"messages": HELLO, "top_logprobs": 99}, "top_logprobs"),
        ({"messages": HELLO, "_debug_render_only": True}, "_debug_render_only"),
        ({"messages": HELLO, "model": ""}, "model"),
    ],
)
def test_what_is_no_question_is_refused_by_the_field_at_fault(body: Json, param: str) -> None:
    assert refused("chat", body).param == param


@pytest.mark.parametrize("path", ["chat", "generate", "embed", "embeddings"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b"\xff", b"[" * 100_000, b"{}"])
def test_what_is_no_body_is_refused(path: str, body: bytes) -> None:
    with pytest.raises(TranslationError):
        getattr(ollama(), path)(body)


def test_a_prompt_is_a_chat_of_one_message_and_raw_it_is_itself() -> None:
    asked = question("generate", {"prompt": "why?", "system": "be brief", "images": [PNG]})
    assert asked["path"] == "/v1/chat/completions"
    assert asked["messages"][0] == {"role": "system", "content": "be brief"}
    assert asked["messages"][1]["content"][0] == {"type": "text", "text": "why?"}
    asked = question("generate", {"prompt": "<s>why?", "raw": True, "logprobs": True})
    assert (asked["path"], asked["prompt"]) == ("/v1/completions", "<s>why?")
    assert asked["logprobs"] == 1


@pytest.mark.parametrize(
    "given", [{"context": [1]}, {"suffix": "x"}, {"template": "{{ .Prompt }}"}, {"prompt": 5}]
)
def test_what_only_ollama_can_do_with_a_prompt_is_refused(given: Json) -> None:
    assert refused("generate", {"prompt": "why?", **given}).param in given


def test_a_format_for_a_raw_prompt_is_asked_for_where_there_is_a_word_for_it() -> None:
    body = {"prompt": "why?", "raw": True, "format": {"type": "object"}}
    assert question("generate", body)["response_format"]["type"] == "json_schema"
    assert question("generate", body, "llama-server")["json_schema"] == {"type": "object"}
    assert refused("generate", body, "openai").param == "format"


def test_embeddings_are_asked_for_as_numbers() -> None:
    asked = question("embed", {"input": "one", "dimensions": 8}, "llama-server")
    assert asked == {
        "path": "/v1/embeddings",
        "model": "tiny",
        "encoding_format": "float",
        "input": ["one"],
        "dimensions": 8,
    }
    assert question("embed", {"input": ["one"]})["truncate_prompt_tokens"] == -1
    assert "truncate_prompt_tokens" not in question("embed", {"input": "a", "truncate": False})
    assert question("embeddings", {"prompt": "one"})["input"] == ["one"]
    assert refused("embed", {"input": [5]}).param == "input"


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("chat", {}, {"message": {"role": "assistant", "content": ""}, "done_reason": "load"}),
        ("chat", {"messages": [], "keep_alive": 0}, {"done": True}),
        ("generate", {}, {"response": "", "done": True, "done_reason": "load"}),
        ("embed", {"input": []}, {"embeddings": []}),
        ("embeddings", {}, {"embedding": []}),
    ],
)
def test_who_only_wants_the_model_loaded_is_told_that_it_is(
    path: str, body: Json, told: Json
) -> None:
    reply = getattr(ollama(), path)(json.dumps({"model": "tiny", **body}).encode())
    assert isinstance(reply, LocalReply)
    assert reply.status == 200
    assert told.items() <= json.loads(reply.body).items()


# ── answers ───────────────────────────────────────────────────────────────────────────────────


def test_a_recorded_stream_becomes_lines_and_its_end_tells_figures() -> None:
    found = answer(clock=Clock(), logprobs=True, top_logprobs=2)
    assert found.head(200, STREAM) == (200, [("content-type", "application/x-ndjson")])
    told = lines(found.feed(LLAMA) + found.end())
    words = [line["message"]["content"] for line in told]
    assert words == [" or", " ", "la", words[3], ""]
    assert told[0]["logprobs"][0]["token"] == " or"
    assert told[0]["logprobs"][0]["top_logprobs"][1] == {
        "token": "s",
        "logprob": -3.6174368858337402,
        "bytes": [115],
    }
    assert [line["done"] for line in told] == [False] * 4 + [True]
    last = told[-1]
    assert (last["done_reason"], last["prompt_eval_count"], last["eval_count"]) == ("length", 15, 4)
    assert last["prompt_eval_duration"] == 1_000_000
    assert last["total_duration"] == last["prompt_eval_duration"] + last["eval_duration"]
    assert re.fullmatch(r"2026-11-21T\d\d:\d\d:\d\d\.\d{9}Z", last["created_at"])
    assert last["model"] == "tiny"


def test_a_recorded_completion_is_generated() -> None:
    told = lines(heard(answer("generate", raw=True, logprobs=True), [LLAMA_TEXT]))
    assert [line["response"] for line in told] == ["fic", " f", "e", ""]
    assert told[0]["logprobs"][0] == {
        "token": "fic",
        "logprob": -3.9823477268218994,
        "bytes": [102, 105, 99],
    }
    assert told[-1]["eval_count"] == 3


def test_probabilities_of_older_completions_are_told_alike() -> None:
    probabilities = {
        "tokens": [" a", " b"],
        "token_logprobs": [-0.5, -1.5],
        "top_logprobs": [{" a": -0.5, " c": -2.0}, None],
    }
    found = answer("generate", raw=True, logprobs=True, top_logprobs=2)
    (line,) = lines(heard(found, [event(text=" a b", logprobs=probabilities)]))
    assert line["logprobs"] == [
        {
            "token": " a",
            "logprob": -0.5,
            "top_logprobs": [
                {"token": " a", "logprob": -0.5},
                {"token": " c", "logprob": -2.0},
            ],
        },
        {"token": " b", "logprob": -1.5},
    ]


def test_an_engine_that_gives_up_has_not_answered() -> None:
    told = lines(heard(answer(), [event(delta={"content": "Hel"}, finish_reason="abort")]))
    assert told == [{"error": "the engine aborted the request"}]


def test_thoughts_and_calls_are_told_apart_and_calls_come_whole() -> None:
    told = lines(heard(answer(), [TOOLS]))
    assert [line["message"].get("thinking") for line in told[:2]] == ["Das Wetter … ", "in 東京"]
    calls = [call for line in told for call in line["message"].get("tool_calls", [])]
    assert calls == [
        {
            "id": "chatcmpl-tool-a",
            "function": {"index": 0, "name": "weather", "arguments": {"city": "東京"}},
        },
        {"id": "chatcmpl-tool-b", "function": {"index": 1, "name": "clock", "arguments": {}}},
    ]
    assert told[-1]["done_reason"] == "stop"


def test_a_call_that_was_cut_off_is_told_as_words() -> None:
    piece = {"index": 0, "id": "a", "function": {"name": "clock", "arguments": '{"zone": "U'}}
    told = lines(
        heard(
            answer(),
            [
                event(delta={"tool_calls": [piece]}),
                event(delta={}, finish_reason="length"),
                b"data: [DONE]\n\n",
            ],
        )
    )
    assert [line["message"]["content"] for line in told] == ['{"zone": "U', ""]
    assert told[-1]["done_reason"] == "length"


def test_a_piece_of_no_call_is_an_error() -> None:
    piece = {"index": 3, "function": {"arguments": "{}"}}
    told = lines(heard(answer(), [event(delta={"tool_calls": [piece]})]))
    assert told == [{"error": "the engine sent a malformed tool call"}]


def test_each_event_is_told_at_once() -> None:
    found = answer()
    found.head(200, STREAM)
    for word in ("Hel", "lo", " wörld"):
        (line,) = lines(found.feed(event(delta={"content": word})))
        assert line["message"]["content"] == word


_STREAMS = some.sampled_from([LLAMA, LLAMA.replace(b"\n", b"\r\n"), TOOLS])


@given(_STREAMS, some.lists(some.integers(0, len(TOOLS)), max_size=12), some.booleans())
def test_where_the_bytes_are_cut_makes_no_difference(
    stream: bytes, cuts: list[int], comments: bool
) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    pieces = [stream[a:b] for a, b in pairwise(edges)]
    if comments:
        pieces.insert(0, b": ping\n\nevent: message\nid: 5\n\n")
    plain = stream.replace(b"\r\n", b"\n")
    assert heard(answer(logprobs=True), pieces) == heard(answer(logprobs=True), [plain])


def test_byte_by_byte_is_the_same_too() -> None:
    pieces = [TOOLS[at : at + 1] for at in range(len(TOOLS))]
    assert heard(answer(), pieces) == heard(answer(), [TOOLS])


_KEYS = some.sampled_from(
    [
        *("choices", "delta", "message", "content", "tool_calls", "function", "name", "error"),
        *("arguments", "index", "finish_reason", "usage", "logprobs", "data", "embedding"),
        *("tokens", "top_logprobs", "id", "prompt_tokens", "reasoning", "detail", "text"),
    ]
)
_ANYTHING = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=8),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(_KEYS, inner, max_size=5),
    max_leaves=25,
)


@given(
    some.sampled_from(["chat", "generate", "embed", "embeddings"]),
    some.lists(some.binary(max_size=40) | _ANYTHING, max_size=6),
    some.sampled_from([STREAM, WHOLE, []]),
    some.sampled_from([200, 400, 503]),
)
def test_whatever_an_engine_says_nothing_is_raised(
    path: str, said: list[Any], headers: Any, status: int
) -> None:
    found = answer(path)
    found.head(status, headers)
    told = b""
    for one in said:
        data = one if isinstance(one, bytes) else b"data: " + json.dumps(one).encode() + b"\n\n"
        told += found.feed(data)
    told += found.end()
    for line in told.splitlines():
        assert isinstance(json.loads(line), dict)


@given(some.sampled_from(["chat", "generate", "embed"]), _ANYTHING)
def test_nor_by_an_answer_in_one_piece(path: str, said: object) -> None:
    told = heard(answer(path), [json.dumps(said).encode()], WHOLE)
    assert isinstance(json.loads(told), dict)


def test_an_answer_in_one_piece_is_one_object() -> None:
    whole = {
        "choices": [
            {
                "index": 0,
                "finish_reason": "tool_calls",
                "message": {
                    "role": "assistant",
                    "content": "hm",
                    "reasoning_content": "so",
                    "tool_calls": [
                        {"id": "a", "function": {"name": "clock", "arguments": '{"zone": "UTC"}'}}
                    ],
                },
            }
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 7},
    }
    data = json.dumps(whole).encode()
    told = json.loads(heard(answer(stream=False), [data[:50], data[50:]], WHOLE))
    assert told["message"] == {
        "role": "assistant",
        "content": "hm",
        "thinking": "so",
        "tool_calls": [
            {"id": "a", "function": {"index": 0, "name": "clock", "arguments": {"zone": "UTC"}}}
        ],
    }
    assert (told["done"], told["done_reason"], told["eval_count"]) == (True, "stop", 7)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"error": {"message": "no such model", "code": 404}}, "no such model"),
        ({"error": "plain"}, "plain"),
        ({"object": "error", "message": "old vLLM", "code": 404}, "old vLLM"),
        ({"detail": "Not Found"}, "Not Found"),
        (b"busy", "busy"),
        (b"", "the engine gave no reason"),
    ],
)
def test_an_engine_s_complaint_keeps_its_status_and_its_words(said: Any, told: str) -> None:
    found = answer()
    status, headers = found.head(404, [*WHOLE, ("retry-after", "3")])
    assert status == 404
    assert ("retry-after", "3") in headers
    data = said if isinstance(said, bytes) else json.dumps(said).encode()
    assert json.loads(found.feed(data) + found.end()) == {"error": told}


def test_a_complaint_within_a_stream_is_the_last_line() -> None:
    broken = b'data: {"error":{"message":"out of memory","code":500}}\n\ndata: [DONE]\n\n'
    told = lines(heard(answer(), [event(delta={"content": "Hel"}), broken]))
    assert told[-1] == {"error": "out of memory"}
    assert len(told) == 2


def test_a_stream_that_ends_without_a_reason_is_not_called_done() -> None:
    told = lines(heard(answer(), [event(delta={"content": "Hel"}), b"data: [DONE]\n\n"]))
    assert [line["done"] for line in told] == [False]


def test_an_event_without_end_is_given_up() -> None:
    found = answer()
    found.head(200, STREAM)
    told = b"".join(found.feed(b"x" * 2**20) for _ in range(18)) + found.end()
    assert lines(told) == [{"error": "the engine sent an event that is too long"}]


def test_vectors_come_in_the_order_of_the_texts() -> None:
    said = {
        "data": [{"index": 1, "embedding": [0.5]}, {"index": 0, "embedding": [0.25]}],
        "usage": {"prompt_tokens": 4},
    }
    told = json.loads(heard(answer("embed"), [json.dumps(said).encode()], WHOLE))
    assert told["embeddings"] == [[0.25], [0.5]]
    assert (told["model"], told["prompt_eval_count"]) == ("tiny", 4)
    told = json.loads(heard(answer("embeddings"), [json.dumps(said).encode()], WHOLE))
    assert told == {"embedding": [0.25]}
