"""An engine that is slow to begin goes on; another may compete with it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from fabric_server.proxy.retry_budget import RESERVE
from protocol.errors import Code
from tests.site import (
    ANSWER,
    PATIENT,
    Call,
    ScriptedNode,
    Site,
    ask,
    begin_stream,
    chunk,
    first_call,
)
from tests.users import PATIENCE, request

STALLS = replace(PATIENT, stall=30.0)


async def raced(site: Site, nodes: list[ScriptedNode]) -> tuple[Call, Call]:
    """The call of the first node, and that of the second after 30 s."""
    first, slow = await first_call(nodes)
    site.wait(29.0)
    assert first.reset is None
    site.wait(31.0)
    [other] = [node for node in nodes if node is not slow]
    return first, await other.call()


async def test_a_load_or_prefill_goes_on_while_another_node_is_asked() -> None:
    site = Site(timeouts=STALLS)
    nodes = [site.node(), site.node()]
    user = ask(site)
    first, second = await raced(site, nodes)
    assert first.reset is None
    site.wait(200.0)
    assert (first.reset, second.reset) == (None, None)
    first.answer(200, ANSWER)
    assert (await user.answer()).body == ANSWER
    assert await second.stopped() is Code.CANCELLED
    second.confirm()
    await site.free()
    entry = await site.entry()
    assert (entry.outcome, entry.attempts, entry.error) == ("ok", 2, None)
    assert site.metrics.hedged == 1


async def test_the_other_answers_when_it_is_sooner_and_nothing_counts_as_a_failure() -> None:
    site = Site(timeouts=STALLS)
    nodes = [site.node(), site.node()]
    user = ask(site)
    first, second = await raced(site, nodes)
    second.answer(200, ANSWER)
    assert (await user.answer()).status == 200
    assert await first.stopped() is Code.CANCELLED
    first.confirm()
    await site.free()
    assert all(node.engine.breakers == {} for node in nodes)
    assert site.ledger[0].outcome == "ok"


async def test_many_slow_starts_at_once_lose_no_request() -> None:
    site = Site(timeouts=STALLS)
    nodes = [site.node(), site.node()]
    users = [ask(site) for _ in range(6)]
    calls = []
    for _ in range(20):
        await asyncio.sleep(0)
    for _ in range(6):
        site.wait(31.0)
        for _ in range(20):
            await asyncio.sleep(0)
    for node in nodes:
        while not node.idle:
            calls.append(await node.call())
    assert all(call.reset is None for call in calls)
    for call in calls:
        call.answer(200, ANSWER)
    assert [(await user.answer()).status for user in users] == [200] * 6
    for call in calls:
        if call.reset is not None:
            call.confirm()
    await site.free()
    assert {entry.outcome for entry in site.ledger} == {"ok"}
    assert all(node.engine.breakers == {} for node in nodes)


async def test_without_budget_or_slot_or_with_a_body_under_way_it_is_waited_for() -> None:
    for case in ("budget", "slot", "body"):
        site = Site(timeouts=STALLS)
        nodes = [site.node(), site.node()]
        user = site.user()
        large = request(
            "POST",
            "/v1/chat/completions",
            {"model": "tiny", "stream": False, "x": "x" * 600_000},
            **site.key,
        )
        whole = request("POST", "/v1/chat/completions", {"model": "tiny"}, **site.key)
        user.send(large if case == "body" else whole)
        call, slow = await first_call(nodes)
        await call.whole_body()
        [other] = [node for node in nodes if node is not slow]
        if case == "budget":
            for _ in range(int(RESERVE) + 1):
                site.upstream.budget.spend()
        elif case == "slot":
            other.engine.active = other.engine.slots
        site.wait(31.0)
        site.wait(200.0)
        call.answer(200, ANSWER)
        assert (await user.answer()).status == 200
        assert other.idle
        assert (await site.entry()).attempts == 1


async def test_one_fails_while_they_race_and_the_other_is_waited_for() -> None:
    site = Site(timeouts=STALLS)
    nodes = [site.node(), site.node()]
    user = ask(site)
    first, second = await raced(site, nodes)
    second.fail(Code.ENGINE_DOWN)
    site.wait(200.0)
    first.answer(200, ANSWER)
    assert (await user.answer()).status == 200
    assert (await site.entry()).attempts == 2


async def test_when_the_first_byte_is_overdue_on_both_it_is_a_timeout() -> None:
    site = Site(timeouts=STALLS)
    nodes = [site.node(), site.node()]
    user = ask(site)
    first, second = await raced(site, nodes)
    site.wait(301.0)
    assert (await user.answer()).code == "upstream_timeout"
    for call in (first, second):
        assert await call.stopped() is Code.TIMEOUT
        call.confirm()
    await site.free()


async def test_a_stream_that_began_is_raced_by_nobody() -> None:
    site = Site(timeouts=STALLS)
    nodes = [site.node()]
    user, call = await begin_stream(site, nodes[0])
    other = site.node()
    site.wait(31.0)
    call.data(chunk(None))
    call.end()
    async with asyncio.timeout(PATIENCE):
        await user.answer()
    assert other.idle
