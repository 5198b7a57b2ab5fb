"""What the ends of attempts teach the router: only what the user can't have caused."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable

import pytest

from fabric_server.proxy.retry_budget import RESERVE
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
    ask,
    begin_stream,
    chunk,
    event,
)

Answer = Callable[[Call], None]
WORDS = b'{"error":{"message":"the engine\'s own words"}}'


def status(number: int) -> Answer:
    return lambda call: call.answer(number, ANSWER if number == 200 else WORDS)


def reset(code: int) -> Answer:
    return lambda call: call.stream.reset(code, "scripted")


def cut_off(call: Call) -> None:
    call.head(200, ("content-length", "1000"))
    call.data(b"{")
    call.end()


@contextlib.asynccontextmanager
async def serving(*pairs: tuple[ScriptedNode, Answer]) -> AsyncIterator[dict[ScriptedNode, int]]:
    """Let each node answer every request in its way; yields how many each has got."""
    counts = dict.fromkeys((node for node, _ in pairs), 0)
    tasks: list[asyncio.Task[None]] = []

    async def confirm(call: Call) -> None:
        await call.stopped(timeouts=None)
        call.confirm()

    async def serve(node: ScriptedNode, answer: Answer) -> None:
        while True:
            call = await node.call(timeouts=None)
            counts[node] += 1
            tasks.append(asyncio.create_task(confirm(call)))
            answer(call)

    tasks += [asyncio.create_task(serve(node, answer)) for node, answer in pairs]
    yield counts
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def ejected(site: Site, node: ScriptedNode, path: str = CHAT) -> bool:
    return site.registry.is_ejected(node.engine, "tiny", site.loop.time(), path)


async def asked(site: Site, account: str = "tests") -> int:
    """The status of one request."""
    return (await ask(site, **site.make_key(account=account)).answer()).status


# ── an engine that fails fast ─────────────────────────────────────────────────────────────────

STATUSES = (301, 307, 401, 402, 403, 404, 405, 407, 410, 421, 426, 429, 431, 500, 502, 503, 511)
CODES = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 14, 17, 99, 65_535)
FAST = {
    **{f"status {number}": status(number) for number in STATUSES},
    **{f"code {code}": reset(code) for code in CODES},
    "empty": lambda call: call.stream_all(),
    "cut off": cut_off,
}


@pytest.mark.parametrize("answer", FAST.values(), ids=FAST)
async def test_an_engine_that_fails_fast_gets_little_and_hurts_nobody(answer: Answer) -> None:
    site = Site()
    bad, good = site.node(), site.node()
    async with serving((bad, answer), (good, status(200))) as counts:
        for _ in range(25):
            assert await asked(site) == 200
        good.engine.active += 1  # and still the other is not the better one
        for _ in range(15):
            assert await asked(site) == 200
        good.engine.active -= 1
    assert 1 <= counts[bad] <= 6


async def test_requests_in_the_queue_do_not_fall_into_an_engine_that_is_always_busy() -> None:
    site = Site()
    busy, good = site.node(slots=4), site.node(slots=2)
    for _ in range(int(RESERVE)):
        site.upstream.budget.spend()
    async with serving((busy, status(429)), (good, status(200))) as counts:
        users = [ask(site) for _ in range(60)]
        answers = [(await user.answer()).status for user in users]
    assert answers.count(200) >= 50
    assert counts[busy] <= 10


async def test_a_429_lowers_what_the_engine_gets_and_ejects_nobody() -> None:
    site = Site()
    busy, good = site.node(slots=8), site.node(slots=8)
    good.engine.active = 8
    for _ in range(7):
        ask(site)
    calls = [await busy.call() for _ in range(7)]
    user = ask(site)
    (await busy.call()).answer(429, WORDS)
    assert (await user.answer()).status == 429
    assert busy.engine.slots == 3, "half of what runs there"
    assert busy.engine.breakers == {}
    assert not ejected(site, busy)
    for call in calls:
        call.answer(200, ANSWER)
    await site.gateway.active.wait_idle()


async def test_a_model_s_only_engine_keeps_a_slot_however_busy_it_says_it_is() -> None:
    site = Site()
    node = site.node(slots=4)
    async with serving((node, status(429))) as counts:
        for _ in range(20):
            assert await asked(site) == 429
    assert counts[node] == 20
    assert node.engine.slots >= 1


# ── what a user does says nothing ─────────────────────────────────────────────────────────────


async def test_a_user_s_own_time_limit_says_nothing_of_the_engine() -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    for _ in range(8):
        user = ask(site, **{"x-fabric-timeout": "1"})
        await asyncio.sleep(0)
        site.wait(2.0)
        assert (await user.answer()).status == 504
    for node in nodes:
        while not node.idle:
            call = await node.call()
            assert await call.stopped() is Code.TIMEOUT
            call.confirm()
        assert node.engine.breakers == {}
    now = site.loop.time()
    latency = site.upstream.outcomes.known.latency
    assert {latency.estimate(node.engine, "tiny", now).first_byte for node in nodes} == {1.0}


async def test_mistakes_hang_ups_and_slow_readers_say_nothing_of_the_engine() -> None:
    site = Site()
    node, other = site.node(), site.node()
    other.engine.active = other.engine.slots
    for number in (400, 409, 413, 415, 422) * 2:
        user = ask(site)
        (await node.call()).answer(number, WORDS)
        assert (await user.answer()).status == number
    for _ in range(4):
        user = ask(site)
        call = await node.call()
        user.hang_up()
        await call.stopped()
        call.confirm()
    for _ in range(4):
        user, call = await begin_stream(site, node)
        user.stop_reading()
        call.data(chunk("lorem"))
        await user.until(b"lorem")
        site.wait(31)
        await call.stopped()
        call.confirm()
    assert node.engine.breakers == {}


async def test_a_5xx_that_one_user_gets_everywhere_is_no_engine_s_fault() -> None:
    """A request that no engine can answer must not take the engines from the others."""
    site = Site()
    nodes = [site.node() for _ in range(4)]
    async with serving(*((node, status(500)) for node in nodes)):
        for _ in range(20):
            assert await asked(site) == 500
    assert not any(ejected(site, node) for node in nodes)
    assert not any(
        breaker.badness[0] for node in nodes for breaker in node.engine.breakers.values()
    )


async def test_a_5xx_counts_where_another_engine_answers_the_same_request() -> None:
    site = Site()
    bad, good = site.node(), site.node()
    good.engine.active = 3
    for _ in range(3):
        site.upstream.outcomes.known.latency.update(
            good.engine, "tiny", 100.0, None, now=site.loop.time()
        )
        user = ask(site)
        (await bad.call()).answer(503, WORDS)
        assert not ejected(site, bad), "not before another has answered"
        (await good.call()).answer(200, ANSWER)
        assert (await user.answer()).status == 200
    assert ejected(site, bad)
    assert not ejected(site, bad, "/v1/rerank"), "that says nothing of other paths"


async def test_a_5xx_counts_for_three_accounts_within_a_minute() -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    for _ in range(int(RESERVE) + 5):
        site.upstream.budget.spend()
    async with serving(*((node, status(500)) for node in nodes)):
        for number in range(12):
            await asked(site, f"account-{number % 4}")
    assert [ejected(site, node) for node in nodes].count(True) == 1


async def test_an_error_inside_a_stream_is_judged_like_a_5xx() -> None:
    site = Site()
    node, other = site.node(), site.node()
    other.engine.active = other.engine.slots
    for number in range(3):
        assert not ejected(site, node)
        user = ask(site, STREAM, **site.make_key(account=f"account-{number}"))
        call = await node.call()
        call.stream_all(chunk("Hi"), event({"error": {"message": "out of memory"}}))
        await user.answer()
    assert ejected(site, node)


async def test_a_success_between_ends_a_row_of_failures() -> None:
    site = Site()
    node, other = site.node(), site.node()
    other.engine.active = other.engine.slots
    for _ in range(5):
        for _ in range(2):
            user = ask(site)
            (await node.call()).fail(Code.ENGINE_DOWN)
            await user.answer()
        user = ask(site)
        (await node.call()).answer(400, WORDS)  # no success, and no failure
        await user.answer()
        user = ask(site)
        (await node.call()).answer(200, ANSWER)
        await user.answer()
        assert node.engine.breakers == {}


async def test_the_server_s_own_limits_count() -> None:
    site = Site()
    node, other = site.node(), site.node()
    other.engine.active = other.engine.slots
    for _ in range(3):
        user = ask(site)
        call = await node.call()
        site.wait(301)
        assert (await user.answer()).status == 504
        call.confirm()
    assert ejected(site, node)
    assert site.metrics.retries == 0


async def test_too_large_counts_for_a_body_that_every_node_takes() -> None:
    for size, counts in ((10, True), (2 * 2**20, False)):
        site = Site()
        node = site.node()
        user = ask(site, {"model": "tiny", "stream": False, "x": "x" * size})
        call = await node.call()
        call.fail(Code.TOO_LARGE)
        assert (await user.answer()).status == 502
        assert any(one.badness[0] for one in node.engine.breakers.values()) is counts


# ── how many are ejected ──────────────────────────────────────────────────────────────────────


async def test_a_model_s_only_engine_is_never_ejected_nor_kept_for_a_probe() -> None:
    site = Site()
    node = site.node()
    for _ in range(10):
        user = ask(site)
        (await node.call()).fail(Code.ENGINE_DOWN)
        assert (await user.answer()).status == 502
    users = [ask(site) for _ in range(3)]
    for _ in users:
        (await node.call()).answer(200, ANSWER)
    assert [(await user.answer()).status for user in users] == [200] * 3


async def test_an_engine_left_alone_is_not_ejected_any_more() -> None:
    site = Site()
    bad, good = site.node(), site.node()
    async with serving((bad, status(401)), (good, status(200))):
        good.engine.active = good.engine.slots
        for _ in range(3):
            assert await asked(site) == 502
        assert ejected(site, bad)
    good.leave()
    user = ask(site)
    (await bad.call()).answer(200, ANSWER)
    assert (await user.answer()).status == 200
    assert bad.engine.breakers == {}


async def test_an_engine_that_fails_again_and_again_is_left_alone_for_a_while() -> None:
    site = Site()
    bad, good = site.node(slots=1000), site.node(slots=1)
    bad.refuses = Code.ENGINE_DOWN
    good.engine.active = 1  # so that the bad one is asked first
    for _ in range(3):
        await ask(site).answer()
    assert not bad.engine.allows("tiny", site.loop.time())
    assert bad.engine.allows("other", site.loop.time())
    assert bad.engine.allows("tiny", site.loop.time() + 6.0)
    good.engine.active = 0
    user = ask(site)
    (await good.call()).answer(200, ANSWER)
    assert (await user.answer()).status == 200
    assert site.ledger[-1].attempts == 1


# ── what the client is told ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/responses", "/api/chat"])
@pytest.mark.parametrize("number", [301, 401, 403, 407])
async def test_what_an_engine_says_of_its_node_is_502_in_our_words(
    number: int, path: str, stream: bool
) -> None:
    site = Site()
    node = site.node(paths=[path])
    body = {**ASK, "input": "Hi", "stream": stream}
    user = ask(site, body, path)
    (await node.call()).answer(number, WORDS)
    answer = await user.answer()
    assert answer.status == 502
    assert b"own words" not in answer.body
    error = json.loads(answer.body)["error"]
    message = error if isinstance(error, str) else error["message"]
    assert "Neither your API key nor your request" in message
    assert b"authentication" not in answer.body
    entry = await site.entry()
    assert (entry.outcome, entry.status, entry.error) == ("engine_error", 502, "engine_failed")


# ── what is learnt of speed ───────────────────────────────────────────────────────────────────


async def test_an_engine_whose_answers_show_nothing_is_not_explored_for_ever() -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    async with serving(*((node, status(422)) for node in nodes)) as counts:
        for _ in range(60):
            await asked(site)
    assert min(counts.values()) > 10


async def test_a_slow_reader_does_not_make_the_engine_look_slow() -> None:
    site = Site()
    node = site.node()
    user, call = await begin_stream(site, node)
    user.stop_reading()
    call.data(chunk("x" * 1000) * 20)
    await user.until(b"xxx")
    user.read_on()
    usage = event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 20}})
    call.data(chunk(None) + usage + DONE)
    call.end()
    await user.answer()
    estimate = site.upstream.outcomes.known.latency.estimate(node.engine, "tiny", site.loop.time())
    assert (estimate.known, estimate.rate) == (True, 30.0)
