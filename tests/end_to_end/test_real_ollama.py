"""A node in front of a real Ollama: discovered, used, and billed in the ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from protocol.weights import parse_digest
from tests.fabric import Fabric
from tests.lab.ollama import OllamaServer

MESSAGES: Any = [{"role": "user", "content": "Tell me about Python."}]


@pytest.fixture
async def fabric(tmp_path: Path, ollama: OllamaServer) -> AsyncIterator[Fabric]:
    async with Fabric(tmp_path) as fabric:
        await fabric.join(ollama.url)
        yield fabric


async def test_it_is_found_out_by_itself(fabric: Fabric, ollama: OllamaServer) -> None:
    [node] = fabric.app.control_plane.registry.nodes()
    [engine] = node.engines.values()
    assert engine.kind == "ollama"
    assert list(engine.models) == [ollama.model]
    model = engine.models[ollama.model]
    assert model.size
    assert parse_digest(model.digest) == model.digest != ""
    assert model.format == "gguf"
    async with fabric.openai() as client:
        [card] = (await client.models.list()).data
        assert (card.model_extra or {})["digest"] == model.digest
        headers = {"x-fabric-digest": f"sha256:{model.digest}"}
        answer = await client.chat.completions.create(
            model=ollama.model, messages=MESSAGES, max_tokens=2, extra_headers=headers
        )
        assert answer.choices
        with pytest.raises(openai.NotFoundError, match=model.digest[:12]):
            await client.chat.completions.create(
                model=ollama.model,
                messages=MESSAGES,
                extra_headers={"x-fabric-digest": "0" * 12},
            )


async def test_what_it_counts_is_in_the_ledger(fabric: Fabric, ollama: OllamaServer) -> None:
    async with fabric.openai() as client:
        answer = await client.chat.completions.create(
            model=ollama.model, messages=MESSAGES, max_tokens=12, temperature=0
        )
        assert answer.usage is not None
        stream = await client.chat.completions.create(
            model=ollama.model, messages=MESSAGES, max_tokens=12, temperature=0, stream=True
        )
        streamed = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert text == answer.choices[0].message.content
    for entry in await fabric.ledger():
        assert entry.outcome == "ok"
        assert entry.prompt_tokens == answer.usage.prompt_tokens
        assert entry.completion_tokens == answer.usage.completion_tokens
