"""The text of the kernel's rules; tests/lab/test_guard.py has the kernel's opinion of it."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from fabric_server.net.guard_rules import (
    GuardRules,
    block_text,
    blocked_as,
    install_text,
    parse_status,
    remove_text,
)


@pytest.mark.parametrize(
    ("address", "blocked"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::"),
        ("2001:db8::1%eth0", "2001:db8::"),
        *((one, None) for one in ("127.0.0.1", "::1", "0.0.0.0", "::", "fe80::1", "ff02::1")),
        *((one, None) for one in ("", "nonsense", "1.2.3.4; drop", "1.2.3.4/8")),
    ],
)
def test_addresses_are_blocked_in_one_form(address: str, blocked: str | None) -> None:
    assert blocked_as(address) == blocked


def test_networks_within_others_are_left_out() -> None:
    trusted = [ip_network(one) for one in ("10.1.0.0/16", "10.0.0.0/8", "fd00::/8", "fd00::1/128")]
    text = install_text(GuardRules(ports=(1, 2), rate=3, burst=4, trusted=tuple(trusted)))
    elements = [line for line in text.splitlines() if line.startswith("add element")]
    assert elements == [
        "add element inet fabric_guard trusted4 { 10.0.0.0/8 }",
        "add element inet fabric_guard trusted6 { fd00::/8 }",
    ]
    assert "tcp dport { 1, 2 } jump api" in text
    assert "limit rate over 3/second burst 4 packets" in text


def test_only_the_fabrics_own_table_is_touched() -> None:
    text = install_text(GuardRules(ports=(1,), rate=3, burst=4)) + remove_text()
    text += block_text({"192.0.2.7": 0.2, "2001:db8::": 60.0})
    assert all(" inet fabric_guard" in line for line in text.splitlines())
    assert "192.0.2.7 timeout 1s" in text
    assert "2001:db8:: timeout 60s" in text
    assert block_text({}) == ""


def test_a_table_that_is_not_as_installed_can_be_read() -> None:
    assert parse_status({}).ports == ()
    status = parse_status({"nftables": [{"metainfo": {}}, {"set": {"name": "blocked4"}}]})
    assert status.blocked == {}
