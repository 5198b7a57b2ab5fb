"""curl: requests by hand, also to endpoints without a client library."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import PIPE
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from tests.end_to_end.clients.matrix import REFUSED, SCRIPTED, cell
from tests.end_to_end.clients.place import HELLO, MESSAGES, MODELS, PATIENCE, TOKENS, Place
from tests.lab.client_programs import curl as curl_program

CLIENT = "curl"
pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = "/v1/chat/completions"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def curl(place: Place, path: str, *options: str, body: Any = None) -> Answer:
    data = () if body is None else ("-H", "content-type: application/json", "-d", "@-")
    process = await asyncio.create_subprocess_exec(
        *command(place, path, "-D", "/dev/stderr", *data, *options),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate(b"" if body is None else json.dumps(body).encode())
    assert process.returncode == 0, err.decode()
    *_, last = err.decode().strip().split("\r\n\r\n")
    status, *lines = last.splitlines()
    headers = dict(line.split(": ", 1) for line in lines)
    return Answer(int(status.split()[1]), {k.lower(): v for k, v in headers.items()}, out)


def command(place: Place, path: str, *options: str) -> list[str]:
    key = ("-H", f"authorization: Bearer {place.key}") if place.key else ()
    return [curl_program(), "-sS", "--cacert", str(place.ca), *key, *options, place.url + path]


def chat(kind: str, **more: Any) -> dict[str, Any]:
    short = {"max_tokens": TOKENS, "temperature": 0}
    return {"model": MODELS[kind], "messages": MESSAGES, **short, **more}


@cell(CHAT)
async def test_a_chat_comes_whole(place: Place, kind: str) -> None:
    answer = await curl(place, CHAT, body=chat(kind))
    assert answer.status == 200
    assert place.could_write(kind, answer.json["choices"][0]["message"]["content"])
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["x-request-id"]


@cell(CHAT, streamed=True)
async def test_a_chat_streams(place: Place, kind: str) -> None:
    answer = await curl(place, CHAT, "-N", body=chat(kind, stream=True))
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    *events, done = [line for line in answer.body.split(b"\n") if line.startswith(b"data: ")]
    assert done == b"data: [DONE]"
    choices = [json.loads(event.removeprefix(b"data: "))["choices"] for event in events]
    texts = [choice[0]["delta"].get("content") for choice in choices if choice]
    assert place.could_write(kind, "".join(text or "" for text in texts))


@cell(CHAT, streamed=True, kinds=SCRIPTED)
async def test_tokens_of_a_chat_are_printed_as_they_are_made(place: Place, kind: str) -> None:
    seen = asyncio.Event()
    place.script(kind, chunks=("Hel", seen, "lo"))
    body = json.dumps(chat(kind, stream=True))
    process = await asyncio.create_subprocess_exec(
        *command(place, CHAT, "-N", "-d", body), stdout=PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        async for line in process.stdout:
            if b'"Hel"' in line:
                seen.set()
        assert await process.wait() == 0


@cell(CHAT, kinds=SCRIPTED)
async def test_a_large_body_is_waited_for_with_100_continue(place: Place, kind: str) -> None:
    long = [{"role": "user", "content": "Tell me. " * 200_000}]
    body = chat(kind, messages=long)
    answer = await curl(place, CHAT, "-H", "expect: 100-continue", body=body)
    assert answer.status == 200
    assert answer.json["choices"][0]["message"]["content"] == HELLO
    assert place.engines[kind].requests[-1].json["messages"] == long


@cell(CHAT)
async def test_a_slash_at_the_end_is_overlooked(place: Place, kind: str) -> None:
    answer = await curl(place, f"{CHAT}/", body=chat(kind))
    assert answer.status == 200


@cell("/v1/rerank")
async def test_documents_are_ranked_where_an_engine_can(
    place: Place, kind: str, record_property: Any
) -> None:
    body = {"model": MODELS[kind], "query": "Which is it?", "documents": ["this", "that"]}
    answer = await curl(place, "/v1/rerank", body=body)
    if kind == "vllm":
        assert answer.status == 200
        assert [one["index"] for one in answer.json["results"]] == [0, 1]
    else:  # llama-server can, but not with this model
        refused(answer)
        record_property("answer", REFUSED)


@cell("/tokenize")
async def test_texts_are_tokenised_where_an_engine_can(
    place: Place, kind: str, record_property: Any
) -> None:
    # vLLM and llama-server have different names for the text.
    answer = await curl(
        place, "/tokenize", body={"model": MODELS[kind], "prompt": "hi", "content": "hi"}
    )
    if kind in ("vllm", "llama-server"):
        assert answer.status == 200
        assert answer.json["tokens"]
    else:
        refused(answer)
        record_property("answer", REFUSED)


def refused(answer: Answer) -> None:
    """Check for an error with a reason other than an unknown path or model."""
    assert answer.status in (400, 404, 501)
    error = answer.json["error"]
    assert error["message"]
    assert error["code"] not in ("unknown_path", "model_not_found")


async def test_errors_are_json_whatever_was_asked(place: Place) -> None:
    no_key = await curl(replace(place, key=""), "/v1/models")
    assert (no_key.status, no_key.json["error"]["code"]) == (401, "invalid_api_key")
    no_path = await curl(place, "/nowhere")
    assert (no_path.status, no_path.json["error"]["code"]) == (404, "unknown_path")
    no_json = await curl(place, CHAT, "-d", "{")
    assert (no_json.status, no_json.json["error"]["code"]) == (400, "invalid_json")
    for answer in (no_key, no_path, no_json):
        assert answer.headers["content-type"].startswith("application/json")
        assert answer.headers["x-request-id"]
        assert set(answer.json["error"]) == {"message", "type", "param", "code"}


async def test_ollama_s_version_and_greeting_are_told(place: Place) -> None:
    assert (await curl(place, "/api/version")).json["version"]
    for path in ("/", "/api/tags", "/api/version"):
        assert (await curl(place, path, "--head")).status == 200


async def test_answers_need_no_tls_on_this_machine(place: Place) -> None:
    answer = await curl(replace(place, url=place.plain), CHAT, body=chat("vllm"))
    assert answer.json["choices"][0]["message"]["content"] == HELLO
