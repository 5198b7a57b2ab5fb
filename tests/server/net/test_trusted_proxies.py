"""The client's address: from the peer, or from what trusted proxies say, and from nobody else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_server.net.addresses import origin, parse
from fabric_server.net.trusted_proxies import TrustedProxies

OURS = TrustedProxies(["10.0.0.0/8", "2001:db8:1::/48"])


@pytest.mark.parametrize(
    ("peer", "header", "client"),
    [
        ("203.0.113.5", b"198.51.100.7", "203.0.113.5"),  # anybody can write a header
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", b"203.0.113.5", "203.0.113.5"),
        ("10.0.0.1", b"198.51.100.7, 203.0.113.5", "203.0.113.5"),  # the client wrote the first
        ("10.0.0.1", b"198.51.100.7,203.0.113.5 ,\t10.9.9.9", "203.0.113.5"),
        ("10.0.0.1", b"10.0.0.3, 10.0.0.2", "10.0.0.3"),  # clients of our own network
        ("10.0.0.1", b"203.0.113.5:4711", "203.0.113.5"),
        ("10.0.0.1", b"[2001:db8:2::7]:4711", "2001:db8:2::7"),
        ("10.0.0.1", b"2001:DB8:2:0::7", "2001:db8:2::7"),
        ("10.0.0.1", b"::ffff:203.0.113.5", "203.0.113.5"),
        ("::ffff:10.0.0.1", b"203.0.113.5", "203.0.113.5"),
        ("2001:db8:1::9", b"203.0.113.5, 2001:db8:1::8", "203.0.113.5"),
        ("10.0.0.1", b"203.0.113.5, unknown", "10.0.0.1"),
        ("10.0.0.1", b"203.0.113.5, _hidden, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", b"", "10.0.0.1"),
        ("10.0.0.1", b"203.0.113.5,", "10.0.0.1"),
        ("10.0.0.1", b"\xff\xfe", "10.0.0.1"),
        ("10.0.0.1", b",".join([b"203.0.113.5"] + [b"10.0.0.2"] * 500), "10.0.0.2"),
    ],
)
def test_only_trusted_hops_are_believed(peer: str, header: bytes | None, client: str) -> None:
    assert str(OURS.client(parse(peer), header)) == client


@given(st.binary(max_size=200))
def test_whatever_a_client_writes_the_hop_that_the_proxy_appended_is_found(prefix: bytes) -> None:
    header = prefix + b", 203.0.113.5"
    assert str(OURS.client(parse("10.0.0.1"), header)) == "203.0.113.5"
    assert str(OURS.client(parse("203.0.113.9"), header)) == "203.0.113.9"


def test_nobody_is_trusted_by_default() -> None:
    assert str(TrustedProxies().client(parse("127.0.0.1"), b"203.0.113.5")) == "127.0.0.1"


@pytest.mark.parametrize("text", ["", "10.0.0.1/8", "10.0.0.0/33", "example.org", "10.0.0"])
def test_what_is_no_network_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"use one such as 10\.0\.0\.0/8"):
        TrustedProxies([text])


def test_one_customer_is_counted_as_one() -> None:
    assert origin("2001:db8::1") == origin("2001:db8:0:0:ffff::1") != origin("2001:db8:0:1::1")
    assert origin("::ffff:192.0.2.1") == origin("192.0.2.1") != origin("192.0.2.2")
    assert origin("fe80::1%eth0") == origin("fe80::2")
