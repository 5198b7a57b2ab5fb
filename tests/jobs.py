"""Helpers for tests of jobs: keys of other accounts, waiting, and a client of ``/inference``."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import aiohttp

from fabric_server.auth.keys import NewKey, mint
from tests.fabric import Fabric


async def new_key(fabric: Fabric, account: str) -> NewKey:
    new = mint("user", now=time.time(), account=account)
    await fabric.app.backends.store.create_key(new.row)
    return new


async def stranger(fabric: Fabric) -> aiohttp.ClientSession:
    """Return a client of another account."""
    return fabric.user((await new_key(fabric, "another")).text)


async def eventually(condition: Callable[[], bool], timeout: float = 20.0) -> None:
    """Wait for a condition that has no event."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class User:
    """A plain HTTP client that waits while the server is away."""

    def __init__(
        self, url: str, key: str, session: aiohttp.ClientSession, trust: Any = None
    ) -> None:
        self._url = url
        self._headers = {"authorization": f"Bearer {key}"}
        self._session = session
        self._trust = trust

    async def __aenter__(self) -> User:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._session.close()

    async def ask(self, method: str, path: str, **options: Any) -> Any:
        """Send a request, again and again until it succeeds."""
        if self._trust is not None:
            options["ssl"] = self._trust
        while True:
            try:
                async with self._session.request(
                    method, self._url + path, headers=self._headers, **options
                ) as answer:
                    data = await answer.read()
                    if answer.status < 500:
                        assert answer.status < 300, data
                        return data
            except (aiohttp.ClientError, ConnectionError):
                pass
            await asyncio.sleep(0.1)

    async def status(self, path: str) -> int:
        async with self._session.get(
            self._url + path, headers=self._headers, ssl=self._trust
        ) as answer:
            return answer.status

    async def submit(self, number: int) -> None:
        body = {"model": "tiny", "prompt": f"job {number}", "id": f"job-{number}", "async": True}
        await self.ask("POST", "/inference", json=body)

    async def result(self, number: int) -> str:
        while True:
            view = json.loads(await self.ask("GET", f"/inference/job-{number}"))
            if "response" in view:
                text: str = view["response"]
                return text
            assert view["status"] in ("queued", "processing"), view
            await asyncio.sleep(0.1)

    async def batch(self, lines: int) -> str:
        text = "\n".join(
            json.dumps(
                {
                    "custom_id": f"{n}",
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": {
                        "model": "tiny",
                        "messages": [{"role": "user", "content": f"line {n}"}],
                    },
                }
            )
            for n in range(lines)
        )
        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        form.add_field("file", text.encode(), filename="in.jsonl")
        file = json.loads(await self.ask("POST", "/v1/files", data=form))
        new_batch = {
            "input_file_id": file["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        id: str = json.loads(await self.ask("POST", "/v1/batches", json=new_batch))["id"]
        return id

    async def ended(self, batch: str) -> Any:
        while True:
            view = json.loads(await self.ask("GET", f"/v1/batches/{batch}"))
            if view["status"] not in ("validating", "in_progress", "finalizing"):
                assert view["status"] == "completed", view
                return view
            await asyncio.sleep(0.1)

    async def rows(self, file: str) -> list[Any]:
        data = await self.ask("GET", f"/v1/files/{file}/content")
        return [json.loads(line) for line in data.splitlines()]
