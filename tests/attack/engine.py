"""The engine of the fabric under attack, in a process of its own: its work is no one's delay.

python -m tests.attack.engine      prints its URL
"""

from __future__ import annotations

import asyncio
from typing import Any

from tests.engine import BusyEngine, Json, Plan


def reply(asked: Json) -> Plan:
    """Return what is answered to users and attackers; a long question gets a long answer."""
    if asked.get("model") == "slow":
        return Plan(chunks=("a", "b"), first_byte_delay=0.5)
    if _is_long(asked.get("messages")):
        return Plan(chunks=(LONG,) * 100)
    return Plan(chunks=("Hello", " there"))


LONG = "word " * 5000
"""A chunk of a long answer, which is as long as a hundred of them."""


def _is_long(messages: Any) -> bool:
    return bool(messages) and len(messages[0]["content"]) >= len(LONG)


class AttackedEngine(BusyEngine):
    large = 64 * 1024

    def __init__(self) -> None:
        super().__init__(models=("tiny", "slow", "other"), ollama=True)
        self.reply = reply


async def main() -> None:
    async with AttackedEngine() as engine:
        print(engine.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
