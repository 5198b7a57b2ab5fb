"""The addresses that are not on the public internet, by the RFC that says so.

The table is written out instead of asking the interpreter's ``ipaddress``, whose own differs from
one version of Python to the next.  Sources: IANA's registries of special-purpose addresses for IPv4
and IPv6, and of the IPv6 address space.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

_SPECIAL_IPV4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network: RFC 791, 3.2
        "10.0.0.0/8",  # private: RFC 1918
        "100.64.0.0/10",  # shared by the customers of a carrier: RFC 6598
        "127.0.0.0/8",  # loopback: RFC 1122, 3.2.1.3
        "169.254.0.0/16",  # link-local, and the metadata services of clouds: RFC 3927
        "172.16.0.0/12",  # private: RFC 1918
        "192.0.0.0/24",  # IETF protocol assignments: RFC 6890, 2.1
        "192.0.2.0/24",  # documentation: RFC 5737
        "192.88.99.0/24",  # relays of 6to4: RFC 7526
        "192.168.0.0/16",  # private: RFC 1918
        "198.18.0.0/15",  # benchmarks: RFC 2544
        "198.51.100.0/24",  # documentation: RFC 5737
        "203.0.113.0/24",  # documentation: RFC 5737
        "224.0.0.0/4",  # multicast: RFC 5771
        "240.0.0.0/4",  # reserved, and limited broadcast: RFC 1112, 4; RFC 919, 7
    )
)

_GLOBAL_UNICAST = IPv6Network("2000::/3")
"""All that is assigned for global use (RFC 4291, 2.4).  Outside are loopback, unique local
(RFC 4193), link-local, site-local (RFC 3879), multicast, discard-only (RFC 6666) and NAT64 for
local use (RFC 8215)."""
_SPECIAL_IPV6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # IETF protocol assignments: RFC 2928; among them ORCHIDs and benchmarks
        "2001:db8::/32",  # documentation: RFC 3849
        "3ffe::/16",  # the former 6bone: RFC 3701
        "3fff::/20",  # documentation: RFC 9637
    )
)

# IPv6 addresses whose packets go on to an IPv4 address that is part of them.
_COMPATIBLE = IPv6Network("::/96")  # RFC 4291, 2.5.5.1
_MAPPED = IPv6Network("::ffff:0:0/96")  # RFC 4291, 2.5.5.2
_TRANSLATED = IPv6Network("::ffff:0:0:0/96")  # RFC 2765
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
_TEREDO = IPv6Network("2001::/32")  # RFC 4380
_SIX_TO_FOUR = IPv6Network("2002::/16")  # RFC 3056
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})  # RFC 5214, 6.1


def is_address(text: str) -> bool:
    """Return whether a text is an IP address in a form that every program reads alike."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def is_public(address: str) -> bool:
    """Return whether an address, without brackets, is on the public internet.

    Every address that it contains must be, too.  Raises ``ValueError`` when it is no address.
    """
    ip = ip_address(address)
    if isinstance(ip, IPv4Address):
        return not any(ip in network for network in _SPECIAL_IPV4)
    if ip.scope_id is not None:
        return False
    inner = _inner_addresses(ip)
    if not all(is_public(str(one)) for one in inner):
        return False
    if inner and (ip not in _GLOBAL_UNICAST or ip in _TEREDO):
        return True
    return ip in _GLOBAL_UNICAST and not any(ip in network for network in _SPECIAL_IPV6)


def _inner_addresses(ip: IPv6Address) -> list[IPv4Address]:
    """Return the IPv4 addresses that packets to this IPv6 address would go on to."""
    bits = int(ip)
    low = bits & 0xFFFFFFFF
    if any(ip in network for network in (_COMPATIBLE, _MAPPED, _TRANSLATED, _NAT64)):
        return [IPv4Address(low)]
    if ip in _TEREDO:  # the server, and the client's address with every bit turned
        return [IPv4Address(bits >> 64 & 0xFFFFFFFF), IPv4Address(low ^ 0xFFFFFFFF)]
    if ip in _SIX_TO_FOUR:
        return [IPv4Address(bits >> 80 & 0xFFFFFFFF)]
    if bits >> 32 & 0xFFFFFFFF in _ISATAP:
        return [IPv4Address(low)]
    return []
