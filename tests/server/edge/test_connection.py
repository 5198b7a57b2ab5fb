"""The public port, to the byte: what users may send, in whatever pieces, and what they get."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fabric_server.dialects import errors
from fabric_server.edge import connection as module
from fabric_server.edge.connection import Edge, Limits
from fabric_server.edge.parser import MAX_TARGET
from fabric_server.edge.request import Request
from fabric_server.net.deadlines import Deadlines
from tests.loops import on_both_loops
from tests.users import Answer, Incomplete, MemoryUser, SocketUser, parse_answer, request

LIMITS = Limits(
    body=100_000,
    headers=8_192,
    header_count=20,
    header_seconds=10.0,
    body_rate=1_000,
    keepalive_seconds=60.0,
)
GET = request("GET", "/")
BIG = b"x" * 3_000_000


class Port:
    """An edge whose handler does what the path says, and what it was asked."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.loop = asyncio.get_running_loop()
        self.deadlines = Deadlines()
        self.edge = Edge(self.handle, limits, self.deadlines, Random(1))
        self.asked: list[Request] = []
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.number = 0

    async def handle(self, asked: Request) -> None:
        self.asked.append(asked)
        self.entered.set()
        does: Callable[[Request], Awaitable[None]]
        does = getattr(self, asked.path.strip("/") or "greet", self.nothing)
        try:
            await does(asked)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def nothing(self, asked: Request) -> None:
        raise errors.unknown_path(asked.path)

    async def greet(self, asked: Request) -> None:
        asked.respond(200, b'"hello"')

    async def echo(self, asked: Request) -> None:
        data = b""
        while not asked.body.complete:
            await asked.body.more()
            data += asked.body.take()
        asked.respond(200, data + asked.body.take())

    async def slow_echo(self, asked: Request) -> None:
        await self.gate.wait()
        await self.echo(asked)

    async def early(self, asked: Request) -> None:
        raise errors.wrong_key()

    async def stream(self, asked: Request) -> None:
        asked.start_response(200, [(b"content-type", b"text/event-stream")], None)
        for number in range(3):
            asked.response.write(b"data: %d\n\n" % number)
            await asyncio.sleep(0)
        asked.response.finish()

    async def flood(self, asked: Request) -> None:
        """As much as the user reads."""
        drained = asyncio.Event()
        asked.response.on_drained = drained.set
        asked.start_response(200, [], len(BIG))
        for at in range(0, len(BIG), 10_000):
            asked.response.write(BIG[at : at + 10_000])
            self.number = at
            while asked.response.paused:
                drained.clear()
                await drained.wait()
        asked.response.finish()

    async def broken(self, asked: Request) -> None:
        raise RuntimeError("scripted")

    async def broken_late(self, asked: Request) -> None:
        asked.start_response(200, [], 100)
        asked.response.write(b"half")
        raise RuntimeError("scripted")

    async def refused_late(self, asked: Request) -> None:
        asked.start_response(200, [], 100)
        raise errors.wrong_key()

    async def silent(self, asked: Request) -> None:
        pass

    def wait(self, seconds: float) -> None:
        """Everything whose deadline is less than so far away expires now."""
        self.deadlines.check(self.loop.time() + seconds)

    def user(self) -> MemoryUser:
        return MemoryUser(self.edge)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        server = await self.loop.create_server(self.edge, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()[1]
            self.edge.close()
        while self.edge.connections:  # noqa: ASYNC110 - some turns of the loop
            await asyncio.sleep(0)


@asynccontextmanager
async def a_user(limits: Limits = LIMITS) -> AsyncIterator[tuple[Port, SocketUser]]:
    port = Port(limits)
    async with port.listening() as number, SocketUser(number) as user:
        yield port, user


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
    async with a_user(_with(body=8_000_000)) as (port, user):
        user.send(request("POST", "/slow_echo", BIG))
        await port.entered.wait()
        [asked] = port.asked
        before = -1
        while asked.body.buffered != before:
            before = asked.body.buffered
            await asyncio.sleep(0.02)
        assert module.READ_AHEAD < asked.body.buffered < 2_000_000
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
    async with a_user(_with(body=100_000_000)) as (port, user):
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


# ── everything else: the same connection, with a user in memory ───────────────────────────────


def _with(**changed: Any) -> Limits:
    fields = {name: getattr(LIMITS, name) for name in LIMITS.__slots__}
    return Limits(**{**fields, **changed})


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


async def test_the_absolute_form_of_a_target_is_understood() -> None:
    port = Port()
    user = port.user()
    for target in ("http://here.test/echo?a=b", "https://here.test", "/echo?x?y"):
        await user.ask("POST", target, b"")
    assert [(a.path, a.query) for a in port.asked] == [
        ("/echo", "a=b"),
        ("/", ""),
        ("/echo", "x?y"),
    ]


@pytest.mark.parametrize(
    "shape",
    [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        "Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde",
        "Content-Length: 5, 5\r\n\r\nabcde",
        "Content-Length: +5\r\n\r\nabcde",
        "Content-Length: -5\r\n\r\nabcde",
        "Content-Length: 0x5\r\n\r\nabcde",
        "Content-Length: \r\n\r\n",
        "Content-Length: 99999999999999999999999999\r\n\r\n",
        "Content-Length : 5\r\n\r\nabcde",
        "Content-Length:\r\n 5\r\n\r\nabcde",
        "X: a\r\n b\r\n\r\n",
        "X: a\rb\r\n\r\n",
        "X: a\nContent-Length: 5\r\n\r\nabcde",
        "X: a\0b\r\n\r\n",
        ": no name\r\n\r\n",
        "na me: x\r\n\r\n",
        "Transfer-Encoding: identity\r\n\r\n",
        "Transfer-Encoding: xchunked\r\n\r\n",
        "Transfer-Encoding: chunked, gzip\r\n\r\n",
        "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\nabcde\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5 \r\nabcde\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        "Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nabcdefg\r\n0\r\n\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc",
    ],
)
@pytest.mark.parametrize("pieces", [False, True])
async def test_what_could_be_read_in_two_ways_is_400_and_the_end(shape: str, pieces: bool) -> None:
    port = Port()
    user = port.user()
    data = b"POST /echo HTTP/1.1\r\nHost: test\r\n" + shape.encode() + GET
    for piece in [data[at : at + 1] for at in range(len(data))] if pieces else [data]:
        user.send(piece)
    answer = await user.answer()
    assert (answer.status, answer.code) == (400, "bad_request")
    assert answer.headers["connection"] == "close"
    assert await user.end() == b"", "there was a second answer"
    assert all(asked.path == "/echo" for asked in port.asked), "the second request was believed"


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/0.9\r\n\r\n",
        b"GET / HTTP/3.0\r\n\r\n",
        b"get / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\nhost: a\n\n",
        b"POST /echo HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"CONNECT here.test:443 HTTP/1.1\r\nhost: here.test\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
)
async def test_what_is_not_http_1_1_is_400(data: bytes) -> None:
    user = Port().user()
    user.send(data)
    answer = await user.answer()
    assert (answer.status, answer.code) == (400, "bad_request")
    await user.end()


async def test_limits_are_exact() -> None:
    port = Port()
    for over, status in ((0, 200), (1, 413)):
        body = b"x" * (LIMITS.body + over)
        answer = await port.user().ask("POST", "/echo", body)
        assert answer.status == status
        user = port.user()
        user.send(request("POST", "/echo", transfer_encoding="chunked"))
        user.send(b"".join(b"1000\r\n%b\r\n" % body[:4096] for _ in range(24)))
        user.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body) - 24 * 4096, body[24 * 4096 :]))
        assert (await user.answer()).status == status
    for over, status in ((0, 200), (1, 431)):
        used = len(b"host: test\r\n") + len(b"x: \r\n")
        answer = await port.user().ask("GET", "/", x="y" * (LIMITS.headers + over - used))
        assert answer.status == status
        more = {f"x{n}": "y" for n in range(LIMITS.header_count - 1 + over)}
        answer = await port.user().ask("GET", "/", **more)
        assert answer.status == status
    assert (await port.user().ask("GET", "/" + "x" * 5000)).code == "headers_too_large"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nx: " + b"y" * 1_000_000,
        b"GET / HTTP/1.1\r\n" + b"y" * 1_000_000,
        b"GET /" + b"y" * 1_000_000,
        b"GET / HTTP/1.1\r\n" + b"y: z\r\n" * 1_000_000,
        b"\r\n" * 500_000,
        b"POST /echo HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n" + b"y: z\r\n" * 200_000,
        b"POST /echo HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx:" + b"y" * 1_000_000,
        b"POST /echo HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3;" + b"y" * 1_000_000,
    ],
)
async def test_what_never_ends_is_431_before_it_has_cost_much(data: bytes) -> None:
    port = Port()
    user = port.user()
    for at in range(0, len(data), 1000):
        user.send(data[at : at + 1000])
        if not user.reading:
            break
    assert at <= LIMITS.headers + 2 * MAX_TARGET + 1000
    answer = await user.answer()
    assert (answer.status, answer.code) == (431, "headers_too_large")
    await user.end()


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
    port = Port(_with(body=2_000_000))
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


# ── any bytes, in any pieces ──────────────────────────────────────────────────────────────────

REQUESTS = st.sampled_from(
    [
        GET,
        request("POST", "/echo", b'{"a":1}'),
        request("POST", "/early", b"x" * 50),
        request("GET", "/stream"),
        request("HEAD", "/"),
        request("OPTIONS", "/", origin="https://a.test"),
        request("POST", "/echo", transfer_encoding="chunked") + b"3\r\nabc\r\n0\r\n\r\n",
        request("POST", "/echo", b"abc", expect="100-continue"),
        request("GET", "/nothing", connection="close"),
        request("GET", "/broken"),
        b"GET / HTTP/1.0\r\n\r\n",
        b"\r\n\r\n",
        b"POST /echo HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
    ]
)


@st.composite
def conversations(draw: st.DrawFn) -> bytes:
    """Requests, some with a few bytes changed."""
    data = bytearray(b"".join(draw(st.lists(REQUESTS, min_size=1, max_size=6))))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 5))] = draw(st.binary(max_size=5))
        data = data or bytearray(b"\r\n")
    return bytes(data)


async def _answers(data: bytes, cuts: list[int]) -> list[tuple[int, bytes]]:
    heard: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, said: heard.append(said))
    port = Port()
    user = port.user()
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        if user.closed:
            break
        user.send(data[start:stop])
        for _ in range(30):
            await asyncio.sleep(0)
    for _ in range(100):
        await asyncio.sleep(0)
    for seconds in (11, 61, 100):
        port.wait(seconds)
        for _ in range(10):
            await asyncio.sleep(0)
    port.wait(1000)
    await asyncio.sleep(0)
    assert user.closed, "a connection was left behind"
    assert port.edge.connections == 0
    assert not heard
    return _parsed(bytes(user.received), port.asked)


def _parsed(data: bytes, asked: list[Request]) -> list[tuple[int, bytes]]:
    methods = {one.id: one.method for one in asked}
    answers: list[Answer] = []
    while data:
        found = re.search(rb"x-request-id: (\S+)", data)
        assert found is not None
        method = methods.get(found[1].decode(), "")
        try:
            answer, length = parse_answer(data, method=method, at_end=True)
        except (Incomplete, json.JSONDecodeError):
            assert not method  # a HEAD that was refused before it was handled
            answer, length = parse_answer(data, method="HEAD", at_end=True)
        if answer.status >= 400 and answer.body:
            assert answer.code
        answers.append(answer)
        data = data[length:]
    return [(answer.status, answer.body) for answer in answers]


@settings(max_examples=150, deadline=None)
@given(conversations(), st.data())
@example(GET * 3, None)
async def test_any_bytes_in_any_pieces_give_the_same_answers_and_no_exception(
    data: bytes, pieces: st.DataObject | None
) -> None:
    cuts = (
        list(range(1, len(data)))
        if pieces is None
        else sorted(pieces.draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=8)))
    )
    whole = await _answers(data, [])
    cut = await _answers(data, [at for at in cuts if at < len(data)])
    for one, other in zip(cut, whole, strict=False):
        if one != other:
            # What is refused before its body is complete, and that this body can't be read:
            # the user hears of what comes first, and the connection is closed in any case.
            assert min(one[0], other[0]) >= 400
            return
    if len(cut) != len(whole):
        assert len(cut) < len(whole)
        assert cut[-1][0] >= 400


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=300), max_size=6))
async def test_noise_is_never_an_exception(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    if data:
        await _answers(data, [])


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
