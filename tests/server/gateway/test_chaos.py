"""Whatever nodes and clients do, every request ends once."""

from __future__ import annotations

import asyncio
import logging
from random import Random
from typing import Any

import pytest

from fabric_server.proxy.quantile import MIN_SAMPLES
from protocol.errors import Code
from tests.site import (
    ANSWER,
    ASK,
    CHAT,
    DONE,
    STREAM,
    Call,
    ScriptedNode,
    Site,
    chunk,
    usage_chunk,
)
from tests.users import request


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_nodes_and_users_do_every_request_ends_once(
    seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    heard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, said: heard.append(said))
    rng = Random(seed)
    site = Site(queue_length=8)
    site.gateway.upstream.hedging.on = seed % 2 == 1
    for _ in range(2 * MIN_SAMPLES):
        site.gateway.upstream.hedging.observe("tiny", 5.0, stream=rng.random() < 0.5)
    nodes = [site.node(slots=rng.choice([1, 2, 5])) for _ in range(3)]
    serving = [asyncio.create_task(_misbehave(node, rng)) for node in nodes]
    users = [asyncio.create_task(_use(site, rng)) for _ in range(25)]
    while not all(user.done() for user in users):
        for _ in range(20):
            await asyncio.sleep(0)
        if rng.random() < 0.1:
            rng.choice(nodes).vanish()
        for node in nodes:
            if not node.node.tunnels:
                node.add_tunnel()
        if rng.random() < 0.1:
            site.wait(rng.choice([11, 31, 70, 130, 400]))
    asked = sum([user.result() for user in users])
    await asyncio.wait_for(site.gateway.active.wait_idle(), 5)
    for _ in range(50):
        await asyncio.sleep(0)
    for task in serving:
        task.cancel()
    await asyncio.gather(*serving, return_exceptions=True)
    for node in nodes:
        node.vanish()
    await site.free()
    ids = [entry.request_id for entry in site.ledger]
    assert len(ids) == len(set(ids)) <= asked
    assert site.admission.waiting == site.edge.connections == 0
    assert {entry.outcome for entry in site.ledger} <= {
        "ok", "refused", "engine_error", "failed", "incomplete", "cancelled", "timeout",
    }  # fmt: skip
    assert not heard
    assert not caplog.records


async def _misbehave(node: ScriptedNode, rng: Random) -> None:
    """Answers each call somehow; keeps to the protocol, and to nothing else."""
    running = set[asyncio.Task[None]]()
    while True:
        task = asyncio.create_task(_answer_somehow(await node.call(timeouts=None), rng))
        running.add(task)
        task.add_done_callback(running.discard)


async def _answer_somehow(call: Call, rng: Random) -> None:
    async def wait() -> None:
        for _ in range(rng.randrange(6)):
            await asyncio.sleep(0)

    await wait()
    match rng.randrange(7):
        case 0:
            call.fail(rng.choice(list(Code)))
            return
        case 1:
            call.head(rng.choice([200, 204, 301, 404, 500, 503]), ("content-length", "2"))
            await wait()
        case 2:
            pass  # never a word
        case 3 | 4:
            call.answer(200, ANSWER)
            return
        case _:
            call.begin_stream()
            for _ in range(rng.randrange(8)):
                call.data(rng.choice([chunk("x" * 3000), chunk("a")[:7], b"\n\n", b"x" * 9000]))
                await wait()
            if rng.random() < 0.6:
                call.data(chunk(None) + usage_chunk(1, 2) + DONE)
            if rng.random() < 0.7:
                call.end()
                return
    if rng.random() < 0.9:
        await call.stopped(timeouts=None)
        call.confirm()


async def _use(site: Site, rng: Random) -> int:
    """A few requests on one connection, read or not, with or without patience."""
    user = site.user()
    count = rng.randrange(1, 5)
    large = b'{"model":"tiny","stream":true,"x":"%b"}' % (b"x" * 400_000)
    for _ in range(count):
        body: Any = rng.choice([ASK, STREAM, large, {"model": "none"}, b"{"])
        failover = rng.choice(["continue", "off"])
        data = request("POST", CHAT, body, **site.key, x_fabric_failover=failover)
        user.send(data[: rng.choice([len(data), len(data), len(data) // 2])])
        for _ in range(rng.randrange(40)):
            await asyncio.sleep(0)
        if rng.random() < 0.2:
            user.stop_reading()
        elif rng.random() < 0.3:
            user.read_on()
        if user.closed:
            break
    for _ in range(rng.randrange(300)):
        await asyncio.sleep(0)
    user.hang_up()
    return count
