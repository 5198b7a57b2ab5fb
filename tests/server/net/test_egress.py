"""Where the server never goes, whoever names the address, and however it is spelt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_server.net.egress import (
    Forbidden,
    Target,
    ThreadedLookUp,
    any_address,
    parse_target,
    resolve,
)
from fabric_server.net.special_addresses import is_public

SPECIAL_IPV4 = [
    *("0.0.0.0", "0.255.255.255", "10.1.2.3", "100.64.0.1", "100.127.255.255"),
    *("127.0.0.1", "127.8.8.8", "169.254.169.254", "172.16.0.1", "172.31.255.255"),
    *("192.0.0.1", "192.0.0.9", "192.0.0.170", "192.0.2.1", "192.88.99.1", "192.168.1.1"),
    *("198.18.0.1", "198.19.255.255", "198.51.100.7", "203.0.113.9"),
    *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
]
WORLD_IPV4 = [
    *("1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0"),
    *("126.255.255.255", "128.0.0.0", "169.253.255.255", "172.15.255.255", "172.32.0.0"),
    *("192.0.1.0", "192.88.98.255", "192.88.100.0", "192.167.255.255", "192.169.0.0"),
    *("198.17.255.255", "198.20.0.0", "223.255.255.255"),
]
SPECIAL_IPV6 = [
    *("::", "::1", "fe80::1", "fe80::1%eth0", "febf::1", "fec0::1", "fc00::1", "fd12:3456::1"),
    *("ff02::1", "100::1", "100:0:0:1::1", "64:ff9b:1::1", "5f00::1", "4000::1"),
    *("2001:2::1", "2001:10::1", "2001:20::1", "2001:1ff::1", "2001:db8::1"),
    *("3ffe::1", "3fff::1", "3fff:fff::1"),
]
WORLD_IPV6 = ["2606:4700::1111", "2001:200::1", "2a00:1450::1", "2003::1", "3fff:1000::1"]


def teredo(server: str, client: str) -> str:
    turned = "".join(f"{255 - int(part):02x}" for part in client.split("."))
    return f"2001:0:{hexed(server)}:0:0:{turned[:4]}:{turned[4:]}"


def hexed(ipv4: str) -> str:
    text = "".join(f"{int(part):02x}" for part in ipv4.split("."))
    return f"{text[:4]}:{text[4:]}"


def embeddings(ipv4: str) -> list[str]:
    """Every IPv6 address that leads to an IPv4 address."""
    return [
        f"::ffff:{ipv4}",
        f"::{hexed(ipv4)}",
        f"::ffff:0:{hexed(ipv4)}",
        f"64:ff9b::{hexed(ipv4)}",
        f"2002:{hexed(ipv4)}::1",
        teredo("8.8.8.8", ipv4),
        teredo(ipv4, "8.8.8.8"),
        f"2a00:1450::5efe:{hexed(ipv4)}",
        f"2a00:1450::200:5efe:{hexed(ipv4)}",
    ]


@pytest.mark.parametrize("address", [*SPECIAL_IPV4, *SPECIAL_IPV6])
def test_special_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", [*WORLD_IPV4, *WORLD_IPV6])
def test_the_worlds_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("ipv4", SPECIAL_IPV4)
def test_ipv6_does_not_lead_to_special_ipv4_addresses(ipv4: str) -> None:
    assert [one for one in embeddings(ipv4) if is_public(one)] == []


def test_ipv6_leads_to_the_worlds_ipv4_addresses() -> None:
    assert [one for one in embeddings("8.8.8.8") if not is_public(one)] == []


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_and_its_mapped_form_are_judged_alike(address: object) -> None:
    assert is_public(str(address)) == is_public(f"::ffff:{address}")


# ── URLs ──────────────────────────────────────────────────────────────────────────────────────


HOSTILE = [
    *("localhost.", "127.1", "2130706433", "0x7f000001"),
    *("0x7f.1", "017700000001", "0177.0.0.1", "0", "0x", "127.0.0.1.", "08.8.8.8", "256.1.1.1"),
    *("134744072", "0x08080808", "8.8.8.8.", "1.2.3", "1.2.3.4.5", "10.0.0.1", "192.168.1.1"),
    *("[::]", "[::1]", "[::ffff:192.168.1.1]", "[fe80::1%25eth0]", "[1.2.3.4]", "[x]"),
    *("münchen.de", "①②⑦.⓪.⓪.①", "exa%6dple.com", "a..b", ".a", "a.", "a" * 64, ""),
    *("user@example.com", "user:pw@example.com", "example.com:0", "example.com:x", "a b.com"),
    *("example.com\\@192.168.1.1", "example.com#@192.168.1.1", "example.com\t.de", "a\n.b"),
]


@pytest.mark.parametrize("host", HOSTILE)
def test_hosts_that_lead_back_or_are_read_differently_are_refused(host: str) -> None:
    with pytest.raises(Forbidden):
        parse_target(f"https://{host}/", allow_http=True)


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "FILE:///etc/passwd", "ftp://example.com/", "gopher://a.com/"),
        *("//example.com/", "/etc/passwd", "example.com/a.png", "http:example.com", "http:///a"),
        *(" http://example.com/", "http://example.com/ ", "\thttp://example.com/", "ht\ntp://a.b/"),
        *("https:\\\\example.com\\", "http://example.com/\x00", "http://a.b/" + "a" * 9000),
    ],
)
def test_other_schemes_and_odd_spellings_are_refused(url: str) -> None:
    with pytest.raises(Forbidden):
        parse_target(url, allow_http=True)


def test_a_target_has_what_a_request_needs() -> None:
    target = parse_target("HTTP://Example.com?a=b", allow_http=True)
    assert target == ("http", "example.com", 80, "/?a=b")
    assert target.authority == "example.com:80"
    target = parse_target("https://[2606:4700::1111]:8443/x", allow_http=False)
    assert target.authority == "[2606:4700::1111]:8443"
    with pytest.raises(Forbidden, match="https"):
        parse_target("http://example.com/", allow_http=False)
    private = parse_target("http://10.0.0.1/", allow_http=True, allowed=any_address)
    assert private.host == "10.0.0.1"


# ── names ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def system() -> Iterator[ThreadedLookUp]:
    with ThreadPoolExecutor(1) as threads:
        yield ThreadedLookUp(threads)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST"])
async def test_a_name_of_this_machine_is_found_out(host: str, system: ThreadedLookUp) -> None:
    target = parse_target(f"http://{host}/", allow_http=True)
    with pytest.raises(Forbidden):
        await resolve(target, system)
    assert await resolve(target, system, any_address)


async def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    async def look_up(host: str, port: int) -> Sequence[str]:  # a fake: no name server is asked
        return ["8.8.8.8", "192.168.1.1"]

    with pytest.raises(Forbidden):
        await resolve(Target("http", "a.example", 80, "/"), look_up)


async def test_a_name_without_addresses_is_an_error() -> None:
    async def look_up(host: str, port: int) -> Sequence[str]:  # a fake
        return []

    with pytest.raises(OSError, match="no address"):
        await resolve(Target("http", "a.example", 80, "/"), look_up)
