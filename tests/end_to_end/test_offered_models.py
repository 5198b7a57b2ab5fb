"""What a node offers, seen from outside, with a real llama-server without an alias."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fabric import Fabric
from tests.lab.llama import LlamaServer
from tests.lab.make_tiny_gguf import tiny_gguf

NAME = tiny_gguf().stem
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaServer]:
    with LlamaServer(alias=False) as server:
        yield server


CALLS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 3}),
    ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 3, "stream": True}),
    ("/v1/chat/completions", {"messages": MESSAGES, "response_format": {"type": "nonsense"}}),
    ("/v1/completions", {"prompt": "hi", "max_tokens": 3}),
    ("/v1/completions", {"prompt": "hi", "max_tokens": 3, "stream": True}),
    ("/v1/embeddings", {"input": "hi"}),
    ("/v1/messages", {"messages": MESSAGES, "max_tokens": 3}),
    ("/v1/messages", {"messages": MESSAGES, "max_tokens": 3, "stream": True}),
    ("/v1/messages/count_tokens", {"messages": MESSAGES}),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 3}),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 3, "stream": True}),
    ("/api/chat", {"messages": MESSAGES, "options": {"num_predict": 3}}),
    ("/api/generate", {"prompt": "hi", "options": {"num_predict": 3}, "stream": False}),
    ("/api/embed", {"input": "hi"}),
    ("/api/show", {}),
    ("/tokenize", {"content": "hi"}),
]


async def test_the_place_of_a_model_is_in_no_answer(tmp_path: Path, llama: LlamaServer) -> None:
    folder = str(tiny_gguf().parent)
    async with Fabric(tmp_path) as fabric, fabric.user() as user:
        await fabric.join(llama.url)
        async with user.get("/v1/models") as listed:
            assert [model["id"] for model in (await listed.json())["data"]] == [NAME]
        for path, body in CALLS:
            async with user.post(path, json={"model": NAME, **body}) as answer:
                text = await answer.text()
            nonsense = "response_format" in body
            assert answer.status == (400 if nonsense else 200), (path, text)
            assert folder not in text.replace("\\/", "/"), path
            if '"model"' in text:
                assert json.dumps(NAME) in text, path
        for node in fabric.app.control_plane.registry.nodes():
            assert [list(engine.models) for engine in node.engines.values()] == [[NAME]]


async def test_what_is_held_back_is_not_listed_and_not_served(
    tmp_path: Path, llama: LlamaServer
) -> None:
    async with Fabric(tmp_path) as fabric, fabric.user() as user:
        await fabric.join(llama.url, models=("*", f"!{NAME}"))
        async with user.get("/v1/models") as listed:
            assert (await listed.json())["data"] == []
        body = {"model": NAME, "messages": MESSAGES}
        async with user.post("/v1/chat/completions", json=body) as answer:
            assert answer.status == 404
