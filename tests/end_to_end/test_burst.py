"""A thousand requests at once, on a node that has only just come."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

from aiohttp import web

from tests.fabric import Fabric
from tests.site import ASK, CHAT
from tests.users import MemoryUser, request

BURST = 1000
SLOTS = 1100


class Patient:
    """An engine that answers nobody until it has everybody's request."""

    def __init__(self, everybody: int) -> None:
        self._everybody = everybody
        self.here = 0
        self._all_here = asyncio.Event()

    async def models(self, asked: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    async def chat(self, asked: web.Request) -> web.Response:
        await asked.read()
        self.here += 1
        if self.here == self._everybody:
            self._all_here.set()
        await self._all_here.wait()
        return web.json_response(
            {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
        )

    async def start(self) -> tuple[web.AppRunner, str]:
        app = web.Application()
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/chat/completions", self.chat)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=2 * BURST).start()
        return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


async def test_a_burst_that_fits_into_the_slots_of_a_fresh_node_is_not_refused(
    tmp_path: Path,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if 0 < hard < 8192 else 8192, hard))
    runner, url = await Patient(BURST).start()
    asyncio.get_running_loop().set_debug(False)  # it would take a traceback per callback
    try:
        async with Fabric(tmp_path) as fabric:
            await fabric.join(url, slots=SLOTS)
            ask = request("POST", CHAT, ASK, authorization=f"Bearer {fabric.key}")
            users = [MemoryUser(fabric.app.data_plane.edge) for _ in range(BURST)]
            for user in users:
                user.send(ask)
            async with asyncio.timeout(60):
                while any(not user.received for user in users):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)  # many users' events
            answers = [await user.answer() for user in users]
            assert {answer.status for answer in answers} == {200}
            for user in users:
                user.hang_up()
    finally:
        await runner.cleanup()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
