"""Addresses of users and nodes: known while they are connected, and for a while after."""

from __future__ import annotations

from fabric_server.net import known_addresses
from fabric_server.net.addresses import parse
from fabric_server.net.connection_budget import Budget, Peer, Places
from fabric_server.net.known_addresses import SECONDS, KnownAddresses


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_address_is_known_until_a_while_after_its_last_connection() -> None:
    clock = Clock()
    known = KnownAddresses(clock)
    known.opened("a")
    known.opened("a")
    clock.now += 10 * SECONDS
    known.closed("a")
    clock.now += 10 * SECONDS
    assert "a" in known
    known.closed("a")
    clock.now += SECONDS - 1
    assert "a" in known
    clock.now += 1
    assert "a" not in known
    assert "b" not in known


def test_only_so_many_are_remembered_without_a_connection() -> None:
    known = KnownAddresses(Clock())
    for number in range(known_addresses.MAX_LEFT + 10):
        known.opened(str(number))
        known.closed(str(number))
    known.opened("here")
    assert len(known._left) == known_addresses.MAX_LEFT
    assert "0" not in known
    assert str(known_addresses.MAX_LEFT) in known
    assert "here" in known


def test_ports_share_them_and_who_is_known_at_one_is_suspected_at_none() -> None:
    clock, suspected = Clock(), []
    known = KnownAddresses(clock)

    def budget(*, strangers_only: bool = False) -> Budget:
        return Budget(
            Places(10, 10, strangers_only=strangers_only),
            lambda reason, peer: None,
            on_suspect=lambda peer: suspected.append(str(peer.ip)),
            known=known,
        )

    public, control = budget(), budget(strangers_only=True)
    office, other = parse("2001:db8:0:1::1"), parse("203.0.113.9")
    node = Peer(office, budget=control)
    node.enter()
    node.recognise()
    strangers = [Peer(parse("2001:db8:0:1::2"), budget=public), Peer(other, budget=public)]
    for stranger in strangers:
        stranger.enter()
        stranger.suspect()
    assert suspected == [str(other)]
    node.release()
    node.release()
    strangers[0].suspect()
    assert suspected == [str(other)]
    clock.now += SECONDS
    strangers[0].suspect()
    assert suspected == [str(other), "2001:db8:0:1::2"]
    for stranger in strangers:
        stranger.release()
        stranger.suspect()  # it is gone
    assert len(suspected) == 2
