"""Addresses of peers, in one spelling, and the key by which limits count them."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

IpAddress = IPv4Address | IPv6Address

NO_ADDRESS = IPv6Address("::")
"""Stands for a peer without an address, such as a Unix socket."""


def parse(address: str) -> IpAddress:
    """Parse an address as sockets tell it: without its zone, and an IPv4 one written as IPv6 as
    what it is.

    Raises ``ValueError`` when it is none.
    """
    ip = ip_address(address.partition("%")[0])
    return ip if isinstance(ip, IPv4Address) else ip.ipv4_mapped or ip


def peer_of(transport: asyncio.BaseTransport | None) -> IpAddress | None:
    """Return the address at the other end; None when there is none any more, or no address."""
    name = None if transport is None else transport.get_extra_info("peername")
    try:
        return parse(name[0]) if isinstance(name, tuple) else None
    except ValueError:
        return None


def origin_of(ip: IpAddress) -> str:
    """Return the key by which limits count: an IPv4 address, or an IPv6 /64, which one customer
    has."""
    return str(ip) if isinstance(ip, IPv4Address) else f"{int(ip) >> 64:x}"


def origin(address: str) -> str:
    """Return ``origin_of`` an address that is text.  Raises ``ValueError`` when it is none."""
    return origin_of(parse(address))


def network_of(address: str) -> str:
    """Return what ``origin`` counts by as people write it: ``192.0.2.1``, ``2001:db8::/64``.

    Raises ``ValueError`` for a text that is no address.
    """
    ip = parse(address)
    return str(ip) if isinstance(ip, IPv4Address) else str(ip_network((int(ip) >> 64 << 64, 64)))


def own_address() -> str | None:
    """Return the address that this machine sends from; connecting a UDP socket sends nothing."""
    # Addresses reserved for documentation (RFC 5737, RFC 3849): routed like any other.
    for family, anywhere in (
        (socket.AF_INET, "192.0.2.1"),
        (socket.AF_INET6, "2001:db8::1"),
    ):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((anywhere, 9))
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return None
