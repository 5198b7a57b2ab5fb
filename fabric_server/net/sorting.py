"""One number for several ports: connections are sorted by the first message of TLS.

    accepted ── ClientHello ── chosen ──> the listener of that port, as if it had accepted it

The listener that goes on has its own budget, limits, TLS and counters: a crowd that comes for one
port takes no place of another's.  This one has a connection only until its first message is there,
and while the port that it is for waits for the nodes of a server that is taken over.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from fabric_server.net import client_hello
from fabric_server.net.arrival import TLS_HANDSHAKE, Arrival, Door
from fabric_server.net.client_hello import BadHello, ClientHello
from fabric_server.net.connection_budget import Peer


@dataclass(frozen=True)
class SharedPort(Door):
    """Number that several ports share; it serves nothing itself."""

    choose: Callable[[ClientHello | None], Awaitable[Chosen]]
    """Returns the listener that a connection is for, once that one may have it; None stands for a
    connection that is not TLS."""


class Chosen(Protocol):
    """The listener that goes on with a connection that came to a shared port."""

    def admit(self, sock: socket.socket, address: str, via: Peer | None = None) -> None: ...


class Sorting(Arrival):
    """A connection to a shared port, until the listener that it is for takes it over."""

    __slots__ = ()
    door: SharedPort

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        start = b""
        try:
            async with asyncio.timeout(self.host.limits.seconds):
                if self.header_due and not await self._read_proxy_header(loop):
                    return None
                start = await self._peek(loop)
                if not start:
                    return self.refuse("gone")
                hello = None
                if start.startswith(TLS_HANDSHAKE):
                    hello = client_hello.read(await self._first_record(loop, start))
                address = str(self._sock.getpeername()[0])
        except TimeoutError:
            return self.refuse("slow" if start else "silent")
        except BadHello as error:
            self.peer.suspect()
            return self.refuse("bad_tls", error)
        except OSError as error:
            return self.refuse("gone", error)
        chosen = await self.door.choose(hello)
        self._handed_over = True
        self.host.opened += 1
        self.peer.release()
        return chosen.admit(self._sock, address, self.peer)

    async def _first_record(self, loop: asyncio.AbstractEventLoop, start: bytes) -> bytes:
        """Return the whole first record, leaving it in the kernel's buffer."""
        sock = self._sock
        while len(start) < (size := client_hello.record_size(start)):
            start = sock.recv(size, socket.MSG_PEEK)
            if len(start) == size:
                continue
            # Without this the socket would be readable already, and waiting would spin.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
            try:
                await self._readable(loop)
            finally:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            start = sock.recv(size, socket.MSG_PEEK)
            if len(start) < size:
                raise ConnectionResetError("hung up in its first message")
        return start
