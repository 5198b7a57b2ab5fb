"""Translation on a node, as the server's end of a tunnel sees it."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from fabric_client.proxy.request_body import MAX_BODY
from fabric_client.proxy.upload_limit import UploadLimit
from fabric_client.translation import Headers
from protocol.errors import Code
from tests.engine import Plan, ScriptedEngine
from tests.lab.llama import LlamaServer
from tests.node_alone import NodeAlone

HELLO = [{"role": "user", "content": "hello"}]
CHAT = {"model": "tiny", "messages": HELLO}


@pytest.fixture
async def node(engine: ScriptedEngine) -> AsyncIterator[NodeAlone]:
    async with NodeAlone(engine.url) as node:
        yield node


# ── questions ─────────────────────────────────────────────────────────────────────────────────


async def test_the_engine_is_asked_in_its_own_words(
    engine: ScriptedEngine, node: NodeAlone
) -> None:
    headers = [
        ("content-type", "text/plain"),
        ("accept", "application/x-ndjson"),
        ("x-fabric-reasoning", "raw"),
    ]
    answer = await node.ask("/api/chat", CHAT, headers=headers)
    asked = await engine.started()
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["content-type"] == "application/json"
    assert asked.headers["content-length"] == str(len(asked.body))
    assert not {"accept", "x-fabric-reasoning"} & {name.lower() for name in asked.headers}
    assert asked.json["messages"] == HELLO
    assert [line["message"]["content"] for line in answer.lines] == ["Hello", ",", " world", ""]
    assert answer.lines[-1]["done"] is True
    assert answer.headers == {"content-type": "application/x-ndjson"}
    assert answer.figures is not None
    assert answer.figures.body_bytes == len(answer.body)
    assert node.forwarder.served == 1


async def test_a_question_that_comes_in_pieces_is_asked_when_it_is_whole(
    engine: ScriptedEngine, node: NodeAlone
) -> None:
    asked = node.open("/api/chat")
    data = json.dumps({**CHAT, "stream": False, "keep_alive": "x" * 3_000_000}).encode()
    for at in range(0, len(data), 70_000):
        asked.stream.send(data[at : at + 70_000], at + 70_000 >= len(data))
    await asked.over()
    assert asked.json["message"]["content"] == "Hello, world"
    assert len(engine.requests) == 1


async def test_what_can_t_be_asked_is_refused_without_asking(
    engine: ScriptedEngine, node: NodeAlone
) -> None:
    answer = await node.ask("/api/chat", {**CHAT, "format": "xml"})
    assert (answer.status, answer.json) == (
        400,
        {"error": "'format' must be 'json' or a JSON schema"},
    )
    assert answer.headers["content-length"] == str(len(answer.body))
    assert engine.requests == []
    assert node.engine.active == 0


async def test_a_question_without_words_is_answered_without_asking(
    engine: ScriptedEngine, node: NodeAlone
) -> None:
    answer = await node.ask("/api/generate", {"model": "tiny"})
    assert answer.json["done_reason"] == "load"
    assert engine.requests == []


@pytest.mark.parametrize("announced", [True, False])
async def test_what_is_too_long_to_be_read_whole_is_refused(
    engine: ScriptedEngine, node: NodeAlone, announced: bool
) -> None:
    size = MAX_BODY + 1
    asked = node.open("/api/chat", size=size if announced else None)
    if not announced:
        piece = b" " * 2**20
        for _ in range(MAX_BODY // len(piece)):
            asked.stream.send(piece)
        asked.stream.send(b" ", True)
    await asked.over()
    assert asked.status == 413
    assert "64 MiB" in asked.json["error"]
    assert (engine.requests, node.engine.active) == ([], 0)


async def test_a_body_longer_than_announced_is_an_error(node: NodeAlone) -> None:
    asked = node.open("/api/chat", size=2)
    asked.stream.send(b"{}}", True)
    await asked.over()
    assert asked.reset is not None
    assert asked.reset[0] == Code.PROTOCOL


async def test_paths_that_the_engine_has_no_way_for_are_refused(node: NodeAlone) -> None:
    answer = await node.ask("/v1/rerank", CHAT)
    assert answer.reset is not None
    assert answer.reset[0] == Code.REFUSED
    answer = await node.ask("/api/pull", CHAT)
    assert answer.reset is not None
    assert answer.reset[0] == Code.FORBIDDEN


# ── answers ───────────────────────────────────────────────────────────────────────────────────


async def test_words_go_on_at_once_and_a_cancelled_answer_frees_the_engine(
    engine: ScriptedEngine, node: NodeAlone
) -> None:
    never = asyncio.Event()
    engine.plan = Plan(chunks=["Hel", never, "lo"])
    asked = node.open("/api/chat", CHAT)
    await asked.received(b'"content":"Hel"')
    asked.stream.reset(Code.CANCELLED, "the user left")
    await (await engine.started()).aborted()
    await asked.over()
    assert node.engine.active == 0


async def test_an_engine_that_dies_within_its_answer_is_no_end(
    engine: ScriptedEngine, node: NodeAlone
) -> None:
    engine.plan = Plan(cut_after=2)
    answer = await node.ask("/api/chat", CHAT)
    assert answer.reset is not None
    assert answer.reset[0] == Code.ENGINE_FAILED
    assert [line["done"] for line in answer.lines] == [False, False]


async def test_a_connection_that_had_gone_cold_is_replaced(
    engine: ScriptedEngine, node: NodeAlone
) -> None:
    await node.ask("/api/chat", CHAT)
    engine.plans.append(Plan(refuse=True))
    answer = await node.ask("/api/chat", CHAT)
    assert answer.lines[-1]["done"] is True
    bodies = [request.body for request in engine.requests]
    assert len(bodies) == 3
    assert bodies[1] == bodies[2]


async def test_an_engine_s_complaint_is_told_in_the_user_s_dialect(
    engine: ScriptedEngine, node: NodeAlone
) -> None:
    engine.plan = Plan(status=503, headers={"Retry-After": "3"})
    answer = await node.ask("/api/chat", CHAT)
    assert (answer.status, answer.json) == (503, {"error": "scripted error 503"})
    assert answer.headers["retry-after"] == "3"


async def test_a_reader_who_stops_makes_the_engine_stop(
    engine: ScriptedEngine, node: NodeAlone
) -> None:
    engine.plan = Plan(chunks=["x" * 10_000] * 4_000)
    asked = node.open("/api/chat", CHAT, reads=False)
    request = await engine.started()
    sent = -1
    while request.sent != sent:  # until the engine has felt it
        sent = request.sent
        await asyncio.sleep(0.1)
    assert sent < 4_000 * 10_000
    asked.reads = True
    asked.stream.consumed(len(asked.body))
    await asked.over()
    assert asked.lines[-1]["done"] is True
    assert asked.body.count(b"x" * 10_000) == 4_000


async def test_a_long_answer_in_one_piece_comes_whole(
    engine: ScriptedEngine, node: NodeAlone
) -> None:
    engine.plan = Plan(chunks=["ü" * 1_000_000])
    answer = await node.ask("/api/chat", {**CHAT, "stream": False})
    assert answer.json["message"]["content"] == "ü" * 1_000_000


async def test_a_translated_answer_keeps_to_the_limit_on_uploads(engine: ScriptedEngine) -> None:
    loop = asyncio.get_running_loop()
    uploads = UploadLimit(200_000, clock=loop.time, call_later=loop.call_later)
    engine.plan = Plan(chunks=["x" * 1000] * 300)
    async with NodeAlone(engine.url, uploads=uploads) as node:
        answer = await node.ask("/api/chat", CHAT)
        assert answer.body.count(b"x" * 1000) == 300
        assert answer.lines[-1]["done"] is True
        assert (await node.ask("/api/chat", {"model": "tiny"})).json["done_reason"] == "load"
        assert node.engine.active == 0


# ── reasoning's place ─────────────────────────────────────────────────────────────────────────


class Louder:
    """Stands for what is done to every chat answer before it is translated."""

    decided = None

    def __init__(self, stream: bool | None) -> None: ...

    def head(self, status: int, headers: Headers) -> tuple[int, Headers]:
        return status, headers

    def feed(self, data: bytes) -> bytes:
        return data.replace(b"Hello", b"HELLO")

    def end(self) -> bytes:
        return b""


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
async def test_every_chat_answer_goes_through_reasoning_unless_it_is_wanted_raw(
    engine: ScriptedEngine, path: str
) -> None:
    async with NodeAlone(engine.url, reasoning=Louder) as node:
        asked = {**CHAT, "stream": True}
        assert b"HELLO" in (await node.ask(path, asked)).body
        raw = [("content-type", "application/json"), ("x-fabric-reasoning", "Raw")]
        assert b"Hello" in (await node.ask(path, asked, headers=raw)).body
        prompt = {"model": "tiny", "prompt": "x", "raw": True}
        assert b"Hello" in (await node.ask("/api/generate", prompt)).body


# ── engines that speak the user's dialect ─────────────────────────────────────────────────────


async def test_a_chat_passes_byte_by_byte_but_for_developers(
    engine: ScriptedEngine, node: NodeAlone
) -> None:
    plain = b'{ "model":"tiny", "temperature":1.50, "messages":[{"role": "user"}]}'
    answer = await node.ask("/v1/chat/completions", plain)
    assert answer.json["object"] == "chat.completion"
    assert (await engine.started()).body == plain
    told = (
        b'{"model":"tiny","temperature":1.50,"n":1,"messages":[{"role":"developer","content":'
        b'"{\\"role\\":\\"developer\\"}"},{"role":"user","content":"developer"}],'
        b'"metadata":{"role":"developer"}}'
    )
    await node.ask("/v1/chat/completions", told)
    asked = (await engine.started()).body
    assert asked == told.replace(b'[{"role":"developer"', b'[{"role":"system"')
    broken = b'{"messages": 5, "role":"developer"}'
    await node.ask("/v1/chat/completions", broken)
    assert (await engine.started()).body == broken


async def test_embeddings_asked_for_in_base64_come_so_from_engines_that_don_t_know_it(
    node: NodeAlone,
) -> None:
    body = {"model": "tiny", "input": ["a", "b"], "encoding_format": "base64"}
    answer = await node.ask("/v1/embeddings", body)
    rows = answer.json["data"]
    assert [struct.unpack("<3f", base64.b64decode(row["embedding"])) for row in rows] == [
        (0.25, -0.5, 1.0)
    ] * 2
    answer = await node.ask("/v1/embeddings", {**body, "encoding_format": "float"})
    assert answer.json["data"][0]["embedding"] == [0.25, -0.5, 1.0]


async def test_token_ids_are_refused_where_they_would_be_answered_with_nothing() -> None:
    async with ScriptedEngine(ollama=True) as engine, NodeAlone(engine.url) as node:
        assert node.engine.kind == "ollama"
        answer = await node.ask("/v1/embeddings", {"model": "tiny", "input": [[1, 2]]})
        assert answer.status == 400
        assert "check_embedding_ctx_length" in answer.json["error"]["message"]
        assert answer.json["error"]["param"] == "input"
        assert engine.requests == []
        answer = await node.ask("/v1/embeddings", {"model": "tiny", "input": ["1"]})
        assert answer.status == 200


# ── a real engine ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaServer]:
    with LlamaServer() as server:
        yield server


@pytest.fixture
async def real(llama: LlamaServer) -> AsyncIterator[NodeAlone]:
    async with NodeAlone(llama.url) as node:
        yield node


LONG = {"type": "array", "items": {"type": "string"}, "minItems": 900}
"""An answer of this shape does not end by itself after a few words, as the model's mostly do."""


def chat(**options: Any) -> dict[str, Any]:
    return {**CHAT, "options": {"num_predict": 8, "seed": 1, "temperature": 0, **options}}


async def test_llama_server_chats_in_ollama_s_dialect(real: NodeAlone) -> None:
    body = {**chat(), "format": LONG}
    streamed = await real.ask("/api/chat", body)
    whole = await real.ask("/api/chat", {**body, "stream": False})
    words = "".join(line["message"]["content"] for line in streamed.lines)
    assert words
    assert words == whole.json["message"]["content"]
    last = streamed.lines[-1]
    assert last["done"] is True
    assert last["eval_count"] == whole.json["eval_count"] > 0
    assert 0 < last["prompt_eval_duration"] < last["total_duration"]


async def test_llama_server_generates_and_embeds_in_ollama_s_dialect(real: NodeAlone) -> None:
    options = {"num_predict": 4, "repeat_penalty": 1.1, "typical_p": 0.9, "num_ctx": 4096}
    for more in ({}, {"raw": True, "logprobs": True}, {"system": "Be brief.", "think": False}):
        body = {"model": "tiny", "prompt": "Once upon", "options": options, **more}
        answer = await real.ask("/api/generate", body)
        assert answer.lines[-1]["eval_count"] > 0
    answer = await real.ask("/api/embed", {"model": "tiny", "input": ["one", "two"]})
    one, two = answer.json["embeddings"]
    assert len(one) == len(two) > 8
    answer = await real.ask("/api/embeddings", {"model": "tiny", "prompt": "one"})
    assert answer.json["embedding"] == pytest.approx(one, abs=1e-3)


async def test_a_schema_binds_llama_server_s_words(real: NodeAlone) -> None:
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    raw = {"model": "tiny", "prompt": "x", "raw": True, "options": {"num_predict": 60}}
    for path, body in (("/api/chat", chat(num_predict=60)), ("/api/generate", raw)):
        answer = await real.ask(path, {**body, "format": schema, "stream": False})
        said = answer.json.get("response") or answer.json["message"]["content"]
        assert json.loads(said)["yes"] in (True, False)


async def test_llama_server_s_own_complaint_is_an_error_of_ollama_s(real: NodeAlone) -> None:
    body = {**CHAT, "format": {"type": "nonsense"}}
    answer = await real.ask("/api/chat", body)
    assert answer.status == 400
    assert list(answer.json) == ["error"]


async def test_llama_server_stops_when_a_translated_answer_is_cancelled(
    real: NodeAlone, llama: LlamaServer
) -> None:
    asked = real.open("/api/chat", {**chat(num_predict=-1), "format": LONG})
    await asked.received(b'"done":false')
    assert llama.busy() == 1
    asked.stream.reset(Code.CANCELLED, "the user left")
    await asked.over()
    await llama.idle(timeout=2)


@pytest.mark.parametrize(
    ("path", "more", "ends"),
    [
        ("/v1/messages", {"max_tokens": 9}, b"message_stop"),
        ("/v1/responses", {"input": "hello", "messages": None}, b"response.completed"),
    ],
)
async def test_messages_and_responses_reach_an_engine_that_has_only_chats(
    engine: ScriptedEngine, node: NodeAlone, path: str, more: dict[str, Any], ends: bytes
) -> None:
    body = {name: value for name, value in {**CHAT, **more}.items() if value is not None}
    answer = await node.ask(path, {**body, "stream": True})
    assert (await engine.started()).path == "/v1/chat/completions"
    assert answer.status == 200
    assert b"Hello" in answer.body
    assert ends in answer.body
    answer = await node.ask(path, {**body, "stream": 5})
    assert answer.status == 400
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert answer.json.get("type") == ("error" if path == "/v1/messages" else None)
