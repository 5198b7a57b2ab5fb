"""The parent's ports: it accepts, and finds the worker for each connection.

    public, api      handed on at once, unread
    control, proxy   the first message of TLS is looked at: the name in it is a worker's
    one              the same, and the port that the connection is for is found in it, too

Everything else is the worker's: certificates, limits, headers of the PROXY protocol on the ports of
users.  Where the first message is looked at, such a header comes before it, and is taken here.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from fabric_server.app.listeners import ONE, USER_PORTS, Listeners, sort
from fabric_server.config import Config
from fabric_server.net.client_hello import ClientHello
from fabric_server.net.connection_budget import Peer, Places
from fabric_server.net.listener import Limits, Listener, SharedPort
from fabric_server.net.takeover import Predecessor
from fabric_server.workers.messages import Arrived

MAX_LOOKED_AT = 1024
"""Connections of one port whose first message is awaited, or that wait for a worker to start."""


class Taker(Protocol):
    """A worker."""

    def hand(self, arrived: Arrived, sock: socket.socket) -> None:
        """Pass the connection on."""


class Spread(Protocol):
    """Finds workers."""

    def for_user(self, port: str) -> Taker | None:
        """Return the worker for a new connection of a client or an operator."""

    async def for_node(self, port: str, hello: ClientHello | None) -> Taker | None:
        """Return the worker for a new connection of a node, once it serves."""


class Doors(Listeners):
    """The parent's listeners, by the names of their ports."""

    def __init__(self, config: Config, spread: Spread) -> None:
        super().__init__(config)
        self._spread = spread

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
        choose: Callable[[ClientHello | None], Awaitable[_Passing]] = partial(self._find, name)
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
        places = Places(MAX_LOOKED_AT, MAX_LOOKED_AT)
        return Listener(port, Limits(total=places.total, per_address=places.total), places)

    async def _find(self, port: str, hello: ClientHello | None) -> _Passing:
        name = sort(hello) if port == ONE else port
        if name in USER_PORTS:
            await self._users.wait()
            return _Passing(name, self._spread.for_user(name))
        return _Passing(name, await self._spread.for_node(name, hello))


class _Passing:
    """A connection's way to its worker."""

    def __init__(self, port: str, worker: Taker | None) -> None:
        self._port = port
        self._worker = worker

    def admit(self, sock: socket.socket, address: str, via: Peer | None = None) -> None:
        client = str(via.ip) if via is not None and via.proxied else ""
        _pass_on(self._worker, Arrived(self._port, address, client, True), sock)


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
