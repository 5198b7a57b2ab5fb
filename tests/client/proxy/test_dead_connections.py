"""Requests whose warm connection the engine has closed, or breaks off."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fabric_client.proxy.request_body import MAX_REPLAY
from protocol.errors import Code
from tests.node_alone import NodeAlone

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": False}
LONG = "x" * (MAX_REPLAY + 1)
ANSWER = json.dumps(
    {"choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}]}
).encode()
MODELS = json.dumps({"object": "list", "data": [{"id": "tiny", "object": "model"}]}).encode()
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class OneRequestEngine:
    """An engine that closes a connection as soon as a second request begins to come on it.

    It is written by hand because HTTP servers have no way to send half a status line.
    """

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        """The bodies of the requests so far."""
        self.last_words = b""
        """Written before a connection is closed."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET"):
                known = head.startswith(b"GET /v1/models ")
                self._answer(writer, MODELS if known else b"{}", 200 if known else 404)
            else:
                self.asked.append(await self._body(reader, head))
                self._answer(writer, ANSWER, 200)
                await reader.readexactly(1)
                self.asked.append(b"")
                writer.write(self.last_words)
        writer.close()

    async def _body(self, reader: asyncio.StreamReader, head: bytes) -> bytes:
        if length := _LENGTH.search(head):
            return await reader.readexactly(int(length[1]))
        chunks = []
        while size := int(await reader.readuntil(b"\r\n"), 16):
            chunks.append((await reader.readexactly(size + 2))[:-2])
        await reader.readexactly(2)
        return b"".join(chunks)

    def _answer(self, writer: asyncio.StreamWriter, body: bytes, status: int) -> None:
        head = f"HTTP/1.1 {status} -\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)


@pytest.fixture
async def engine() -> OneRequestEngine:
    return OneRequestEngine()


@pytest.fixture
async def node(engine: OneRequestEngine) -> AsyncIterator[NodeAlone]:
    """A node with a warm connection that is dead."""
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with NodeAlone(f"http://127.0.0.1:{port}") as node:
        assert (await node.ask("/v1/chat/completions", CHAT)).status == 200
        engine.asked.clear()
        yield node
    server.close()


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/chat/completions", {}),
        ("/v1/chat/completions", {"user": LONG}),
        ("/v1/completions", {"prompt": LONG}),
        ("/v1/messages", {"max_tokens": 9, "system": LONG}),
        ("/v1/responses", {"input": LONG}),
        ("/api/chat", {"messages": [{"role": "user", "content": LONG}]}),
    ],
)
async def test_a_body_of_any_size_survives(
    engine: OneRequestEngine, node: NodeAlone, path: str, more: dict[str, Any]
) -> None:
    body = {**CHAT, **more}
    if path == "/v1/responses":
        del body["messages"]
    answer = await node.ask(path, body)
    assert (answer.reset, answer.status) == (None, 200)
    assert len(engine.asked[-1]) > (MAX_REPLAY if more else 0)


async def test_a_body_that_comes_in_pieces_survives(
    engine: OneRequestEngine, node: NodeAlone
) -> None:
    data = json.dumps({"model": "tiny", "prompt": LONG}).encode()
    for size in (None, len(data)):
        asked = node.open("/v1/completions", size=size)
        assert asked.stream is not None
        asked.stream.send(data[:200_000], False)
        await asyncio.sleep(0)
        asked.stream.send(data[200_000:], True)
        answer = await asked.over()
        assert (answer.reset, answer.status) == (None, 200)
        assert engine.asked[-1] == data


@pytest.mark.parametrize("last_words", [b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nx: y\r\n", b"what?"])
async def test_nothing_is_asked_twice_once_a_byte_of_the_answer_has_come(
    engine: OneRequestEngine, node: NodeAlone, last_words: bytes
) -> None:
    engine.last_words = last_words
    answer = await node.ask("/v1/chat/completions", CHAT)
    assert answer.reset is not None
    assert answer.reset[0] == Code.ENGINE_DOWN
    assert engine.asked == [b""]
