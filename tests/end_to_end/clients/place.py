"""A server and four nodes for all client tests, all real programs.

``tests/stack.py`` runs them; each node has a model of its own, so that the model asked for says
which kind of node answers.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.end_to_end.clients.matrix import KINDS, SCRIPTED
from tests.engine import DIALECTS, Plan, ScriptedEngine
from tests.engine_vllm import VLLM
from tests.lab.llama import LlamaServer
from tests.lab.ollama import OllamaServer
from tests.stack import Alone

MODELS = {kind: f"tiny-{kind}" for kind in KINDS} | {"ollama": "tiny-ollama:latest"}
MESSAGES: Any = [{"role": "user", "content": "Tell me about Python."}]
HELLO = "Hello, world"
"""What the scripted engines say unless told otherwise."""
TOKENS = 16
PATIENCE = 20.0
"""Seconds until an answer that does not come fails its test."""
WEATHER: Any = {
    "name": "weather",
    "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
"""A tool, as OpenAI describes its functions."""
CALL = ("weather", {"city": "Oslo"})


@dataclass
class Place:
    url: str
    plain: str
    """Without TLS, for peers on loopback."""
    ca: Path
    key: str
    directory: Path
    engines: Mapping[str, ScriptedEngine]
    addresses: Mapping[str, str]
    """Where the engines are themselves, by kind."""
    ollama: OllamaServer
    stack: Alone

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca))

    def environ(self) -> dict[str, str]:
        """Return the environment that users set for their programs."""
        ours = ("FABRIC_", "OPENAI_", "ANTHROPIC_", "OLLAMA_", "PYTHON")
        others = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        return {
            **others,
            "FABRIC_URL": self.url,
            "FABRIC_KEY": self.key,
            "SSL_CERT_FILE": str(self.ca),
            "NODE_EXTRA_CA_CERTS": str(self.ca),
            "CURL_CA_BUNDLE": str(self.ca),
        }

    def script(self, kind: str, **plan: Any) -> None:
        """Set the answer of that scripted engine to its next request."""
        self.engines[kind].plans.append(Plan(**plan))

    def reset(self) -> None:
        for engine in self.engines.values():
            engine.plans.clear()

    def could_write(self, kind: str, text: str | None) -> bool:
        """Return whether an engine of that kind can have written this."""
        return text == HELLO if kind in SCRIPTED else bool(text)


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Place]:
    # Asked for its most likely answer to a chat, the model has nothing to say.
    llama = LlamaServer(options=("--ignore-eos", "--predict", "64"))
    ollama = OllamaServer(directory / "ollama", MODELS["ollama"])
    llama.model = MODELS["llama-server"]
    scripted = {
        "vllm": ScriptedEngine([MODELS["vllm"]], more=VLLM),
        "openai": ScriptedEngine([MODELS["openai"]]),
    }
    paths = {path: {"post": {}} for path in (*DIALECTS, *VLLM)}
    scripted["vllm"].probes |= {"/health": {}, "/openapi.json": {"paths": paths}}
    async with AsyncExitStack() as exits:
        for real in (llama, ollama):
            exits.callback(real.stop)
            await asyncio.to_thread(real.start)
        for engine in scripted.values():
            await exits.enter_async_context(engine)
        stack = await exits.enter_async_context(Alone(directory))
        addresses = {"llama-server": llama.url, "ollama": ollama.url}
        addresses |= {kind: engine.url for kind, engine in scripted.items()}
        async with asyncio.TaskGroup() as group:
            for kind, address in addresses.items():
                group.create_task(stack.join(f"{kind}={address}", kind))
        key = (await stack.command("keys", "create", "clients"))["text"]
        place = Place(
            url=stack.public,
            plain=stack.public.replace("https:", "http:"),
            ca=stack.data / "certs" / "ca.pem",
            key=key,
            directory=directory,
            engines=scripted,
            addresses=addresses,
            ollama=ollama,
            stack=stack,
        )
        await _all_served(place)
        yield place


async def _all_served(place: Place) -> None:
    headers = {"authorization": f"Bearer {place.key}"}
    async with (
        asyncio.timeout(PATIENCE),
        aiohttp.ClientSession(headers=headers) as session,
    ):
        while True:
            async with session.get(f"{place.plain}/v1/models") as answer:
                assert answer.status == 200, await answer.text()
                models = {model["id"] for model in (await answer.json())["data"]}
            if models >= set(MODELS.values()):
                return
            await asyncio.sleep(0.05)  # nothing tells users that a model has come
