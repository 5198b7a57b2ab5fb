"""What the gateway tells routing, and what it learns for the next request."""

from __future__ import annotations

import asyncio
from typing import Any

from fabric_server.routing.latency import Estimate
from protocol.errors import Code
from protocol.messages import EngineReport, ModelReport
from protocol.tunnel.frames import FrameType, encode
from protocol.tunnel.keepalive import QUIET_SECONDS
from tests.site import CHAT, DONE, Call, ScriptedNode, Site, chunk, usage_chunk
from tests.users import PATIENCE, Answer, request


def chat(*texts: str, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": t} for t in texts], **more}


async def ask(site: Site, body: dict[str, Any], *nodes: ScriptedNode) -> tuple[int, Answer]:
    """Which of the nodes has answered, and what the user got."""
    user = site.user()
    user.send(request("POST", CHAT, body, **site.key))
    async with asyncio.timeout(PATIENCE):
        while all(node.idle for node in nodes):  # noqa: ASYNC110 - some turns of the loop
            await asyncio.sleep(0)
    [which] = [number for number, node in enumerate(nodes) if not node.idle]
    finish(await nodes[which].call(), stream=body.get("stream", False))
    answer = await user.answer()
    await site.free()
    return which, answer


def finish(call: Call, *, stream: bool) -> None:
    if stream:
        call.stream_all(*[chunk("Hi")] * 10, chunk(None), usage_chunk(5, 40), DONE)
    else:
        call.answer(200, b'{"usage":{"prompt_tokens":5,"completion_tokens":40}}')


def expected(site: Site, node: ScriptedNode) -> Estimate:
    latency = site.admission.balancer.state.latency
    return latency.estimate(node.engine, "tiny", site.loop.time())


async def test_a_conversation_returns_to_its_node_and_the_answer_says_why() -> None:
    site = Site()
    nodes = [site.node() for _ in range(5)]
    texts = ["Tell me of the sea. " * 30]
    home, answer = await ask(site, chat(*texts), *nodes)
    assert answer.headers["x-fabric-route"] == "not known yet, 0/4 slots"
    for number in range(10):
        texts.append(f"And then, in the year {number}? " * 10)
        which, answer = await ask(site, chat(*texts), *nodes)
        assert which == home
        assert answer.headers["x-fabric-route"].startswith("affinity ")


async def test_nobody_learns_from_their_route_what_other_accounts_ask() -> None:
    site = Site()
    nodes = [site.node() for _ in range(2)]
    body = chat("Tell me of the sea. " * 30)
    for key, seen in (
        (site.key, False),
        (site.make_key(), True),
        (site.make_key(account="others"), False),
    ):
        site.key = key
        _, answer = await ask(site, body, *nodes)
        assert answer.headers["x-fabric-route"].startswith("affinity ") is seen


async def test_of_idle_tunnels_the_one_last_heard_from_is_taken() -> None:
    site = Site()
    node = site.node()
    node.add_tunnel()
    for tunnel in (*node.node.tunnels, *reversed(node.node.tunnels)):
        await asyncio.sleep(0.002)  # the loop's clock ticks in milliseconds
        tunnel.data_received(encode(FrameType.PING, 0, 0, bytes(8)))
        assert node.node.tunnel(site.loop.time() + QUIET_SECONDS) is tunnel


async def test_how_fast_a_stream_was_is_remembered() -> None:
    site = Site()
    node = site.node()
    await ask(site, chat("Hi", stream=True), node)
    known = expected(site, node)
    assert known.known
    assert known.first_byte < 0.9
    assert known.rate > 100


async def test_an_engine_that_fails_is_avoided_afterwards() -> None:
    site = Site()
    bad, good = site.node(), site.node()
    bad.refuses = Code.ENGINE_DOWN
    for _ in range(20):
        which, _ = await ask(site, chat("Hi"), bad, good)
        assert which == 1
    assert expected(site, bad).first_byte > 5
    assert site.metrics.retries == 1


async def test_pictures_go_to_who_can_see_and_elsewhere_when_nobody_says_so() -> None:
    site = Site()
    nodes = [site.node() for _ in range(3)]
    picture = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    body = {"model": "tiny", "messages": [{"role": "user", "content": picture}]}
    for number, node in enumerate(nodes):
        senses = ["completion", "vision"] if number == 2 else ["completion"]
        card = ModelReport("tiny", capabilities=senses)
        site.registry.report(node.node, [EngineReport("engine", "vllm", True, 4, [card])])
    for _ in range(5):
        assert (await ask(site, body, *nodes))[0] == 2
    nodes[2].leave()
    _, answer = await ask(site, body, *nodes[:2])
    assert answer.status == 200, "whoever has it answers as it likes"
