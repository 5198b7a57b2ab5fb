"""Parsing of requests: ambiguous ones are refused, limits are exact."""

from __future__ import annotations

import pytest

from fabric_server.edge.connection import MAX_PIPELINED
from fabric_server.edge.parser import MAX_TARGET
from tests.server.edge.port import GET, LIMITS, Port
from tests.users import request

CHUNKED = b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"


async def test_the_absolute_form_of_a_target_is_understood() -> None:
    port = Port()
    user = port.user()
    for target in (
        "http://here.test/echo?a=b",
        "https://here.test",
        "https://here.test?c",
        "/echo?x?y",
    ):
        await user.ask("POST", target, b"")
    assert [(a.path, a.query) for a in port.asked] == [
        ("/echo", "a=b"),
        ("/", ""),
        ("/", "c"),
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
        "Host: other\r\n\r\n",
        "Host: test\r\n\r\n",
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
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET http://here.test/ HTTP/1.1\r\naccept: */*\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a,b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a/b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: user@a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: [::1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a:80:80\r\n\r\n",
    ],
)
async def test_what_is_not_http_1_1_is_400(data: bytes) -> None:
    user = Port().user()
    user.send(data)
    answer = await user.answer()
    assert (answer.status, answer.code) == (400, "bad_request")
    await user.end()


@pytest.mark.parametrize(
    "host",
    [b"", b"a", b"A.test:18080", b"192.0.2.1:80", b"[2001:db8::1]:80", b"a-b.test.", b"a:"],
)
async def test_any_valid_host_is_served(host: bytes) -> None:
    user = Port().user()
    user.send(b"GET / HTTP/1.1\r\nhost: %b\r\n\r\n" % host)
    assert (await user.answer()).status == 200


async def test_http_1_0_needs_no_host() -> None:
    user = Port().user()
    user.send(b"GET / HTTP/1.0\r\n\r\n")
    assert (await user.answer()).status == 200


UPGRADE = (
    b"Connection: Upgrade, HTTP2-Settings\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
    b"Upgrade: h2c\r\n"
)


@pytest.mark.parametrize(
    ("body", "echoed"),
    [
        (b"Content-Length: 3\r\n\r\nabc", b"abc"),
        (b"Content-Length: 0\r\n\r\n", b""),
        (b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"abc"),
        (b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b""),
    ],
)
@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("upgrade", [UPGRADE, b"connection: upgrade\r\nupgrade: websocket\r\n"])
async def test_an_upgrade_is_ignored_and_the_connection_goes_on(
    body: bytes, echoed: bytes, pieces: bool, upgrade: bytes
) -> None:
    port = Port()
    user = port.user()
    data = (b"POST /echo HTTP/1.1\r\nHost: test\r\n" + upgrade + body) * 2 + GET
    for piece in [data[at : at + 1] for at in range(len(data))] if pieces else [data]:
        user.send(piece)
    for expected in (echoed, echoed, b'"hello"'):
        answer = await user.answer()
        assert (answer.status, answer.body) == (200, expected)
    assert [asked.path for asked in port.asked] == ["/echo", "/echo", "/"]


async def test_many_upgrades_at_once_are_as_many_requests_as_others() -> None:
    user = Port().user()
    user.send((b"GET / HTTP/1.1\r\nHost: test\r\n" + UPGRADE + b"\r\n") * 5000)
    statuses = [(await user.answer()).status for _ in range(MAX_PIPELINED + 2)]
    assert statuses == [*[200] * (MAX_PIPELINED + 1), 400]


@pytest.mark.parametrize("expect", ["100-Continue", "200-ok", ""])
async def test_an_expectation_that_is_unknown_is_ignored(expect: str) -> None:
    user = Port().user()
    user.send(request("POST", "/echo", b"abc", expect=expect))
    answer = await user.answer()
    if answer.status == 100:
        answer = await user.answer()
    assert (answer.status, answer.body) == (200, b"abc")


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
        b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 1_000_000,
        b"GET / HTTP/1.1\r\n" + b"y" * 1_000_000,
        b"GET /" + b"y" * 1_000_000,
        b"GET / HTTP/1.1\r\n" + b"y: z\r\n" * 1_000_000,
        b"\r\n" * 500_000,
        CHUNKED + b"0\r\n" + b"y: z\r\n" * 200_000,
        CHUNKED + b"0\r\nx:" + b"y" * 1_000_000,
        CHUNKED + b"3;" + b"y" * 1_000_000,
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
