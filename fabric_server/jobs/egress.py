"""The SSRF filter: URLs of clients may lead to the public internet, never into own networks."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

_NAT64 = IPv6Network("64:ff9b::/96")
_MAX_ADDRESSES = 4


class Forbidden(Exception):
    """A URL that may not be used; ``str()`` says why, with no more than the client knows."""


class Target(NamedTuple):
    """A URL whose parts were checked."""

    scheme: str
    host: str
    port: int
    path: str


def parse_target(url: str, *, allow_http: bool, allow_private: bool) -> Target:
    """Check a URL; a host name's addresses are checked by ``resolve``.  Raises ``Forbidden``.

    ``allow_http`` allows http, ``allow_private`` allows any address.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Forbidden("the URL can't be read") from None
    if parts.scheme not in (("https", "http") if allow_http else ("https",)):
        raise Forbidden("the URL must begin with https://")
    if not parts.hostname or not url.isascii() or not url.isprintable() or " " in url:
        raise Forbidden("the URL must name a host, in ASCII")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise Forbidden("the URL must have no user, no password and no fragment")
    with suppress(ValueError):  # a name
        if not allow_private and not allowed(parts.hostname):
            raise _forbidden(parts.hostname)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    default = 443 if parts.scheme == "https" else 80
    return Target(parts.scheme, parts.hostname, port or default, path)


def allowed(address: str) -> bool:
    """Return whether an address is on the public internet: not private, local or reserved."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        within = _within(ip)
        if within is not None:
            return allowed(str(within))
        if ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not ip.is_unspecified


def _within(ip: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address that packets to this IPv6 address would reach."""
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    if ip.teredo is not None:
        return ip.teredo[1]
    return ip.ipv4_mapped or ip.sixtofour or _compatible(ip)


def _compatible(ip: IPv6Address) -> IPv4Address | None:
    low = int(ip)
    return IPv4Address(low) if 1 < low < 2**32 else None


async def resolve(target: Target, executor: Executor, *, allow_private: bool) -> list[str]:
    """Return the addresses to connect to; a second look-up of the name may give others.

    Raises ``Forbidden`` if any is not allowed, unless ``allow_private``, and ``OSError`` if there
    is none.  The look-up runs in ``executor``.
    """
    loop = asyncio.get_running_loop()
    look_up = partial(socket.getaddrinfo, target.host, target.port, type=socket.SOCK_STREAM)
    found = await loop.run_in_executor(executor, look_up)
    addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
    if not allow_private and not all(map(allowed, addresses)):
        raise _forbidden(target.host)
    return addresses[:_MAX_ADDRESSES]


def _forbidden(host: str) -> Forbidden:
    return Forbidden(f"{host} is not an address of the public internet")
