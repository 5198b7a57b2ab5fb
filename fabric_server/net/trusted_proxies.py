"""Proxies in front of this server, and the address of the client behind them.

Each proxy appends the address that it was called from to ``X-Forwarded-For``:

    X-Forwarded-For: 198.51.100.7, 203.0.113.5, 10.0.0.2       from the trusted peer 10.0.0.1
                     what the client  ──┘            │
                     sent: anything   the client     a proxy of ours, trusted too

So the list is read from its end, only when the peer itself is trusted, and only as far as its hops
are: the first that isn't is the client.  ``Forwarded`` (RFC 7239) is never read: a proxy that
maintains one of the two headers passes the other one on as the client wrote it.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network

from fabric_server.net.addresses import IpAddress, parse

MAX_HOPS = 32
"""Hops that are read; a longer chain of trusted proxies is a loop."""

Network = IPv4Network | IPv6Network


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Parse addresses and networks.  Raises ``ValueError``, which says what to do."""
    networks = []
    for text in texts:
        try:
            networks.append(ip_network(text.strip()))
        except ValueError as error:
            raise ValueError(
                f"'{text}' is no address or network ({error}): use one such as 10.0.0.0/8"
            ) from None
    return tuple(networks)


class TrustedProxies:
    """The networks whose peers are believed; none by default."""

    def __init__(self, networks: Sequence[str] = ()) -> None:
        """``networks`` are texts.  Raises ``ValueError`` for one that is no network."""
        parsed = parse_networks(networks)
        self._ipv4 = tuple(net for net in parsed if isinstance(net, IPv4Network))
        self._ipv6 = tuple(net for net in parsed if isinstance(net, IPv6Network))

    def trusts(self, ip: IpAddress) -> bool:
        """Return whether what this peer says of a connection's origin is believed."""
        networks = self._ipv4 if ip.version == 4 else self._ipv6
        return any(ip in network for network in networks)

    def client(self, peer: IpAddress, forwarded_for: bytes | None) -> IpAddress:
        """Return the address of the client behind ``peer``.

        ``forwarded_for`` is the value of all ``X-Forwarded-For`` headers, in order.  A hop that is
        no address ends the search: then the proxy that sent it stands for its clients.
        """
        if forwarded_for is None or not self.trusts(peer):
            return peer
        client = peer
        hops = forwarded_for.rsplit(b",", MAX_HOPS)
        for hop in reversed(hops[-MAX_HOPS:]):
            try:
                client = parse(_without_port(hop.decode("ascii").strip(" \t")))
            except ValueError:
                break
            if not self.trusts(client):
                break
        return client


NO_PROXIES = TrustedProxies()


def _without_port(hop: str) -> str:
    """Strip the port that some proxies add: ``192.0.2.1:80``, ``[2001:db8::1]:80``."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    host, colon, _ = hop.partition(":")
    return host if colon and hop.count(":") == 1 else hop
