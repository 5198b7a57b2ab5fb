"""The public port, to the byte: requests in turn, bodies, answers, and how connections end."""

from __future__ import annotations

import asyncio

import pytest

from fabric_server.edge import connection as module
from fabric_server.edge.request import Request
from fabric_server.edge.slices import UNWANTED_RATE
from fabric_server.net.memory_budget import UNCOUNTED
from tests.loops import on_both_loops
from tests.server.edge.port import BIG, GET, LIMITS, Port, a_user, limits_with
from tests.users import MemoryUser, request

# ── over real sockets ─────────────────────────────────────────────────────────────────────────


@on_both_loops
async def test_a_connection_is_kept_for_one_request_after_the_other() -> None:
    async with a_user() as (port, user):
        ids = set()
        for number in range(3):
            answer = await user.ask("POST", "/echo", b"%d" % number)
            assert (answer.status, answer.body) == (200, b"%d" % number)
            ids.add(answer.headers["x-request-id"])
            assert "connection" not in answer.headers
        assert len(ids) == 3
        assert port.edge.connections == 1


@on_both_loops
async def test_pipelined_requests_are_answered_in_their_order() -> None:
    async with a_user() as (_, user):
        user.send(b"".join(request("POST", "/echo", b"%d" % n) for n in range(40)))
        assert [(await user.answer()).body for _ in range(40)] == [b"%d" % n for n in range(40)]


@on_both_loops
async def test_a_body_is_taken_as_it_is_used_and_no_faster() -> None:
    async with a_user(limits_with(body=8_000_000)) as (port, user):
        user.send(request("POST", "/slow_echo", BIG))
        await port.entered.wait()
        [asked] = port.asked
        before = -1
        while asked.body.buffered != before:
            before = asked.body.buffered
            await asyncio.sleep(0.02)
        assert UNCOUNTED < asked.body.buffered < 2_000_000
        port.gate.set()
        assert (await user.answer()).body == BIG
        assert (await user.ask("GET", "/")).status == 200


@on_both_loops
async def test_a_user_who_does_not_read_makes_the_handler_wait() -> None:
    async with a_user() as (port, user):
        user.transport.pause_reading()
        user.send(request("GET", "/flood"))
        await port.entered.wait()
        before = -1
        while port.number != before:
            before = port.number
            await asyncio.sleep(0.05)
        [asked] = port.asked
        if asked.response.paused:  # or the kernel took it all
            assert port.number < len(BIG) - 10_000
        user.transport.resume_reading()
        assert (await user.answer(method="GET")).body == BIG


@on_both_loops
async def test_an_early_answer_can_be_read_by_a_client_that_is_still_sending() -> None:
    async with a_user(limits_with(body=100_000_000)) as (port, user):
        user.send(request("POST", "/early", b"x" * 20_000_000))
        answer = await user.answer()
        assert (answer.status, answer.code) == (401, "invalid_api_key")
        assert answer.headers["connection"] == "close"
        await user.end()
        assert port.asked[0].body.buffered == 0


@on_both_loops
async def test_a_body_over_the_limit_is_413_and_its_answer_can_be_read() -> None:
    async with a_user() as (_, user):
        user.send(request("POST", "/echo", b"x" * 5_000_000))
        answer = await user.answer()
        assert (answer.status, answer.code) == (413, "body_too_large")
        assert answer.headers["connection"] == "close"


@on_both_loops
async def test_a_user_who_hangs_up_cancels_the_handler() -> None:
    async with a_user() as (port, user):
        user.send(request("POST", "/slow_echo", b"x"))
        await port.entered.wait()
        user.transport.abort()
        await asyncio.wait_for(port.cancelled.wait(), 5)


@on_both_loops
async def test_half_closing_is_hanging_up() -> None:
    async with a_user() as (port, user):
        user.send(request("POST", "/slow_echo", b"x"))
        await port.entered.wait()
        user.transport.write_eof()
        await asyncio.wait_for(port.cancelled.wait(), 5)
        await user.end()


@on_both_loops
async def test_a_closed_connection_says_so_and_is_closed() -> None:
    async with a_user() as (port, user):
        answer = await user.ask("GET", "/", connection="close")
        assert answer.headers["connection"] == "close"
        assert await user.end() == b""
        while port.edge.connections:  # noqa: ASYNC110
            await asyncio.sleep(0)


@on_both_loops
async def test_http_1_0_gets_what_it_understands() -> None:
    async with a_user() as (port, user):
        user.send(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
        answer = await user.answer(method="GET")
        assert answer.headers["connection"] == "keep-alive"
        user.send(b"GET /stream HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
        answer = await user.answer(method="GET")
        assert answer.body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
        assert "transfer-encoding" not in answer.headers
        assert user.closed
        assert port.asked[-1].version == "1.0"


@on_both_loops
async def test_garbage_is_answered_and_the_connection_closed() -> None:
    async with a_user() as (port, user):
        user.send(bytes(range(256)) * 1000)
        answer = await user.answer()
        assert (answer.status, answer.code) == (400, "bad_request")
        await user.end()
        assert port.asked == []
        assert port.edge.refused == {"bad_request": 1}


async def test_a_chunked_body_comes_whole() -> None:
    user = Port().user()
    user.send(request("POST", "/echo", transfer_encoding="chunked"))
    user.send(b"3;name=value\r\nabc\r\nA\r\n0123456789\r\n0\r\ntrailer: x\r\n\r\n")
    assert (await user.answer()).body == b"abc0123456789"
    assert (await user.ask("GET", "/")).status == 200


async def test_a_trailer_is_no_header() -> None:
    port = Port()
    user = port.user()
    user.send(request("POST", "/echo", transfer_encoding="chunked"))
    user.send(b"1\r\na\r\n0\r\nauthorization: Bearer x\r\n\r\n")
    await user.answer()
    assert b"authorization" not in port.asked[0].headers


async def test_a_client_that_asks_first_is_told_to_go_on_when_the_body_is_wanted() -> None:
    port = Port()
    user = port.user()
    head, body = request("POST", "/slow_echo", b"abc", expect="100-Continue")[:-3], b"abc"
    user.send(head)
    await port.entered.wait()
    assert user.received == b""
    port.gate.set()
    await user.until(b"100 Continue\r\n\r\n")
    user.send(body)
    answer = await user.answer()
    assert (answer.interim, answer.body) == ([100], b"abc")
    assert (await user.ask("GET", "/")).status == 200


async def test_a_client_that_asks_first_and_is_refused_need_not_send_anything() -> None:
    user = Port().user()
    user.send(request("POST", "/early", b"abc", expect="100-continue")[:-3])
    answer = await user.answer()
    assert (answer.status, answer.interim) == (401, [])
    assert answer.headers["connection"] == "close"


async def test_a_small_body_that_nobody_wanted_does_not_cost_the_connection() -> None:
    port = Port()
    user = port.user()
    whole = request("POST", "/early", b"x" * 50_000)
    user.send(whole[:10_000])
    answer = await user.answer()
    assert answer.status == 401
    assert "connection" not in answer.headers
    user.send(whole[10_000:])
    assert (await user.ask("GET", "/")).status == 200
    assert port.asked[0].body.buffered == 0
    # One who never sends the rest is not waited for.
    user.send(whole[:10_000])
    await user.answer()
    port.wait(module.LINGER_SECONDS + 1)
    assert await user.end() == b""


async def test_what_comes_behind_a_last_word_is_thrown_away_for_a_while() -> None:
    port = Port()
    user = port.user()
    user.send(b"garbage\r\n\r\n")
    await user.answer()
    await user.end()
    assert user.lingers
    user.send(b"x" * 1_000_000)
    port.wait(module.LINGER_SECONDS - 1)
    assert user.lingers
    port.wait(module.LINGER_SECONDS + 1)
    assert not user.lingers
    assert user.aborted


async def test_what_is_thrown_away_is_read_in_turn() -> None:
    port = Port()
    users = [port.user() for _ in range(3)]
    for user in users:
        user.send(b"garbage\r\n\r\n")
        await user.answer()
        await user.end()
    began = port.loop.time()
    for user in users:
        user.send(b"x" * 1_000_000)
        assert not user.reading, "it waits for its turn after one piece"
    async with asyncio.timeout(10):
        for user in users:
            await user.read_out()
    assert port.loop.time() - began > 2_500_000 / UNWANTED_RATE
    assert all(user.lingers for user in users)


async def test_head_is_answered_with_a_head() -> None:
    user = Port().user()
    for path in ("/", "/nothing", "/stream"):
        answer = await user.ask("HEAD", path)
        assert answer.body == b""
    assert (await user.ask("GET", "/")).body == b'"hello"'


async def test_a_browser_may_ask_beforehand_without_a_key() -> None:
    port = Port()
    wanted = "authorization, content-type, x-stainless-lang, x-stainless-retry-count"
    user = port.user()
    answer = await user.ask(
        "OPTIONS",
        "/v1/chat/completions",
        origin="https://app.test",
        access_control_request_method="POST",
        access_control_request_headers=wanted,
    )
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-headers"] == wanted
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert port.asked == []
    answer = await user.ask("POST", "/early", origin="https://app.test")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    answer = await user.ask("OPTIONS", "*")
    assert answer.status == 204
    assert "access-control-allow-origin" not in answer.headers


async def test_pipelined_requests_are_bounded_and_those_within_bounds_are_answered() -> None:
    port = Port()
    user = port.user()
    user.send(request("GET", "/slow_echo") + GET * 100_000)
    assert not user.reading
    port.gate.set()
    answers = [await user.answer() for _ in range(1 + module.MAX_PIPELINED + 1)]
    assert {answer.status for answer in answers[:-1]} == {200}
    assert answers[-1].code == "bad_request"
    assert answers[-1].headers["connection"] == "close"
    assert await user.end() == b""
    assert len(port.asked) == 1 + module.MAX_PIPELINED


async def test_a_user_who_asks_and_asks_and_never_reads_is_not_answered_on() -> None:
    port = Port()
    user = port.user()
    user.stop_reading()
    user.send(GET * 10)
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(port.asked) <= 1
    user.read_on()
    for _ in range(10):
        assert (await user.answer()).status == 200
    user.stop_reading()
    user.send(GET * 10)
    await asyncio.sleep(0)
    port.wait(LIMITS.keepalive_seconds + 1)
    port.wait(LIMITS.keepalive_seconds + module.CLOSING_SECONDS + 1)
    assert user.aborted


async def test_one_who_never_reads_the_last_bytes_is_not_waited_for_for_ever() -> None:
    port = Port()

    class Stuck(MemoryUser):
        def close(self) -> None:
            if self.aborted:
                super().close()

    user = Stuck(port.edge)
    user.send(request("GET", "/", connection="close"))
    await user.until(b"hello")
    port.wait(module.CLOSING_SECONDS + 1)
    assert user.aborted
    await user.end()


async def test_the_end_of_a_connection_does_not_cancel_what_is_answered() -> None:
    port = Port()
    after: list[str] = []

    async def bookkeeping(asked: Request) -> None:
        asked.respond(200, b"{}")
        user.hang_up()
        await asyncio.sleep(0)
        after.append("kept")

    port.handle = bookkeeping  # type: ignore[method-assign]
    port.edge.handler = bookkeeping
    user = port.user()
    user.send(GET)
    for _ in range(5):
        await asyncio.sleep(0)
    assert after == ["kept"]


@pytest.mark.parametrize("path", ["/broken", "/silent"])
async def test_a_handler_that_fails_is_500_and_costs_nobody_else(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    user = Port().user()
    user.send(request("GET", path) + GET)
    answer = await user.answer()
    assert (answer.status, answer.code) == (500, "internal_error")
    assert (await user.answer()).status == 200
    assert "request failed" in caplog.text


@pytest.mark.parametrize("path", ["/broken_late", "/refused_late"])
async def test_an_answer_that_fails_half_way_is_cut(path: str) -> None:
    user = Port().user()
    user.send(request("GET", path) + GET)
    await user.end()
    assert user.aborted


async def test_draining_finishes_what_was_asked_and_takes_nothing_more() -> None:
    port = Port()
    idle, asking, answering, pipelining = (port.user() for _ in range(4))
    asking.send(request("POST", "/slow_echo", b"a"))
    answering.send(request("GET", "/flood"))
    pipelining.send(request("POST", "/slow_echo", b"b") + GET)
    answering.stop_reading()
    while len(port.asked) < 3:  # noqa: ASYNC110
        await asyncio.sleep(0)
    port.edge.drain()
    assert await idle.end() == b""
    port.gate.set()
    answering.read_on()
    assert (await asking.answer()).headers["connection"] == "close"
    assert (await answering.answer()).body == BIG
    assert "connection" not in (await pipelining.answer()).headers
    assert (await pipelining.answer()).headers["connection"] == "close"
    for user in (asking, answering, pipelining):
        await user.end()
    await asyncio.sleep(0)
    assert port.edge.connections == 0


async def test_leaving_cuts_what_runs() -> None:
    port = Port()
    user = port.user()
    user.send(request("POST", "/slow_echo", b"a"))
    await port.entered.wait()
    port.edge.close()
    await user.end()
    await port.cancelled.wait()
    assert port.edge.connections == 0


async def test_an_idle_connection_lingers_while_draining_and_answers_what_comes() -> None:
    port = Port()
    idle, asks, new = port.user(), port.user(), port.user()
    assert "connection" not in (await asks.ask("GET", "/")).headers
    port.edge.drain(linger=5.0)
    late = port.user()  # was in the kernel's queue
    for user in (asks, new, late):
        assert (await user.ask("GET", "/")).headers["connection"] == "close"
        await user.end()
    await asyncio.sleep(0)
    assert port.edge.connections == 1
    port.deadlines.check(port.loop.time() + 5.1)
    assert await idle.end() == b""
    await port.edge.empty()
