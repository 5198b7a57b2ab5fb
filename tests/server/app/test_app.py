"""A server as a whole: what keeps it running."""

from __future__ import annotations

import asyncio
import mmap
from pathlib import Path

import pytest

from tests.fabric import Fabric


@pytest.mark.parametrize("bus", ["spool://", "memory://"])
async def test_a_server_runs_until_it_is_stopped(tmp_path: Path, bus: str) -> None:
    """No part of it ends by itself, whichever back ends it has."""
    async with Fabric(tmp_path, bus=bus) as fabric:
        await asyncio.sleep(0.1)
        assert fabric.running


async def test_a_server_that_uses_nearly_all_its_memory_refuses_requests_and_shows_it(
    tmp_path: Path,
) -> None:
    limit = 128 * 2**20
    with mmap.mmap(-1, limit) as memory:  # this process is the server's
        memory.write(b"x" * limit)
        async with Fabric(tmp_path, memory_limit=limit) as fabric:
            async with asyncio.timeout(5):
                while not fabric.app.data_plane.memory.closed:  # noqa: ASYNC110 - no event for it
                    await asyncio.sleep(0.01)
            question = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
            async with fabric.user() as user:
                async with user.post("/v1/chat/completions", json=question) as answer:
                    assert answer.status == 503
                    assert (await answer.json())["error"]["code"] == "overloaded"
                async with user.get(f"{fabric.api}/health/ready") as ready:
                    assert ready.status == 200
