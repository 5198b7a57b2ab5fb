"""The reader of a client's first message agrees with OpenSSL, and takes anything."""

from __future__ import annotations

import contextlib
import ssl
import sys
from random import Random

import pytest

from fabric_server.net.client_hello import HEADER_SIZE, BadHello, ClientHello, read, record_size


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


def sized(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size) + data


def made_of(*extensions: tuple[int, bytes]) -> bytes:
    """Return a hello that has these extensions, by type and data; OpenSSL makes no such ones."""
    parts = b"".join(kind.to_bytes(2) + sized(2, data) for kind, data in extensions)
    body = b"\x03\x03" + bytes(32) + sized(1, b"") + sized(2, b"\x13\x01") + sized(1, b"\0")
    return b"\x16\x03\x01" + sized(2, b"\x01" + sized(3, body + sized(2, parts)))


def protocols(*names: bytes) -> tuple[int, bytes]:
    return 16, sized(2, b"".join(sized(1, name) for name in names))


MANY = 16_000
COSTLY = {
    "empty protocols": made_of(protocols(*[b""] * MANY)),
    "one empty protocol": made_of(protocols(b"h2", b"")),
    "many protocols": made_of(protocols(*[b"a"] * (MANY // 2))),
    "33 protocols": made_of(protocols(*[b"a"] * 33)),
    "many extensions": made_of(*((1000 + n, b"") for n in range(MANY // 4))),
    "65 extensions": made_of(*((1000 + n, b"") for n in range(65))),
    "one extension often": made_of(*[(0xFFFF, b"")] * 2),
    "many lists of protocols": made_of(*[protocols(*[b"a"] * 32)] * 60),
    "many names that are no host's": made_of((0, sized(2, b"\1\0\0" * (MANY // 3)))),
}


@pytest.mark.parametrize("record", COSTLY.values(), ids=COSTLY)
def test_a_message_that_is_made_to_cost_time_is_refused_before_it_does(record: bytes) -> None:
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    sys.setprofile(count)
    try:
        with pytest.raises(BadHello):
            read(record)
    finally:
        sys.setprofile(None)
    assert steps < 2500, "a call of each part at most, and of few parts"


def test_as_much_as_any_client_sends_is_read() -> None:
    names = [b"p%d" % n for n in range(32)]
    record = made_of(*((1000 + n, b"") for n in range(63)), protocols(*names))
    assert read(record).protocols == tuple(name.decode() for name in names)


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
        with contextlib.suppress(BadHello):
            assert isinstance(read(bytes(spoiled)), ClientHello)
        assert HEADER_SIZE <= record_size(bytes(spoiled)) <= HEADER_SIZE + 16_384
