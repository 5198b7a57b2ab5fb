"""Places of connections: who gets one, who is shed, and that the books are right."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_server.net.addresses import parse
from fabric_server.net.connection_budget import Budget, Peer, Places
from fabric_server.net.descriptor_plan import MAX_PUBLIC, make_plan
from fabric_server.net.trusted_proxies import TrustedProxies

PROXIES = TrustedProxies(["10.0.0.0/8"])


class Port:
    """A port without sockets: who is connected, and who was dropped for which reason."""

    def __init__(self, total: int, per_address: int, *, strangers_only: bool = False) -> None:
        places = Places(total, per_address, strangers_only=strangers_only)
        self.reasons: Counter[str] = Counter()
        self.dropped: list[Peer] = []
        self.budget = Budget(places, lambda reason, peer: self.reasons.update([reason]))

    def connect(self, address: str) -> Peer | str:
        """The peer, or why it was refused."""
        peer = Peer(parse(address), PROXIES, self.budget)
        reason = peer.enter()
        if reason is not None:
            return reason
        peer.drop = lambda: self.dropped.append(peer)
        return peer

    def known(self, address: str) -> Peer:
        peer = self.connect(address)
        assert isinstance(peer, Peer)
        peer.recognise()
        return peer


def test_the_oldest_stranger_goes_first_and_who_is_known_stays() -> None:
    port = Port(4, 4)
    users = [port.known("198.51.100.1"), port.known("198.51.100.2")]
    strangers = [port.connect("203.0.113.1"), port.connect("203.0.113.2")]
    later = port.connect("203.0.113.3")
    assert port.dropped == strangers[:1]
    assert isinstance(later, Peer)
    later.recognise()  # now strangers[1] is the only one
    assert isinstance(port.connect("203.0.113.4"), Peer)
    assert port.dropped == strangers
    assert port.reasons == {"shed": 2}
    assert not set(users) & set(port.dropped)


def test_where_all_are_known_a_newcomer_is_refused() -> None:
    port = Port(2, 2)
    first = port.known("198.51.100.1")
    port.known("198.51.100.2")
    assert port.connect("198.51.100.3") == "full"
    first.release()
    first.release()
    assert isinstance(port.connect("198.51.100.3"), Peer)
    assert port.budget.used == 2


@pytest.mark.parametrize(
    "addresses",
    [
        ["203.0.113.1"] * 4,
        ["203.0.113.1", "::ffff:203.0.113.1"] * 2,
        ["2001:db8::1", "2001:db8::2", "2001:db8::ffff:0:0:1", "2001:db8:0:0:1::"],
    ],
)
def test_one_address_or_64_has_its_share_only(addresses: list[str]) -> None:
    port = Port(100, 3)
    for address in addresses:
        assert isinstance(port.connect(address), Peer)
    assert (port.budget.used, port.reasons) == (3, {"shed_address": 1})
    assert isinstance(port.connect("2001:db8:0:1::1"), Peer)
    assert port.budget.used == 4


def test_a_user_behind_the_address_of_strangers_gets_in_and_a_full_address_is_refused() -> None:
    port = Port(100, 3)
    users = [port.known("203.0.113.1") for _ in range(3)]
    assert port.connect("203.0.113.1") == "full_address"
    users[0].release()
    assert isinstance(port.connect("203.0.113.1"), Peer)
    port.known("203.0.113.1")  # in the place of the stranger before it
    assert port.reasons == {"shed_address": 1}
    assert port.connect("203.0.113.1") == "full_address"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.1.2.3", "::ffff:10.1.2.3"])
def test_this_machine_and_trusted_proxies_are_not_one_address(address: str) -> None:
    port = Port(10, 2)
    for _ in range(10):
        port.known(address)
    assert port.connect(address) == "full"


def test_a_proxys_client_is_counted_by_its_own_address() -> None:
    port = Port(10, 1)
    client = ip_address("203.0.113.1")
    first, second = port.connect("10.0.0.1"), port.connect("10.0.0.1")
    assert isinstance(first, Peer) and isinstance(second, Peer)
    assert first.move(client) is None
    first.recognise()
    assert second.move(client) == "full_address"
    assert port.budget.used == 1
    second.release()
    first.release()
    assert (port.budget.used, port.budget.origins) == (0, 0)


def test_on_a_node_port_only_the_unregistered_of_an_address_are_limited() -> None:
    port = Port(10, 2, strangers_only=True)
    for _ in range(5):
        port.known("203.0.113.1")
    for _ in range(3):
        port.connect("203.0.113.1")
    assert (port.budget.used, port.reasons) == (7, {"shed_address": 1})


ADDRESSES = ["203.0.113.1", "203.0.113.2", "2001:db8::1", "2001:db8::2", "10.0.0.1", "127.0.0.1"]
STEPS = st.lists(
    st.tuples(st.sampled_from(["connect", "recognise", "release"]), st.integers(0, 11)),
    max_size=80,
)


@given(STEPS, st.booleans())
def test_the_books_are_right_whatever_happens(
    steps: list[tuple[str, int]], strangers_only: bool
) -> None:
    port = Port(5, 2, strangers_only=strangers_only)
    live: list[Peer] = []
    for step, number in steps:
        if step == "connect":
            known = {peer for peer in live if peer.known}
            peer = port.connect(ADDRESSES[number % len(ADDRESSES)])
            if isinstance(peer, Peer):
                live.append(peer)
            assert not known & set(port.dropped)
        elif live:
            one = live[number % len(live)]
            if step == "recognise":
                one.recognise()
            else:
                one.release()
                live.remove(one)
        live = [peer for peer in live if peer not in port.dropped]
        assert port.budget.used == len(live) <= 5
        assert port.budget.strangers == sum(not peer.known for peer in live)
        counted = [peer for peer in live if not (peer.known and strangers_only)]
        assert port.budget.origins == len({origin_key(peer) for peer in counted})
    for peer in live:
        peer.release()
    assert (port.budget.used, port.budget.strangers, port.budget.origins) == (0, 0, 0)


def origin_key(peer: Peer) -> str:
    return "2001:db8::" if peer.ip.version == 6 and not peer.ip.is_loopback else str(peer.ip)


# ── the plan ──────────────────────────────────────────────────────────────────────────────────


def settings(**given: int) -> SimpleNamespace:
    names = ("connections", "connections_per_address", "api_connections", "node_connections")
    return SimpleNamespace(**{**dict.fromkeys(names), "tunnels": 2, "one_port": None, **given})


@given(
    st.integers(128, 2_000_000),
    st.none() | st.integers(1, 10**7),
    st.none() | st.integers(1, 10**7),
    st.none() | st.integers(4, 10**7),
    st.integers(1, 16),
)
def test_ports_and_reserve_never_take_more_than_there_is(
    limit: int, public: int | None, api: int | None, nodes: int | None, tunnels: int
) -> None:
    wanted = settings(connections=public, api_connections=api, node_connections=nodes)  # type: ignore[arg-type]
    wanted.tunnels = tunnels
    plan = make_plan(limit, wanted)
    assert plan.reserved + sum(places.total for places in plan.ports.values()) <= limit
    assert all(places.total >= 1 for places in plan.ports.values())
    assert all(places.per_address >= 1 for places in plan.ports.values())
    for setting, asked in (("connections", public), ("api_connections", api)):
        if asked is not None:
            assert plan.settings[setting] == asked or setting in plan.cut


@pytest.mark.parametrize(
    ("limit", "public", "per_address", "api", "nodes"),
    [
        (128, 40, 16, 8, 16),
        (1024, 616, 154, 56, 224),
        (4096, 2464, 616, 224, 896),
        (1_048_576, MAX_PUBLIC, 4096, 1024, 261_888),
    ],
)
def test_the_defaults(limit: int, public: int, per_address: int, api: int, nodes: int) -> None:
    assert make_plan(limit, settings()).settings == {
        "connections": public,
        "connections_per_address": per_address,
        "api_connections": api,
        "node_connections": nodes,
    }
