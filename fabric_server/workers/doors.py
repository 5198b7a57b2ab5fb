"""The parent's ports: it accepts, and finds the worker for each connection.

    public, api      handed on at once, unread
    control, proxy   the first message of TLS is looked at: the name in it is a worker's
    one              the same, and the port that the connection is for is found in it, too

Everything else is the worker's: certificates, limits, headers of the PROXY protocol on the ports of
users.  Where the first message is looked at, such a header comes before it, and is taken here.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from fabric_server.app.listeners import ONE, USER_PORTS, Listeners, sort
from fabric_server.config import Config
from fabric_server.net.client_hello import ClientHello
from fabric_server.net.connection_budget import Peer, Places
from fabric_server.net.listener import Limits, Listener, SharedPort
from fabric_server.net.sorting import Chosen
from fabric_server.net.takeover import Predecessor
from fabric_server.workers.messages import Arrived
from runtime.background import log_failure

MIN_LOOKED_AT, MAX_LOOKED_AT = 64, 1024
"""Connections of one port whose first message is awaited: an eighth of the process's descriptors,
within these bounds.  As many links may wait for their worker."""


class Taker(Protocol):
    """A worker."""

    def hand(self, arrived: Arrived, sock: socket.socket) -> None:
        """Pass the connection on."""


class Spread(Protocol):
    """Finds workers."""

    def for_user(self, port: str) -> Taker | None:
        """Return the worker for a new connection of a client or an operator."""

    async def for_node(self, port: str, hello: ClientHello | None) -> Taker | None:
        """Return the worker for a new connection of a node; a link waits until that serves."""


class Doors(Listeners):
    """The parent's listeners, by the names of their ports."""

    def __init__(self, config: Config, spread: Spread) -> None:
        super().__init__(config)
        self._spread = spread
        self._most = min(max(self.plan.limit // 8, MIN_LOOKED_AT), MAX_LOOKED_AT)
        self._held: set[asyncio.Task[None]] = set()
        """Links that wait for their worker: a flood of a port ends none of them."""

    def open_all(self, config: Config, predecessor: Predecessor | None) -> None:
        """Listen on all ports, or on the predecessor's sockets; accept after ``resume``.

        Raises ``PortProblem``.
        """
        for name, number in config.ports().items():
            inherited = () if predecessor is None else predecessor.sockets(name, self._host, number)
            if name == ONE and inherited:
                self._users.clear()
            listener = self._listeners[name] = self._door(name, number)
            listener.open(inherited)
            listener.pause_accepting()

    def _door(self, name: str, number: int) -> Listener:
        choose: Callable[[ClientHello | None], Awaitable[Chosen]] = partial(self._find, name)
        port = SharedPort(
            name,
            self._host,
            number,
            choose,
            proxies=self._proxies,
            proxy_protocol=name in self._proxy_protocol,
            on_suspect=self.blocklist.report if name == ONE else lambda address: None,
        )
        if name in USER_PORTS:
            return _Unread(port, self._spread)
        # At the one port, users wait together for the end of a takeover, also those of one address.
        per_address = self._most if name == ONE else self._most // 4
        limits = Limits(total=self._most, per_address=per_address)
        return Listener(port, limits, Places(self._most, per_address))

    async def _find(self, port: str, hello: ClientHello | None) -> Chosen:
        name = sort(hello) if port == ONE else port
        if name in USER_PORTS:
            await self._users.wait()
            return _Passing(name, partial(_pass_on, self._spread.for_user(name)))
        if name == "control":
            return _Passing(name, partial(self._hold, self[port], hello))
        return _Passing(name, partial(_pass_on, await self._spread.for_node(name, hello)))

    def _hold(
        self, door: Listener, hello: ClientHello | None, arrived: Arrived, sock: socket.socket
    ) -> None:
        """Pass a node's link on once its worker serves."""
        if len(self._held) >= self._most:
            door.refuse("crowded", arrived.client or arrived.address)
            sock.close()
            return

        async def passing() -> None:
            _pass_on(await self._spread.for_node(arrived.port, hello), arrived, sock)

        def ended(task: asyncio.Task[None]) -> None:
            self._held.discard(task)
            sock.close()  # if no worker has it
            log_failure(task)

        task = asyncio.get_running_loop().create_task(passing())
        self._held.add(task)
        task.add_done_callback(ended)

    async def close(self) -> None:
        """Close all ports, and the links that have no worker yet."""
        await super().close()
        for task in self._held:
            task.cancel()
        if self._held:
            await asyncio.wait(self._held)


class _Passing:
    """A connection's way to its worker."""

    def __init__(self, port: str, on: Callable[[Arrived, socket.socket], None]) -> None:
        self._port = port
        self._on = on

    def admit(self, sock: socket.socket, address: str, via: Peer | None = None) -> None:
        client = str(via.ip) if via is not None and via.proxied else ""
        self._on(Arrived(self._port, address, client, True), sock)


class _Unread(Listener):
    """A port whose connections are passed on as they come."""

    def __init__(self, port: SharedPort, spread: Spread) -> None:
        super().__init__(port)
        self._spread = spread

    def admit(self, sock: socket.socket, address: str, via: Peer | None = None) -> None:
        self.accepted += 1
        name = self.spec.name
        _pass_on(self._spread.for_user(name), Arrived(name, address), sock)


def _pass_on(worker: Taker | None, arrived: Arrived, sock: socket.socket) -> None:
    if worker is None:
        sock.close()
    else:
        worker.hand(arrived, sock)
