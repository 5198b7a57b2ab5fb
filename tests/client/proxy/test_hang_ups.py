"""Whatever a request waits for when its user hangs up, its engine is free at once."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from protocol.errors import Code
from tests.client.proxy.test_odd_engines import REFUSED
from tests.node_alone import NodeAlone

MODELS = b'{"data":[{"id":"tiny"}]}'
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
HEAD = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
WHOLE = json.dumps({"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}]})
LARGE = 32 * 2**20
"""Bytes that no buffers of sockets take."""


class HoldingEngine:
    """Stops in the middle of answers: a fake, which can be held where a real engine goes on.

    Each request gets the next of ``answers``, and then nothing until its caller hangs up.
    """

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.reads = asyncio.Event()
        """Bodies are read while it is set."""
        self.reads.set()
        self.port = 0
        self._asked = self._open = 0
        self._changed = asyncio.Condition()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Listen no more; the connections stay."""
        if self._server is not None:
            self._server.close()

    async def asked(self, count: int) -> None:
        """Wait until so many requests have come and have what they get."""
        await self._until(lambda: self._asked == count)

    async def left(self) -> None:
        """Wait until the callers of all requests have hung up."""
        await self._until(lambda: self._open == 0)

    async def _until(self, holds: Any) -> None:
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(holds)

    async def _count(self, asked: int, open: int) -> None:
        async with self._changed:
            self._asked += asked
            self._open += open
            self._changed.notify_all()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if head.startswith(b"get"):
            writer.write(HEAD % (b"200 OK", len(MODELS)) + MODELS)
            writer.close()
            return
        await self._count(0, 1)
        try:
            if self.reads.is_set():
                length = head.partition(b"content-length: ")[2].partition(b"\r")[0]
                await reader.readexactly(int(length))
            writer.write(self.answers.pop(0))
            await self._count(1, 0)
            await self.reads.wait()
            while await reader.read(2**20):
                pass
        except ConnectionError:
            pass  # one of the ways to hang up
        finally:
            await self._count(0, -1)
            writer.close()


@pytest.fixture
async def engine() -> AsyncIterator[HoldingEngine]:
    engine = HoldingEngine()
    await engine.start()
    yield engine
    engine.stop()


@pytest.fixture
async def node(engine: HoldingEngine) -> AsyncIterator[NodeAlone]:
    async with NodeAlone(f"openai=http://127.0.0.1:{engine.port}") as node:
        yield node


HALF = HEAD % (b"200 OK", len(WHOLE)) + WHOLE[:20].encode()
PACKED = gzip.compress(WHOLE.encode())
ENCODED = HEAD.replace(b"type: application/json", b"encoding: gzip") % (b"200 OK", len(PACKED))
REFUSAL = HEAD % (b"400 Bad Request", len(REFUSED)) + REFUSED


@pytest.mark.parametrize(
    ("path", "more", "answers"),
    [
        ("/v1/completions", {"prompt": "hi"}, [b""]),
        ("/v1/completions", {"prompt": "hi"}, [HALF]),
        ("/api/chat", {}, [b""]),
        ("/api/chat", {"stream": False}, [HALF]),
        ("/api/chat", {"stream": False}, [ENCODED + PACKED[:-9]]),
        ("/api/chat", {"stream": True}, [REFUSAL, b""]),
        ("/api/chat", {"stream": False}, [HEAD % (b"500 Sorry", 99) + b"{"]),
    ],
    ids=["head", "answer", "translated head", "held head", "encoded", "asked again", "error"],
)
async def test_the_engine_is_free_while_it_is_waited_for(
    engine: HoldingEngine,
    node: NodeAlone,
    path: str,
    more: dict[str, Any],
    answers: list[bytes],
) -> None:
    engine.answers = [*answers]
    answer = node.open(path, {**CHAT, **more})
    await engine.asked(len(answers))
    await hang_up(node, answer)
    await engine.left()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/api/chat"])
async def test_the_engine_is_free_while_it_takes_a_large_body(
    engine: HoldingEngine, node: NodeAlone, path: str
) -> None:
    engine.reads.clear()
    engine.answers = [b""]
    text = "x" * LARGE
    body = {**CHAT, "input": text} if path != "/api/chat" else {
        **CHAT, "messages": [{"role": "user", "content": text}]
    }  # fmt: skip
    answer = node.open(path, body)
    await engine.asked(1)
    await hang_up(node, answer)
    engine.reads.set()
    await engine.left()


async def test_the_engine_is_free_while_it_takes_no_connection(
    engine: HoldingEngine, node: NodeAlone
) -> None:
    engine.stop()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", engine.port))
        listener.listen(0)
        with socket.create_connection(("127.0.0.1", engine.port)):  # takes the only place
            before = asyncio.all_tasks()
            answer = node.open("/v1/completions", CHAT)
            await ticks()
            assert asyncio.all_tasks() - before  # it connects
            await hang_up(node, answer)
            await ticks()
            assert not asyncio.all_tasks() - before


async def hang_up(node: NodeAlone, answer: Any) -> None:
    """Let the user go; the node has nothing to do then."""
    answer.stream.reset(Code.CANCELLED, "gone")
    async with asyncio.timeout(10):
        await node.forwarder.idle()
    await answer.over()
    assert (node.forwarder.active, node.engine.active) == (0, 0)


async def ticks() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


async def test_a_connection_with_the_rest_of_an_answered_request_is_not_used_again(
    engine: HoldingEngine, node: NodeAlone
) -> None:
    """An engine that refuses a body without reading it, and never reads it."""
    engine.reads.clear()
    refused = HEAD % (b"413 Too Large", 2) + b"{}"
    engine.answers = [refused, refused]
    for _ in range(2):
        answer = await node.ask(
            "/api/chat", {**CHAT, "messages": [{"role": "user", "content": "x" * LARGE}]}
        )
        assert answer.status == 413
    engine.reads.set()
    await engine.left()
