"""Servers that take over from one another, with the same data and ports.

async with Servers(tmp_path) as servers:
    successor = servers.successor()
    await successor.start()
    assert await servers.server.ended() == 0
"""

from __future__ import annotations

import asyncio
import sys

from tests.stack import Alone


class Servers(Alone):
    """A server, and successors."""

    @property
    def url(self) -> str:
        return f"{self.public}/v1/chat/completions"

    async def key(self) -> str:
        made = await self.command("keys", "create", "alice")
        return str(made["text"])

    async def fails(self, *words: str) -> str:
        """Run a command that must fail with exit code 2; return its error."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "fabric_server",
            *words,
            env=self.environ,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, error = await process.communicate()
        assert process.returncode == 2, error.decode()
        return error.decode()
