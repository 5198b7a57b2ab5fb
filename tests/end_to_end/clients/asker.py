"""A client in a process of its own; requests go to it as lines of JSON.

    async with Asker(command, environ) as asker:
        async for line in asker.ask(do="chat", model="tiny", stream=True):
            line                       # {"text": "Hel"}, …, {"done": {…}} or {"error": {…}}

One line in is one request; the lines out come as the client gets its answer, and the last of each
has ``done`` or ``error``.
"""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from tests.end_to_end.clients.place import PATIENCE

Json = dict[str, Any]
START_PATIENCE = 60.0


class Asker:
    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._command = command
        self._environ = environ
        self._process: Process

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=PIPE, stdout=PIPE, env=self._environ
        )
        async with asyncio.timeout(START_PATIENCE):
            assert "ready" in await self._line()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(PATIENCE):
                code = await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
            raise
        assert code == 0

    async def ask(self, **request: Any) -> AsyncIterator[Json]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        async with asyncio.timeout(PATIENCE):
            while True:
                line = await self._line()
                yield line
                if line.keys() & {"done", "error"}:
                    return

    async def answer(self, **request: Any) -> Json:
        """Return its last answer; fail the test if that is an error."""
        *_, last = [line async for line in self.ask(**request)]
        assert "error" not in last, last
        done: Json = last["done"]
        return done

    async def error(self, **request: Any) -> Json:
        *_, last = [line async for line in self.ask(**request)]
        error: Json = last["error"]
        return error

    async def _line(self) -> Json:
        assert self._process.stdout is not None
        encoded = await self._process.stdout.readline()
        assert encoded, "the client has ended"
        line: Json = json.loads(encoded)
        return line
