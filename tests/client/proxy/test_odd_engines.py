"""Answers that an engine has compressed, sends elsewhere, or refuses for a field of ours."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import zlib
from collections.abc import AsyncIterator

import pytest

from fabric_client.proxy.decoder import MAX_PIECE, Decoder
from fabric_client.proxy.engine_request import EngineRequest
from protocol.errors import Code
from tests.node_alone import NodeAlone

WHOLE = json.dumps(
    {"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}], "id": "a"}
).encode()
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": False}


class RawEngine:
    """Answers every request with the same bytes: a fake, for answers that no engine means."""

    def __init__(self) -> None:
        self.url = ""
        self.refuse = (b"", b"", "")
        """A text that no request may have, and the answer to those that have it."""
        self.answer = b""
        self.asked: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            body = b'{"data":[{"id":"tiny"}]}'
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        else:
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
            self.asked.append(head + await reader.readexactly(int(length)))
            text, refusal, status = self.refuse
            if text and text in self.asked[-1]:
                size = len(refusal)
                line = f"HTTP/1.1 {status}\r\ncontent-length: {size}\r\n\r\n"
                writer.write(line.encode() + refusal)
            else:
                writer.write(self.answer)
        writer.close()

    def answers(self, body: bytes, *headers: str, status: str = "200 OK") -> None:
        lines = [f"HTTP/1.1 {status}", *headers, f"content-length: {len(body)}", "", ""]
        self.answer = "\r\n".join(lines).encode() + body


@pytest.fixture
async def raw() -> AsyncIterator[RawEngine]:
    engine = RawEngine()
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    engine.url = f"openai=http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield engine
    server.close()


@pytest.fixture
async def node(raw: RawEngine) -> AsyncIterator[NodeAlone]:
    async with NodeAlone(raw.url) as node:
        yield node


def raw_deflate(data: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflate.compress(data) + deflate.flush()


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
@pytest.mark.parametrize(
    ("encoding", "encode"),
    [("gzip", gzip.compress), ("X-GZIP", gzip.compress), ("deflate", zlib.compress),
     ("deflate", raw_deflate), ("identity", bytes)],
)  # fmt: skip
async def test_what_is_encoded_all_the_same_is_decoded(
    raw: RawEngine, node: NodeAlone, path: str, encoding: str, encode: object
) -> None:
    assert callable(encode)
    raw.answers(encode(WHOLE), "content-type: application/json", f"content-encoding: {encoding}")
    answer = await node.ask(path, CHAT)
    assert b"accept-encoding: identity\r\n" in raw.asked[0]
    assert answer.status == 200
    message = answer.json.get("message") or answer.json["choices"][0]["message"]
    assert message["content"] == "Hello"


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        (b"x", ["content-encoding: br"], "200 OK", "encoded (br)"),
        (WHOLE, ["content-encoding: gzip"], "200 OK", "can't be decoded"),
        (gzip.compress(WHOLE, mtime=0)[:-9], ["content-encoding: gzip"], "200 OK", "in the middle"),
        (
            gzip.compress(bytes(MAX_PIECE + 9), mtime=0),
            ["content-encoding: gzip"],
            "200 OK",
            "too much",
        ),
        (b"", ["location: http://127.0.0.1:1/"], "302 Found", "redirects (302)"),
        (b"", ["location: /v1/chat/completions/"], "307 Temporary Redirect", "redirects (307)"),
    ],
    ids=["unknown", "not gzip", "cut", "bomb", "302", "307"],
)
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
async def test_what_can_not_be_passed_on_fails_the_engine(
    raw: RawEngine,
    node: NodeAlone,
    path: str,
    body: bytes,
    headers: list[str],
    status: str,
    reason: str,
) -> None:
    raw.answers(body, "content-type: application/json", *headers, status=status)
    answer = await node.ask(path, CHAT)
    assert answer.reset is not None
    assert answer.reset[0] == Code.ENGINE_FAILED
    assert reason in answer.reset[1]
    assert len(raw.asked) == 1


REFUSED = b'{"object":"error","message":"stream_options: Extra inputs are not permitted"}'
STREAM = (
    b'data: {"id":"a","choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\n'
    b"data: [DONE]\n\n"
)


@pytest.mark.parametrize("status", ["400 Bad Request", "422 Unprocessable Content"])
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/completions"])
async def test_an_engine_that_refuses_stream_options_is_asked_again_without(
    raw: RawEngine, node: NodeAlone, path: str, status: str
) -> None:
    raw.refuse = (b"stream_options", REFUSED, status)
    raw.answers(STREAM, "content-type: text/event-stream")
    body = {"stream_options": {"include_usage": True}, **CHAT, "stream": True, "prompt": "hi"}
    if path == "/api/chat":
        del body["stream_options"]  # the translation adds it
    for asked in (2, 3):  # the second time at once without
        answer = await node.ask(path, body)
        assert answer.status == 200
        assert b"Hi" in answer.body
        assert len(raw.asked) == asked
    assert json.loads(raw.asked[-1].partition(b"\r\n\r\n")[2])["stream"] is True


async def test_another_refusal_is_passed_on(raw: RawEngine, node: NodeAlone) -> None:
    raw.answers(b'{"error":{"message":"bad"}}', status="400 Bad Request")
    body = {"stream_options": {"include_usage": True}, **CHAT, "stream": True}
    answer = await node.ask("/v1/chat/completions", body)
    assert (answer.status, len(raw.asked)) == (400, 2)
    raw.answers(STREAM, "content-type: text/event-stream")
    answer = await node.ask("/v1/chat/completions", body)
    assert b"stream_options" in raw.asked[-1], "a user's mistake says nothing of the engine"
    raw.answers(b'{"error":{"message":"bad"}}', status="400 Bad Request")
    answer = await node.ask("/v1/chat/completions", body)
    assert (answer.status, len(raw.asked)) == (400, 4), "it is known to take stream_options"


def test_pieces_of_any_size_are_decoded() -> None:
    decoder = Decoder("gzip")
    data = gzip.compress(WHOLE)
    assert b"".join(decoder.feed(data[at : at + 1]) for at in range(len(data))) == WHOLE
    decoder.end()


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (WHOLE, ["content-type: application/json"], "200 OK"),
        (gzip.compress(WHOLE), ["content-encoding: gzip"], "200 OK"),
        (b"x", ["content-encoding: gzip"], "200 OK"),
        (STREAM, ["content-type: text/event-stream"], "200 OK"),
        (REFUSED, ["content-type: application/json"], "400 Bad Request"),
        (b"", [], "302 Found"),
    ],
    ids=["whole", "encoded", "not decodable", "stream", "refusal", "redirect"],
)
async def test_a_request_that_is_over_needs_no_garbage_collector(
    raw: RawEngine, node: NodeAlone, path: str, body: bytes, headers: list[str], status: str
) -> None:
    """Objects that refer to each other in a circle took a tenth of a node's processor time."""
    raw.answers(body, *headers, status=status)
    chat = {**CHAT, "max_tokens": 9, "stream": body == STREAM}
    gc.disable()
    try:
        for _ in range(3):
            await node.ask(path, chat)
        left = [one for one in gc.get_objects() if isinstance(one, EngineRequest)]
    finally:
        gc.enable()
    assert left == []


async def test_events_that_are_read_at_once_go_on_together_and_whole(
    raw: RawEngine, node: NodeAlone
) -> None:
    event = b'data: {"id":"a","choices":[{"index":0,"delta":{"content":"%03d"}}]}\n\n'
    events = [event % number for number in range(500)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in events)
    head = (
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    raw.answer = head.encode() + chunks + b"0\r\n\r\n"
    answer = await node.ask("/v1/chat/completions", {**CHAT, "stream": True})
    assert answer.body == b"".join(events)
    assert len(answer.pieces) <= 25
    assert all(piece.endswith(b"\n\n") for piece in answer.pieces)


async def test_a_head_that_does_not_end_is_given_up(raw: RawEngine) -> None:
    lines = b"x-more: %b\r\n" % (b"x" * 1000)
    raw.answer = b"HTTP/1.1 200 OK\r\n" + lines * 400
    async with NodeAlone(raw.url) as node:
        answer = await node.ask("/v1/chat/completions", CHAT)
    assert answer.reset == (Code.ENGINE_DOWN, "the response's headers are too large")
