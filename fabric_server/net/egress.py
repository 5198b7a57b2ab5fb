"""The SSRF filter: URLs of clients may lead to the public internet, never into own networks.

Webhooks (``jobs.webhooks``) and media (``gateway.media_fetcher``) go by it.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from fabric_server.net.special_addresses import is_address, is_public

_MAX_ADDRESSES = 4
_MAX_URL = 8192
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", re.I)
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*", re.I)


class Forbidden(Exception):
    """A URL that may not be used; ``str()`` says why, with no more than the client knows."""


class Target(NamedTuple):
    """A URL whose parts were checked."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


Allowed = Callable[[str], bool]
"""Tells whether an address may be connected to: ``is_public`` or ``any_address``."""


def any_address(address: str) -> bool:
    return True


def parse_target(url: str, *, allow_http: bool, allowed: Allowed = is_public) -> Target:
    """Check a URL; a host name's addresses are checked by ``resolve``.  Raises ``Forbidden``."""
    if len(url) > _MAX_URL:
        raise Forbidden(f"the URL is longer than {_MAX_URL} characters")
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise Forbidden("the URL must be ASCII without spaces, control characters and backslashes")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Forbidden("the URL can't be read") from None
    if parts.scheme not in (("https", "http") if allow_http else ("https",)):
        begin = "https:// or http://" if allow_http else "https://"
        raise Forbidden(f"the URL must begin with {begin}")
    if not parts.hostname:
        raise Forbidden("the URL must name a host")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise Forbidden("the URL must have no user, no password and no fragment")
    if port == 0:
        raise Forbidden("the URL's port must be from 1 to 65535")
    _check_host(parts.hostname, parts.netloc, allowed)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    default = 443 if parts.scheme == "https" else 80
    return Target(parts.scheme, parts.hostname, port or default, path)


def _check_host(host: str, authority: str, allowed: Allowed) -> None:
    """Refuse hosts that programs read differently, and addresses that are not allowed."""
    if authority.startswith("["):
        if not is_address(host):
            raise Forbidden("the URL's IPv6 address can't be read")
        public = allowed(host)
    elif _NUMBER.fullmatch(host.rpartition(".")[2]):
        # "2130706433", "0x7f.1" and "0177.0.0.1" are 127.0.0.1 to some programs.
        if not is_address(host):
            raise Forbidden("the URL's IPv4 address must be four decimal numbers")
        public = allowed(host)
    elif _NAME.fullmatch(host) is None:
        raise Forbidden("the URL's host is neither a name nor an address")
    else:
        return  # ``resolve`` checks what the name stands for
    if not public:
        raise _not_public(host)


class LookUp(Protocol):
    """Finds the addresses of a name, without checking them; raises ``OSError`` if there is none."""

    async def __call__(self, host: str, port: int) -> Sequence[str]: ...


class ThreadedLookUp:
    """Asks the system for a name's addresses, in threads of ``executor``."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def __call__(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        infos = await loop.run_in_executor(self._executor, look_up)
        return [str(info[4][0]) for info in infos]


async def resolve(target: Target, look_up: LookUp, allowed: Allowed = is_public) -> list[str]:
    """Return the addresses to connect to; a second look-up of the name may give others.

    Raises ``Forbidden`` if any is not allowed, and ``OSError`` if there is none.
    """
    addresses = list(dict.fromkeys(await look_up(target.host, target.port)))
    if not all(map(allowed, addresses)):
        raise _not_public(target.host)
    if not addresses:
        raise OSError("the name has no address")
    return addresses[:_MAX_ADDRESSES]


def _not_public(host: str) -> Forbidden:
    return Forbidden(f"{host} is not an address of the public internet")
