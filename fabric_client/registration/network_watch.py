"""Notices that this machine's network has changed: a cable, a Wi-Fi, an address, a route, a VPN.

On Linux the kernel says so, by rtnetlink (rtnetlink(7)); elsewhere this machine's own addresses are
looked at every second.  Neither sends a packet.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from struct import Struct
from typing import Protocol

from protocol.token_bucket import TokenBucket

log = logging.getLogger("fabric.network")

SETTLE_SECONDS = 0.1
"""Changes come in groups: an interface, its addresses, its routes."""
POLL_SECONDS = 1.0
BURST, PER_SECOND = 4.0, 0.1
"""Changes that are told: a token bucket, so that a loose cable makes no storm of connections."""
ANYWHERE = "192.0.2.1", "2001:db8::1"
"""Addresses of nobody (RFC 5737, RFC 3849), whose routes are this machine's default routes."""
READ_SIZE = 65_536
MAX_READS = 256
MAX_INTERFACES = 4096


class Events(Protocol):
    """Tells when to look at the network again."""

    async def wait(self) -> bool:
        """Wait until something may have changed; return True if it is known that it has."""

    def close(self) -> None: ...


async def network_changes(
    servers: Callable[[], Sequence[str]], events: Events | None = None
) -> AsyncGenerator[tuple[str, ...], None]:
    """Yield this machine's addresses each time when its network has changed, and leads somewhere.

    ``servers`` returns the addresses that are to be reached, as far as they are known.  ``events``
    are those of this machine unless given.
    """
    loop = asyncio.get_running_loop()
    bucket = TokenBucket(BURST, PER_SECOND, loop.time())
    events = events or open_events()
    try:
        to = tuple(servers()) or ANYWHERE
        seen = addresses_towards(to)
        while True:
            certain = await events.wait()
            before, seen = seen, addresses_towards(to)
            if any(seen) and (certain or seen != before):
                await asyncio.sleep(bucket.seconds_until(1.0, loop.time()))
                bucket.take(1.0, loop.time())
                yield tuple(filter(None, seen))
            if (tuple(servers()) or ANYWHERE) != to:
                to = tuple(servers()) or ANYWHERE
                seen = addresses_towards(to)
    finally:
        events.close()


def addresses_towards(servers: Sequence[str]) -> tuple[str, ...]:
    """Return the local address from which packets to each server would go, empty without a route.

    Connecting a datagram socket sends nothing: the kernel only looks for a route.
    """
    return tuple(map(_address_towards, servers))


def _address_towards(server: str) -> str:
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((server, 9))
            return str(sock.getsockname()[0])
    except OSError:  # there is no route, or this machine has no IPv6
        return ""


def open_events() -> Events:
    """Return the kernel's notices where there are any, otherwise a clock."""
    if sys.platform == "linux":
        try:
            return KernelEvents()
        except OSError as error:  # a sandbox without this family of addresses
            log.debug("the kernel tells nothing of the network", extra={"reason": str(error)})
    return ClockEvents()


class ClockEvents:
    """Says every second that something may have changed."""

    async def wait(self) -> bool:
        await asyncio.sleep(POLL_SECONDS)
        return False

    def close(self) -> None:
        pass


# ── Linux ─────────────────────────────────────────────────────────────────────────────────────

# From linux/rtnetlink.h, linux/netlink.h and linux/if.h.
GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
"""Links, and addresses and routes of IPv4 and IPv6."""
NEW_LINK, DELETED_LINK = 16, 17
HAS_CARRIER = 0x10000
"""IFF_LOWER_UP: the cable is plugged in, or the Wi-Fi is associated."""
_MESSAGE = Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence, port."""
_LINK = Struct("=BxHiII")
"""struct ifinfomsg: family, type, index, flags, change."""


class Carriers:
    """Knows which interfaces have lost their carrier, from the kernel's messages."""

    def __init__(self, interfaces: Sequence[int]) -> None:
        """``interfaces`` are the numbers of those that are there; none is known to be down."""
        self._has_carrier = dict.fromkeys(interfaces[:MAX_INTERFACES], True)

    def read(self, data: bytes) -> bool:
        """Take a datagram; return whether an interface has got its carrier back."""
        back = False
        at = 0
        while at + _MESSAGE.size <= len(data):
            length, kind, *_ = _MESSAGE.unpack_from(data, at)
            if not _MESSAGE.size <= length <= len(data) - at:
                break
            if kind in (NEW_LINK, DELETED_LINK) and length >= _MESSAGE.size + _LINK.size:
                _, _, index, flags, _ = _LINK.unpack_from(data, at + _MESSAGE.size)
                back |= self._note(index, kind == DELETED_LINK, bool(flags & HAS_CARRIER))
            at += (length + 3) & ~3
        return back

    def _note(self, index: int, deleted: bool, carrier: bool) -> bool:
        if deleted:
            self._has_carrier.pop(index, None)
            return False
        # One that was never up is just made, as for a container: its routes tell if it matters.
        before = self._has_carrier.get(index)
        if before is not None or (carrier and len(self._has_carrier) < MAX_INTERFACES):
            self._has_carrier[index] = carrier
        return carrier and before is False


class KernelEvents:
    """The messages of rtnetlink.  Raises OSError where there is no such socket."""

    def __init__(self) -> None:
        self._carriers = Carriers([index for index, _ in socket.if_nameindex()])
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        try:
            self._socket.setblocking(False)
            self._socket.bind((0, GROUPS))
        except BaseException:
            self._socket.close()
            raise

    async def wait(self) -> bool:
        await _readable(self._socket)
        await asyncio.sleep(SETTLE_SECONDS)
        certain = False
        with contextlib.suppress(BlockingIOError):  # all is read
            for _ in range(MAX_READS):  # what is left is read the next time
                try:
                    data, (port, _) = self._socket.recvfrom(READ_SIZE)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    certain = True  # the kernel had more to say than it could keep
                else:
                    certain |= port == 0 and self._carriers.read(data)  # 0: the kernel itself
        return certain

    def close(self) -> None:
        self._socket.close()


async def _readable(sock: socket.socket) -> None:
    """Wait until there is something to read."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sock, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock)
