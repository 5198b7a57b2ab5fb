"""The reader of a client's first message agrees with OpenSSL, and takes anything."""

from __future__ import annotations

import contextlib
import ssl
from random import Random

import pytest

from fabric_server.net.client_hello import HEADER_SIZE, ClientHello, read, record_size


def hello(name: str | None, protocols: list[str]) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = name is not None
    context.verify_mode = ssl.CERT_NONE if name is None else ssl.CERT_REQUIRED
    if protocols:
        context.set_alpn_protocols(protocols)
    out = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return out.read()


@pytest.mark.parametrize("name", [None, "server.fabric", "gpu.example.org"])
@pytest.mark.parametrize("protocols", [[], ["http/1.1"], ["h2", "fabric-control/1", "x" * 255]])
def test_name_and_protocols_of_a_real_client_are_read(
    name: str | None, protocols: list[str]
) -> None:
    record = hello(name, protocols)
    assert record_size(record[:HEADER_SIZE]) == len(record)
    assert read(record) == ClientHello(name or "", tuple(protocols))


def test_a_message_that_is_cut_off_anywhere_asks_for_nothing() -> None:
    record = hello("server.fabric", ["fabric-control/1"])
    assert all(read(record[:count]) == ClientHello() for count in range(len(record)))


def test_any_bytes_are_taken() -> None:
    rng = Random(5)
    record = hello("server.fabric", ["fabric-control/1"])
    for _ in range(3000):
        spoiled = bytearray(record)
        for _ in range(rng.randint(1, 4)):
            spoiled[rng.randrange(len(spoiled))] = rng.randrange(256)
        assert isinstance(read(bytes(spoiled)), ClientHello)
        assert HEADER_SIZE <= record_size(bytes(spoiled)) <= HEADER_SIZE + 16_384
