"""No URL of a user's reaches an engine, over real sockets, also from a batch."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

from tests.engine import ScriptedEngine
from tests.fabric import Fabric
from tests.media_server import PNG, MediaServer

DATA = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


def chat(url: str) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": url}}]
    return {"model": "tiny", "messages": [{"role": "user", "content": content}]}


async def test_an_engine_gets_data_or_nothing(tmp_path: Path) -> None:
    async with (
        MediaServer() as server,
        ScriptedEngine() as engine,
        Fabric(tmp_path, media_private=True) as fabric,
    ):
        await fabric.join(engine.url)
        async with fabric.user() as user:
            async with user.post("/v1/chat/completions", json=chat(server.url())) as answer:
                assert answer.status == 200, await answer.text()
            (request,) = engine.requests
            assert request.json == chat(DATA)
            assert [one.path for one in server.asked] == ["/a.png"]
            async with user.post("/v1/chat/completions", json=chat("file:///etc/hosts")) as answer:
                assert answer.status == 400
                assert (await answer.json())["error"]["code"] == "media_refused"
        assert len(engine.requests) == 1


async def test_the_servers_own_network_is_out_of_reach_also_from_a_batch(tmp_path: Path) -> None:
    async with MediaServer() as server, ScriptedEngine() as engine, Fabric(tmp_path) as fabric:
        await fabric.join(engine.url)
        async with fabric.openai() as client:
            line = {"method": "POST", "url": "/v1/chat/completions"}
            urls = (server.url(), DATA, server.url(host="localhost"))
            lines = [
                json.dumps({**line, "custom_id": str(number), "body": chat(url)})
                for number, url in enumerate(urls)
            ]
            file = await client.files.create(
                file=("lines.jsonl", "\n".join(lines).encode()), purpose="batch"
            )
            batch = await client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            async with asyncio.timeout(30):
                while batch.status != "completed":
                    await asyncio.sleep(0.05)
                    batch = await client.batches.retrieve(batch.id)
            assert batch.request_counts is not None
            assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 2)
            assert batch.error_file_id is not None
            errors = (await client.files.content(batch.error_file_id)).text
            assert errors.count("media_refused") == 2
        assert [one.json for one in engine.requests] == [chat(DATA)]
        assert server.asked == []
