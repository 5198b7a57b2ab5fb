"""Headers of the PROXY protocol, version 2, as proxies send them and as strangers do."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fabric_server.net.proxy_protocol import (
    FIXED_SIZE,
    MAX_LENGTH,
    SIGNATURE,
    ProxyProtocolError,
    parse_fixed,
    parse_rest,
)

MAGIC = "0d0a0d0a000d0a515549540a"
IPV4 = "cb007105 0a000002 d903 01bb"  # 203.0.113.5:55555 to 10.0.0.2:443
IPV6 = "20010db8000200000000000000000007 20010db8000100000000000000000001 d903 01bb"
MAPPED = "00000000000000000000ffffcb007105 00000000000000000000ffff0a000002 d903 01bb"
TLVS = "010002 6832  030004 a9b87e8f  04 0000"  # ALPN h2, CRC32C, NOOP


def header(text: str) -> bytes:
    return bytes.fromhex(MAGIC + text.replace(" ", ""))


def read(data: bytes) -> str | None:
    fixed = parse_fixed(data[:FIXED_SIZE])
    assert len(data) == FIXED_SIZE + fixed.length
    ip = parse_rest(fixed, data[FIXED_SIZE:])
    return None if ip is None else str(ip)


@pytest.mark.parametrize(
    ("text", "client"),
    [
        ("21 11 000c" + IPV4, "203.0.113.5"),
        ("21 21 0024" + IPV6, "2001:db8:2::7"),
        ("21 21 0024" + MAPPED, "203.0.113.5"),
        ("21 11 001b" + IPV4 + TLVS, "203.0.113.5"),
        ("20 00 0000", None),  # a health check of the proxy
        ("20 11 000c" + IPV4, None),
        ("20 00 0003 ffffff", None),
        ("21 00 0000", None),
        ("21 00 0003 04 0000", None),
    ],
)
def test_what_proxies_send_is_read(text: str, client: str | None) -> None:
    assert read(header(text)) == client


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"PROXY TCP4 203.0.113.5 ", "no PROXY protocol version 2"),
        (b"\x16\x03\x01\x02\x00" + bytes(11), "no PROXY protocol version 2"),
        (b"GET / HTTP/1.1\r\n", "no PROXY protocol version 2"),
        (header("11 11 000c"), "version or command"),
        (header("22 11 000c"), "version or command"),
        (header("21 12 000c"), "neither TCP"),  # UDP
        (header("21 31 00d8"), "neither TCP"),  # Unix sockets
        (header("21 01 000c"), "neither TCP"),
        (header("21 11 000b"), "shorter than its addresses"),
        (header("21 21 000c"), "shorter than its addresses"),
        (header("21 11 ffff"), "65535 bytes"),
    ],
)
def test_anything_else_is_refused_by_its_fixed_part(data: bytes, reason: str) -> None:
    with pytest.raises(ProxyProtocolError, match=reason):
        parse_fixed(data[:FIXED_SIZE])


@pytest.mark.parametrize(
    "text", ["21 11 000d" + IPV4 + "04", "21 11 0010" + IPV4 + "04 0002 00", "21 00 0001 00"]
)
def test_a_tlv_that_does_not_fit_is_refused(text: str) -> None:
    with pytest.raises(ProxyProtocolError, match="TLV"):
        read(header(text))


@given(st.binary(min_size=4, max_size=4), st.binary(max_size=300))
@example(b"\x21\x11\x00\x0c", bytes(12))
def test_any_bytes_are_an_address_nothing_or_an_error(start: bytes, rest: bytes) -> None:
    try:
        fixed = parse_fixed(SIGNATURE + start)
        assert fixed.length <= MAX_LENGTH
        parse_rest(fixed, rest.ljust(fixed.length, b"\0")[: fixed.length])
    except ProxyProtocolError as error:
        assert str(error)
