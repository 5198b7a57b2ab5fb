"""Slow nodes, slow engines and slow clients are given up when their time is over."""

from __future__ import annotations

import asyncio

from fabric_server.proxy.attempt import CONFIRM_SECONDS
from protocol.errors import Code
from tests.site import (
    DONE,
    PATIENT,
    Site,
    ask,
    assert_ends_with_error,
    begin_stream,
    chunk,
    first_call,
)


async def test_a_node_that_never_confirms_loses_its_tunnel() -> None:
    site = Site()
    node = site.node()
    user = ask(site)
    call = await node.call()
    user.hang_up()
    await call.stopped()
    site.wait(CONFIRM_SECONDS + 1)
    await site.free()
    assert node.node.tunnels == []


async def test_a_slow_reader_s_stream_stops_and_goes_on_with_the_reader() -> None:
    site = Site()
    node = site.node()
    user, call = await begin_stream(site, node)
    user.stop_reading()
    sent = 0
    while call.data(chunk("x" * 8000)):
        sent += 1
        await asyncio.sleep(0)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(user.received) <= 256 * 1024 + 1000, "more was written than the credit"
    user.read_on()
    call.data(chunk(None) + DONE)
    call.end()
    assert (await user.answer()).body == chunk("Hel") + chunk("x" * 8000) * (sent + 1) + chunk(
        None
    ) + DONE
    assert (await site.entry()).outcome == "ok"


async def test_a_user_who_does_not_read_is_cut_off() -> None:
    site = Site()
    node = site.node()
    user, call = await begin_stream(site, node)
    user.stop_reading()
    call.data(chunk("lorem"))
    await user.until(b"lorem")
    site.wait(PATIENT.slow_reader - 1)
    assert not user.closed
    site.wait(PATIENT.slow_reader + 1)
    assert user.aborted
    assert await call.stopped() == Code.SLOW_READER
    call.confirm()
    entry = await site.entry()
    assert (entry.outcome, entry.error) == ("failed", "slow_reader")
    await site.free()


async def test_no_first_byte_in_time_is_504_and_not_tried_again() -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user = ask(site)
    call, _ = await first_call(nodes)
    call.head(200)  # which is no byte of the answer
    await asyncio.sleep(0)
    site.wait(PATIENT.first_byte - 1)
    assert call.reset is None
    site.wait(PATIENT.first_byte + 1)
    answer = await user.answer()
    assert (answer.status, answer.code) == (504, "upstream_timeout")
    assert await call.stopped() == Code.TIMEOUT
    assert all(node.idle for node in nodes)
    call.confirm()
    entry = await site.entry()
    assert (entry.outcome, entry.status, entry.error) == ("timeout", 504, "timeout")
    await site.free()


async def test_an_engine_that_falls_silent_is_given_up_and_one_that_goes_on_is_not() -> None:
    site = Site()
    node = site.node()
    user, call = await begin_stream(site, node)
    for part in range(1, 9):  # the clock is that of the loop: told a time, not waited for
        site.wait(PATIENT.idle * part / 4 + 1)
        call.data(chunk("."))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert call.reset is None
    while not site.ledger:
        part += 1
        site.wait(PATIENT.idle * part / 4 + 1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert part == 8 + 1 + 4  # seen silent first, and then for as long as it may be
    assert await call.stopped() == Code.TIMEOUT
    body = (await user.answer()).body
    assert_ends_with_error(body, "upstream_timeout")
    assert b"the engine sent nothing for 120 s" in body
    assert b"lost" not in body
    assert (await site.entry()).outcome == "timeout"


async def test_no_answer_goes_on_for_ever() -> None:
    site = Site()
    node = site.node()
    _, call = await begin_stream(site, node)
    step = PATIENT.idle / 4
    now = 0.0
    while call.reset is None and now < PATIENT.total + 10 * step:
        now += step
        site.wait(now + 1)
        call.data(chunk("."))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert PATIENT.total <= now + 1 <= PATIENT.total + 2 * step
    assert (await site.entry()).outcome == "timeout"
