"""The most that a node sends: real answers through a real fabric."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from fabric_client.proxy.forwarder import UNLIMITED
from fabric_client.proxy.upload_limit import PIECE, UploadLimit
from tests.engine import Plan, ScriptedEngine
from tests.fabric import Fabric

CHAT = "/v1/chat/completions"


async def test_answers_share_the_limit_and_arrive_whole(tmp_path: Path) -> None:
    # 8 answers of 20 KB, one second's worth at once, and the rest at 64 KiB a second.
    text = "x" * 200
    async with ScriptedEngine() as engine, Fabric(tmp_path) as fabric:
        engine.plan = Plan(chunks=[text] * 50)
        await fabric.join(engine.url, slots=8, upload_limit=64 * 1024)

        async def ask(number: int) -> int:
            body = {"model": "tiny", "messages": [], "stream": True}
            async with fabric.user() as session, session.post(CHAT, json=body) as answer:
                assert answer.status == 200
                whole = await answer.read()
                assert whole.endswith(b"data: [DONE]\n\n")
                assert whole.count(text.encode()) == 50
                return len(whole)

        began = time.monotonic()
        async with asyncio.timeout(30):
            sizes = await asyncio.gather(*map(ask, range(8)))
        took = time.monotonic() - began
        assert took > (sum(sizes) - (64 + 16) * 1024) / (64 * 1024)
        # Its connections to the engine are used again, though an answer's end came while it was
        # held back.
        async with asyncio.timeout(30):
            assert await asyncio.gather(*map(ask, range(8)))


async def test_an_answer_that_is_held_back_can_be_cancelled(tmp_path: Path) -> None:
    async with ScriptedEngine() as engine, Fabric(tmp_path) as fabric:
        engine.plan = Plan(chunks=["x" * 1000] * 1000)
        await fabric.join(engine.url, upload_limit=64 * 1024)
        body = {"model": "tiny", "messages": [], "stream": True}
        async with fabric.user() as session, session.post(CHAT, json=body) as answer:
            await answer.content.readany()
        await (await engine.started()).aborted()


async def test_a_limit_that_is_changed_holds_for_answers_that_wait() -> None:
    loop = asyncio.get_running_loop()
    limit = UploadLimit(PIECE, clock=loop.time, call_later=loop.call_later)
    woken = asyncio.Event()

    class Waiting:
        def may_send(self) -> None:
            woken.set()

    waiting = Waiting()
    limit.sent(1000 * PIECE)
    assert not limit.allows(waiting)
    limit.change(2 * PIECE)
    assert not limit.allows(waiting)
    limit.change(UNLIMITED)
    async with asyncio.timeout(5):
        await woken.wait()
    assert limit.allows(waiting)
    limit.close()
