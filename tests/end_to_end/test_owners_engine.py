"""What users may not change of a real Ollama, and how its context is told."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.fabric import Fabric
from tests.lab.ollama import OllamaServer

OPTIONS = {"num_ctx": 200, "num_gpu": 0, "num_thread": 1, "num_batch": 7, "num_predict": 2}
MESSAGES = [{"role": "user", "content": "hi"}]
DEFAULT = 4096
"""``OLLAMA_CONTEXT_LENGTH`` of the tests' Ollama."""
BODIES: list[tuple[str, dict[str, Any] | str]] = [
    ("/api/chat", {"messages": MESSAGES, "stream": False, "options": OPTIONS}),
    ("/api/chat", {"messages": MESSAGES, "stream": False, "Options": OPTIONS, "KEEP_ALIVE": 0}),
    ("/api/generate", {"prompt": "hi", "stream": False, "options": OPTIONS, "keep_alive": 0}),
    ("/api/embed", {"input": "hi", "options": OPTIONS}),
    ("/api/embeddings", {"prompt": "hi", "options": OPTIONS}),
    (
        "/v1/chat/completions",
        {"messages": MESSAGES, "max_tokens": 2, "options": OPTIONS, **OPTIONS},
    ),
    ("/api/chat", '"messages":[],"stream":false,"options":{},"option\\u017f":{"num_ctx":200}'),
    ("/api/embed", '"input":"a","options":{"num_ctx":200},"options":{"num_\\u0063tx":200}'),
]


def loaded(ollama: OllamaServer) -> list[int]:
    """The contexts of the models in its memory."""
    with urllib.request.urlopen(f"{ollama.url}/api/ps", timeout=5) as answer:
        return [row["context_length"] for row in json.load(answer)["models"]]


async def ask(fabric: Fabric, path: str, body: dict[str, Any] | str, model: str) -> int:
    named = json.dumps({"model": model})
    data = (
        json.dumps({"model": model, **body})
        if isinstance(body, dict)
        else named[:-1] + f",{body}}}"
    )
    headers = {"content-type": "application/json"}
    async with (
        fabric.user() as user,
        user.post(fabric.public + path, data=data, headers=headers) as said,
    ):
        await said.read()
        return said.status


async def context_told(fabric: Fabric) -> int:
    async with fabric.user() as user, user.get(f"{fabric.public}/v1/models") as answer:
        (card,) = (await answer.json())["data"]
        return int(card["context_window"])


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_no_user_loads_an_ollama_s_model_anew(
    tmp_path: Path, ollama: OllamaServer, path: str, body: dict[str, Any] | str
) -> None:
    async with Fabric(tmp_path) as fabric:
        await fabric.join(ollama.url)
        for _ in range(2):
            assert await ask(fabric, path, body, ollama.model) == 200
            assert await asyncio.to_thread(loaded, ollama) == [DEFAULT]
        fabric.nodes[0].supervisor.poke()
        assert await context_told(fabric) >= DEFAULT


async def test_a_context_is_bounded_and_told_as_the_owner_has_set_it(
    tmp_path: Path, ollama: OllamaServer
) -> None:
    async with Fabric(tmp_path) as fabric:
        node = await fabric.join(ollama.url, max_num_ctx=2048)
        for asked, got in ((200, 200), (1_000_000, 2048)):
            body = {"messages": MESSAGES, "stream": False, "options": {**OPTIONS, "num_ctx": asked}}
            assert await ask(fabric, "/api/chat", body, ollama.model) == 200
            assert await asyncio.to_thread(loaded, ollama) == [got]
            node.supervisor.poke()
            assert await context_told(fabric) == 2048


async def test_a_modelfile_s_context_is_told_before_the_model_is_loaded(
    tmp_path: Path, ollama: OllamaServer
) -> None:
    recipe = tmp_path / "Modelfile"
    recipe.write_text(f"FROM {ollama.model}\nPARAMETER num_ctx 777\n")
    await asyncio.to_thread(ollama.call, "create", "set", "-f", str(recipe))
    try:
        async with Fabric(tmp_path) as fabric:
            await fabric.join(ollama.url, models=("set",))
            assert await context_told(fabric) == 777
            [node] = fabric.app.control_plane.registry.nodes()
            assert node.engines["ollama"].models["set:latest"].capabilities == ["completion"]
    finally:
        await asyncio.to_thread(ollama.call, "rm", "set")
