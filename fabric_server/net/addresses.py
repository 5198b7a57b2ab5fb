"""Addresses of peers, in one spelling, and the key by which limits count them."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, IPv6Address, ip_address

IpAddress = IPv4Address | IPv6Address


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
