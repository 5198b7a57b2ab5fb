"""A server whose file descriptors are used up by strangers."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from tests.engine import ScriptedEngine
from tests.programs import ready, running
from tests.stack import Alone

DESCRIPTORS = 128


def test_strangers_that_use_up_all_descriptors_end_no_server(tmp_path: Path) -> None:
    limited = (sys.executable, "-m", "tests.attack.limited", str(DESCRIPTORS))
    flags = [f"--{name}-port=0" for name in ("control", "proxy", "public", "api")]
    own = ("up", "--json", "--host=127.0.0.1", "--data", str(tmp_path / "server"), "--log-json")
    with running((*limited, *own, *flags)) as server:
        ports = ready(server)["ports"]
        with ExitStack() as strangers:
            until = time.monotonic() + 3  # longer than any part of the housekeeping waits
            while time.monotonic() < until:
                with contextlib.suppress(OSError):
                    stranger = socket.create_connection(("127.0.0.1", ports["public"]), timeout=1)
                    strangers.enter_context(stranger)
                    stranger.send(b"GET")
                time.sleep(0.01)  # the attack lasts for as long as the loop does
            assert server.process.poll() is None, server.lines
        answer = None
        while answer is None:
            connection = http.client.HTTPConnection("127.0.0.1", ports["api"], timeout=10)
            with contextlib.closing(connection), contextlib.suppress(ConnectionError):
                connection.request("GET", "/health/live")
                answer = connection.getresponse().status
        assert answer == 200
        assert server.process.poll() is None


class Few(Alone):
    server_words = ("tests.attack.limited", "256", "up")


async def test_while_strangers_hold_all_places_nodes_come_back_and_users_go_on(
    tmp_path: Path,
) -> None:
    question = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
    shed = asyncio.Event()

    async def stranger(port: int) -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(b"GET")
                    await reader.read()
                    shed.set()  # its place was given to another, so that all are taken
                finally:
                    writer.transport.abort()
            await asyncio.sleep(0.5)  # or the test itself would be all the machine does

    async with (
        Few(tmp_path) as stack,
        ScriptedEngine(models=("tiny",)) as engine,
        stack.session() as users,
    ):
        node = await stack.join(engine.url)
        keys = [
            {"authorization": f"Bearer {(await stack.command('keys', 'create', name))['text']}"}
            for name in ("old", "new")
        ]
        url = f"{stack.public}/v1/chat/completions"
        async with users.post(url, json=question, headers=keys[0]) as answer:
            assert answer.status == 200
        strangers = [asyncio.create_task(stranger(stack.ports["public"])) for _ in range(300)]
        try:
            async with asyncio.timeout(60), stack.session() as others:
                await shed.wait()
                await node.kill()
                await node.start()  # until it is registered
                for user, key in ((users, keys[0]), (others, keys[1])):
                    status = 503  # until the node has tunnels again
                    while status == 503:
                        async with user.post(url, json=question, headers=key) as answer:
                            status = answer.status
                    assert status == 200
                async with others.get(f"{stack.api}/health/ready") as health:
                    assert health.status == 200
                    assert (await health.json())["checks"]["nodes"] == 1
        finally:
            for one in strangers:
                one.cancel()
            await asyncio.gather(*strangers, return_exceptions=True)
