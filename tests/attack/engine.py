"""The engine of the fabric under attack, in a process of its own: its work is no one's delay.

python -m tests.attack.engine      prints its URL
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from tests.engine import Plan, ScriptedEngine

LARGE = 64 * 1024
"""Bytes from which a body is taken in and answered without being parsed, as by an engine that
parses in another thread."""


def reply(asked: dict[str, Any]) -> Plan:
    if asked.get("model") == "slow":
        return Plan(chunks=("a", "b"), first_byte_delay=0.5)
    return Plan(chunks=("Hello", " there"))


class AttackedEngine(ScriptedEngine):
    def __init__(self) -> None:
        super().__init__(models=("tiny", "slow", "other"), ollama=True)
        self.reply = reply

    async def _infer(self, http: web.Request) -> web.StreamResponse:
        self.requests.clear()  # nobody asks for them, and they hold bodies
        if (http.content_length or LARGE) < LARGE:
            return await super()._infer(http)
        while await http.content.readany():
            pass
        return web.json_response({"choices": [], "usage": {"prompt_tokens": 1}})


async def main() -> None:
    async with AttackedEngine() as engine:
        print(engine.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
