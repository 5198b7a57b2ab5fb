"""A node asks its engine for offered models only, and tells nothing of the others and of places."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fabric_client.engines.discovery import EngineSettings
from fabric_client.offer.patterns import EVERYTHING, Offer
from fabric_client.translation.paths import PUBLIC_PATHS
from protocol import messages
from protocol.errors import Code
from tests.node_alone import NodeAlone

OFFER = Offer(["*", "!*private"])
PLACE = "/home/joe/models/tiny.gguf"


class ListedEngine:
    """A scripted engine that lists these models, and repeats what it was asked for: a fake, since
    no engine has every path."""

    def __init__(self, kind: str, *models: str) -> None:
        self.kind = kind
        self.models = models
        self.asked: list[tuple[str, bytes]] = []
        self.url = ""
        self.answer: tuple[str, bytes] | None = None

    def _document(self, path: str) -> Any:
        names = [{"name": name, "model": name, "size": 1} for name in self.models]
        rows = [{"id": name, "root": name, "object": "model"} for name in self.models]
        return {
            "/api/version": {"version": "0.20.0"},
            "/api/tags": {"models": names},
            "/api/ps": {"models": names},
            "/v1/models": {"object": "list", "data": rows},
            "/openapi.json": {"paths": {path: {"post": {}} for path in PUBLIC_PATHS}},
            "/health": {},
        }.get(path, {"error": "none"})

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ")[1].decode()
        if head.startswith(b"GET"):
            status, kind, body = (
                "200 OK",
                "application/json",
                json.dumps(self._document(path)).encode(),
            )
        else:
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
            asked = await reader.readexactly(int(length))
            self.asked.append((path, asked))
            status, kind = "200 OK", "application/json"
            if self.answer is not None:
                status, body = self.answer
            else:
                name = json.loads(asked).get("model")
                message = {"role": "assistant", "content": f"I am {name}"}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                body = json.dumps(
                    {"id": "a", "model": name, "choices": [choice], "count": 3}
                ).encode()
                if b'"stream":true' in asked.replace(b" ", b""):
                    kind = "text/event-stream"
                    delta = {"index": 0, "delta": message, "finish_reason": "stop"}
                    event = json.dumps({"id": "a", "model": name, "choices": [delta]})
                    body = f"data: {event}\n\ndata: [DONE]\n\n".encode()
        lines = [
            f"HTTP/1.1 {status}",
            f"content-type: {kind}",
            f"content-length: {len(body)}",
            "",
            "",
        ]
        writer.write("\r\n".join(lines).encode() + body)
        writer.close()


@asynccontextmanager
async def listed(
    kind: str, *models: str, offer: Offer = OFFER
) -> AsyncIterator[tuple[ListedEngine, NodeAlone]]:
    engine = ListedEngine(kind, *models)
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    engine.url = f"{kind}=http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with NodeAlone(engine.url, offer) as node:
        yield engine, node
    server.close()


def request_to(path: str, model: str) -> dict[str, Any]:
    texts = {"prompt": "hi", "input": "hi", "query": "hi", "documents": ["a"], "content": "hi"}
    return {
        "model": model,
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 9,
        **texts,
    }


FORM = (
    b'--xyz\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n'
    b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n'
    b"--xyz--\r\n"
)
FORM_TYPE = [("content-type", "multipart/form-data; boundary=xyz")]


@pytest.mark.parametrize("kind", ["ollama", "vllm", "openai"])
async def test_no_path_reaches_a_model_that_is_held_back(kind: str) -> None:
    async with listed(kind, "open:latest", "my-private:latest") as (engine, node):
        assert [model.name for model in node.engine.report.models] == ["open:latest"]
        paths = sorted(node.engine.path_handlers)
        assert len(paths) > 8
        for path in paths:
            for name in ("my-private:latest", "my-private", "MY-PRIVATE", "nobody/knows"):
                if path.startswith("/v1/audio/tr"):
                    asked = await node.ask(path, FORM % name.encode(), headers=FORM_TYPE)
                elif path == "/api/show":
                    asked = await node.ask(path, {"name": name})
                else:
                    asked = await node.ask(path, request_to(path, name))
                assert asked.reset is not None, (path, name)
                assert asked.reset[0] == Code.REFUSED
                assert "private" not in asked.reset[1]
        assert engine.asked == []
        assert node.forwarder.active == 0
        assert (await node.ask("/v1/completions", request_to("", "open:latest"))).status == 200


async def test_ollama_runs_nothing_that_it_does_not_list() -> None:
    async with listed("ollama", "open:latest", "big:cloud", offer=EVERYTHING) as (engine, node):
        asked = await node.ask("/v1/chat/completions", request_to("", "big:cloud"))
        assert asked.reset is not None
        assert engine.asked == []
        assert (await node.ask("/api/chat", request_to("", "open"))).status == 200


async def test_a_report_says_nothing_of_what_is_held_back() -> None:
    async with listed("ollama", "open:latest", "my-private:latest") as (_, node):
        assert b"private" not in messages.encode(node.engine.report)
        assert [one.name for one in node.engine.offered.held_back] == ["my-private:latest"]


@pytest.mark.parametrize("patterns", [[], ["nothing*"]])
async def test_an_empty_choice_offers_nothing(patterns: list[str]) -> None:
    async with listed("ollama", "open:latest", offer=Offer(patterns)) as (engine, node):
        assert node.engine.report.models == []
        assert (await node.ask("/api/chat", request_to("", "open"))).reset is not None
        assert engine.asked == []


async def test_a_change_of_the_offer_holds_at_once() -> None:
    async with listed("openai", "open", "other", offer=EVERYTHING) as (_, node):
        assert (await node.ask("/v1/completions", request_to("", "other"))).status == 200
        node.engine.change_settings(EngineSettings(offer=Offer(["open"])))
        assert [model.name for model in node.engine.report.models] == ["open"]
        assert (await node.ask("/v1/completions", request_to("", "other"))).reset is not None


async def test_an_adapter_can_t_be_asked_for_beside_the_model() -> None:
    async with listed("vllm", "open", "my-private") as (engine, node):
        body = {**request_to("", "open"), "lora": [{"id": 0, "scale": 1.0}]}
        refused = await node.ask("/v1/chat/completions", body)
        assert refused.status == 400
        assert "'lora'" in refused.json["error"]["message"]
        assert engine.asked == []


ERROR = json.dumps({"error": f"no such model; there are open, my-private and {PLACE}"}).encode()


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/chat/completions", "/v1/messages", "/api/chat"]
)
@pytest.mark.parametrize("status", ["404 Not Found", "500 Oops", "200 OK"])
async def test_an_engine_s_error_does_not_list_what_is_held_back(path: str, status: str) -> None:
    async with listed("openai", "open", "my-private") as (engine, node):
        engine.answer = status, ERROR
        told = await node.ask(path, request_to("", "open"))
        assert b"private" not in told.body
        assert b"joe" not in told.body
        assert b"(not offered)" in told.body


async def test_an_error_of_any_engine_tells_no_place_on_the_owner_s_disk() -> None:
    async with listed("openai", "open", offer=EVERYTHING) as (engine, node):
        engine.answer = "500 Oops", b'{"error":{"message":"can\'t open /home/joe/x/y.gguf"}}'
        told = await node.ask("/v1/completions", request_to("", "open"))
        assert told.json["error"]["message"] == "can't open y"


JSON_PATHS = sorted(
    path for path in PUBLIC_PATHS
    if not path.startswith(("/api/show", "/v1/audio/", "/v1/messages/"))
)  # fmt: skip


@pytest.mark.parametrize("path", JSON_PATHS)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_file_is_asked_for_by_its_place_and_answers_by_its_name(
    path: str, stream: bool
) -> None:
    async with listed("vllm", PLACE, offer=EVERYTHING) as (engine, node):
        assert [model.name for model in node.engine.report.models] == ["tiny"]
        asked = await node.ask(path, {**request_to(path, "tiny"), "stream": stream})
        assert asked.reset is None
        assert json.loads(engine.asked[-1][1])["model"] == PLACE
        told = asked.body.replace(f"I am {PLACE}".encode(), b"")
        told = told.replace(f"I am {PLACE}".encode().replace(b"/", b"\\/"), b"")
        assert b"/home" not in told
        if asked.status == 200 and b'"model"' in told:
            assert b'"model":"tiny"' in told.replace(b'": ', b'":')


async def test_a_form_is_sent_with_the_place() -> None:
    async with listed("vllm", PLACE, offer=EVERYTHING) as (engine, node):
        engine.answer = "200 OK", b'{"text":"hello"}'
        told = await node.ask("/v1/audio/transcriptions", FORM % b"tiny", headers=FORM_TYPE)
        assert told.json == {"text": "hello"}
        assert PLACE.encode() in engine.asked[-1][1]


async def test_count_tokens_asks_by_the_place() -> None:
    async with listed("vllm", PLACE, offer=EVERYTHING) as (engine, node):
        told = await node.ask("/v1/messages/count_tokens", request_to("", "tiny"))
        assert told.status == 200
        assert {json.loads(body)["model"] for _, body in engine.asked} == {PLACE}


async def test_an_adapter_s_base_and_place_are_not_reported() -> None:
    async with listed("vllm", "/srv/joe/base", "lora-a", offer=EVERYTHING) as (_, node):
        assert b"joe" not in messages.encode(node.engine.report)
