"""The server that the tests of the API port ask."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import aiohttp
import pytest

from fabric_server.app import App
from fabric_server.config import Config
from tests.server.admin.server import Server


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    config = Config(
        data=tmp_path / "data",
        host=("127.0.0.1",),
        address=("127.0.0.1",),
        control_port=0,
        proxy_port=0,
        public_port=0,
        api_port=0,
        drain_seconds=0.1,
    )
    app = App(config, rng=Random(1))
    try:
        await app.start()
        async with aiohttp.ClientSession() as session:
            server = Server(app, session, tmp_path)
            await server.prepare()
            yield server
    finally:
        await app.stop()
