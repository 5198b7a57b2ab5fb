"""The server, the node and the engine that the suites ask, all real programs.

The suites name models of OpenAI and Anthropic; aliases of the server stand for them.  One engine is
scripted: the tiny model of the real one neither calls tools nor sees images.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.engine import Plan, ScriptedEngine
from tests.lab.llama import LlamaServer
from tests.stack import Alone

MODEL = "tiny"
SCRIPTED = "scripted"
"""Calls the first tool that it is offered, unless it has got a result, and takes images."""
NAMES = ("gpt-*", "text-embedding-*", "claude-*", "model_id")
PATIENCE = 30.0
"""Seconds until the node serves its model."""


@dataclass(frozen=True)
class Place:
    url: str
    """Without TLS, as peers on loopback may ask."""
    key: str
    limited_key: str
    """Allows one request a minute."""
    directory: Path


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Place]:
    """Start all of them, and yield the place when the model answers."""
    engine = LlamaServer(options=("--seed", "7", "--predict", "400"))
    aliases = ",".join(f"{name}={MODEL}" for name in NAMES)
    scripted = ScriptedEngine([SCRIPTED])
    scripted.reply = _called
    try:
        await asyncio.to_thread(engine.start)
        async with scripted, Alone(directory, aliases=aliases, stored_days="1") as stack:
            await stack.join(f"llama-server={engine.url}", "suites")
            await stack.join(f"openai={scripted.url}", "scripted")
            key = (await stack.command("keys", "create", "suites"))["text"]
            words = ("keys", "create", "limited", "--requests-per-minute", "1")
            limited = (await stack.command(*words))["text"]
            url = stack.public.replace("https:", "http:")
            await _served(url, key)
            yield Place(url, key, limited, directory)
    finally:
        await asyncio.to_thread(engine.stop)


def _called(body: dict[str, Any]) -> Plan:
    answered = body["messages"][-1]["role"] == "tool"
    if not body.get("tools") or answered:
        return Plan()
    return Plan(chunks=(), tools=((body["tools"][0]["function"]["name"], {"city": "Bern"}),))


async def _served(url: str, key: str) -> None:
    headers = {"authorization": f"Bearer {key}"}
    async with asyncio.timeout(PATIENCE), aiohttp.ClientSession(url, headers=headers) as session:
        while True:
            async with session.get("/v1/models") as answer:
                found = {model["id"] for model in (await answer.json())["data"]}
            if {MODEL, SCRIPTED} <= found:
                return
            await asyncio.sleep(0.05)  # nothing tells users that a model has come
