"""The port of HTTP-01: known tokens, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from fabric_server.acme import http_port
from fabric_server.acme.http_port import HttpPort, PortProblem, asked_token
from tests.loops import on_both_loops

PATH = "/.well-known/acme-challenge/"


def a_port(seconds: float = 5.0) -> HttpPort:
    return HttpPort(
        ["127.0.0.1", "127.0.0.2"], 0, {"tok-en_1": "tok-en_1.thumb"}.get, seconds=seconds
    )


async def say(port: HttpPort, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port.port)
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionError:
        return b"reset"
    finally:
        writer.close()


@on_both_loops
async def test_a_known_token_is_answered_and_the_connection_ends() -> None:
    port = a_port()
    await port.start()
    await port.start()  # it listens already
    answer = await say(port, f"GET {PATH}tok-en_1 HTTP/1.1\r\nHost: a.org\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body == b"tok-en_1.thumb"
    port.stop()
    assert not port.open
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port.port)


@pytest.mark.parametrize(
    "request_line",
    [
        f"GET {PATH}other HTTP/1.1",
        f"GET {PATH} HTTP/1.1",
        f"GET {PATH}../tok-en_1 HTTP/1.1",
        f"GET {PATH}tok-en_1/ HTTP/1.1",
        f"GET {PATH}tok-en_1?x HTTP/1.1",
        f"POST {PATH}tok-en_1 HTTP/1.1",
        "GET /v1/models HTTP/1.1",
        "GET / HTTP/1.1",
        "\x16\x03\x01",
    ],
)
async def test_anything_else_is_not_found(request_line: str) -> None:
    port = a_port()
    await port.start()
    answer = await say(port, f"{request_line}\r\nHost: a.org\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"thumb" not in answer
    port.stop()


def test_a_token_is_read_only_from_a_whole_request_line() -> None:
    assert asked_token(f"GET {PATH}abc HTTP/1.0\r\n\r\n".encode()) == "abc"
    assert asked_token(f"GET {PATH}abc HTTP/1.1".encode()) is None
    assert asked_token(f"GET {PATH}{'a' * 257} HTTP/1.1\r\n".encode()) is None


@on_both_loops
async def test_an_endless_head_is_cut_off() -> None:
    port = a_port()
    await port.start()
    head = b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 2000
    assert await say(port, head) in (b"", b"reset")
    port.stop()


@on_both_loops
async def test_a_slow_stranger_is_cut_off() -> None:
    port = a_port(seconds=0.1)
    await port.start()
    assert await say(port, b"GET /") in (b"", b"reset")
    port.stop()


@on_both_loops
async def test_strangers_who_hold_connections_do_not_keep_a_ca_out() -> None:
    port = a_port()
    await port.start()
    held = [
        await asyncio.open_connection("127.0.0.1", port.port)
        for _ in range(http_port.MAX_CONNECTIONS + 10)
    ]
    request = f"GET {PATH}tok-en_1 HTTP/1.1\r\nHost: a.org\r\n\r\n".encode()
    assert (await say(port, request)).endswith(b"tok-en_1.thumb")
    port.stop()
    for reader, writer in held:
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


@on_both_loops
async def test_a_stranger_with_many_connections_loses_its_own() -> None:
    port = a_port()
    await port.start()
    ca = await asyncio.open_connection("127.0.0.2", port.port, local_addr=("127.0.0.2", 0))
    held = [
        await asyncio.open_connection("127.0.0.1", port.port)
        for _ in range(2 * http_port.MAX_CONNECTIONS)
    ]
    ca[1].write(f"GET {PATH}tok-en_1 HTTP/1.1\r\nHost: a.org\r\n\r\n".encode())
    assert (await asyncio.wait_for(ca[0].read(), 5)).endswith(b"tok-en_1.thumb")
    port.stop()
    for _, writer in (ca, *held):
        writer.close()


async def test_a_port_that_is_taken_is_named() -> None:
    first = a_port()
    await first.start()
    second = HttpPort(["127.0.0.1"], first.port, lambda token: None)
    with pytest.raises(PortProblem, match="acme_http_port"):
        await second.start()
    first.stop()
