"""The public port: slow heads, slow bodies and idle connections."""

from __future__ import annotations

import asyncio

from fabric_server.edge import connection as module
from tests.server.edge.port import LIMITS, Port, limits_with
from tests.users import request


async def test_a_head_that_comes_too_slowly_is_408() -> None:
    port = Port()
    user = port.user()
    user.send(b"GET / HTTP/1.1\r\nhost:")
    port.wait(LIMITS.header_seconds - 1)
    assert not user.received
    port.wait(LIMITS.header_seconds + 1)
    answer = await user.answer()
    assert (answer.status, answer.code) == (408, "request_timeout")
    await user.end()


async def test_a_second_head_has_its_own_time() -> None:
    port = Port()
    user = port.user()
    await user.ask("GET", "/")
    port.wait(LIMITS.header_seconds + 1)
    assert not user.closed
    user.send(b"GET / HTTP/1.1\r\n")
    port.wait(LIMITS.header_seconds + 1)
    assert (await user.answer()).status == 408


async def test_a_connection_without_a_request_is_closed_in_silence() -> None:
    port = Port()
    fresh, used = port.user(), port.user()
    await used.ask("GET", "/")
    port.wait(LIMITS.header_seconds + 1)
    assert await fresh.end() == b""
    port.wait(LIMITS.keepalive_seconds - 1)
    assert not used.closed
    port.wait(LIMITS.keepalive_seconds + 1)
    assert await used.end() == b""


async def test_a_body_that_comes_too_slowly_is_408() -> None:
    port = Port()
    user = port.user()
    user.send(request("POST", "/echo", b"x" * 50_000)[:1000])
    await port.entered.wait()
    await asyncio.sleep(0)
    port.wait(module.BODY_GRACE_SECONDS - 1)
    assert not user.received
    port.wait(module.BODY_GRACE_SECONDS + 1)
    answer = await user.answer()
    assert (answer.status, answer.code) == (408, "request_timeout")
    await user.end()


async def test_a_body_that_comes_fast_enough_may_take_long() -> None:
    port = Port()
    user = port.user()
    whole = request("POST", "/echo", b"x" * 50_000)
    for second in range(40):
        user.send(whole[second * 1200 : (second + 1) * 1200])
        port.wait(float(second))
        await asyncio.sleep(0)
    user.send(whole[48_000:])
    assert (await user.answer()).status == 200


async def test_nobody_is_blamed_for_a_body_that_the_server_does_not_read() -> None:
    port = Port(limits_with(body=2_000_000))
    user = port.user()
    user.send(request("POST", "/slow_echo", b"x" * 1_000_000))
    await port.entered.wait()
    assert not user.reading
    port.wait(3600)
    port.gate.set()
    assert (await user.answer()).status == 200


async def test_a_client_that_waits_for_100_continue_is_not_too_slow() -> None:
    port = Port()
    user = port.user()
    user.send(request("POST", "/slow_echo", b"abc", expect="100-continue")[:-3])
    await port.entered.wait()
    port.wait(60)
    assert not user.received
    user.hang_up()
