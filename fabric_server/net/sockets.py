"""Listening sockets: one port number on several hosts, and clear errors."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Sequence

from runtime.errors import Problem

log = logging.getLogger("fabric.listen")

BACKLOG = 1024
TRIES = 16
"""Attempts to find a number that is free on every host."""

_NO_FAMILY = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT}


class PortProblem(Problem):
    """A port can't be opened; the message names the setting and what to do."""


def bind(
    hosts: Sequence[str], number: int, *, setting: str, reuse_port: bool = False
) -> tuple[list[socket.socket], int]:
    """Open non-blocking listening sockets, one for each address; return them and their port number.

    A wildcard of an address family that the machine lacks is left out.  Raises ``PortProblem``.
    """
    addresses = [address for host in hosts for address in _resolve(host, setting)]
    addresses = list(dict.fromkeys(addresses))
    for attempt in range(TRIES):
        sockets: list[socket.socket] = []
        try:
            for family, host in addresses:
                port = sockets[0].getsockname()[1] if sockets else number
                try:
                    sockets.append(_listen(family, host, port, reuse_port))
                except OSError as error:
                    if host in ("::", "0.0.0.0") and error.errno in _NO_FAMILY:  # noqa: S104
                        log.debug("no such address family", extra={"host": host})
                        continue
                    raise
            if sockets:
                return sockets, sockets[0].getsockname()[1]
            raise PortProblem("the setting host names no address of this machine.")
        except OSError as error:
            _close(sockets)
            taken_elsewhere = error.errno == errno.EADDRINUSE and number == 0 and sockets
            if taken_elsewhere and attempt < TRIES - 1:
                continue
            raise PortProblem(_sentence(error, setting, number, host)) from error
        except BaseException:
            _close(sockets)
            raise
    raise AssertionError("the last attempt returns or raises")


def _listen(family: int, host: str, port: int, reuse_port: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Accepted connections inherit these, at no cost for each.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _resolve(host: str, setting: str) -> list[tuple[int, str]]:
    try:
        found = socket.getaddrinfo(
            host.strip("[]"), None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise PortProblem(
            f"{setting} can't be opened: the host '{host}' has no address here ({error}). "
            "Correct the setting host."
        ) from error
    return [(family, str(address[0])) for family, _, _, _, address in found]


def _sentence(error: OSError, setting: str, number: int, host: str) -> str:
    where = f"{setting} {number} on {host}"
    if error.errno == errno.EADDRINUSE:
        return (
            f"{where} is taken by another program: stop that one, or set {setting} to another "
            "number (0 takes any free one)."
        )
    if error.errno == errno.EACCES:
        return (
            f"{where} may not be opened by this user: numbers below 1024 need a privilege. "
            f"Set {setting} to a higher number."
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{where} can't be opened: this machine has no such address. Correct host."
    return f"{where} can't be opened: {error.strerror}."


def _close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()
