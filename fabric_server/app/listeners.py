"""The ports of a server, by name: ``control``, ``proxy``, ``public`` and ``api``.

With ``one``, those that have no number of their own get their connections from that one:

    ALPN fabric-control/1, fabric-tunnel/1     control, proxy: a node, which shows its certificate
    SNI server.fabric                          api: a machine that joins, an operator
    everything else                            public

Whatever a client says of itself, it gets to a port that asks for everything that it needs.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Literal

from fabric_server.config import Config
from fabric_server.net.client_hello import ClientHello
from fabric_server.net.connection_budget import Peer, Places
from fabric_server.net.descriptor_plan import make_plan
from fabric_server.net.kernel_guard import KernelBlocklist
from fabric_server.net.known_addresses import KnownAddresses
from fabric_server.net.listener import Limits, Listener, Port, SharedPort
from fabric_server.net.takeover import Predecessor
from fabric_server.net.trusted_proxies import TrustedProxies
from protocol.names import CONTROL_ALPN, SERVER_NAME, TUNNEL_ALPN
from runtime.asyncio_protocol import AsyncioProtocol
from runtime.descriptors import open_files_limit

ONE = "one"
NODE_PORTS = (ONE, "control", "proxy")
"""The ports that a takeover moves first; users who come to the one port wait meanwhile."""
USER_PORTS = ("public", "api")
_BY_PROTOCOL = {CONTROL_ALPN: "control", TUNNEL_ALPN: "proxy"}


def sort(hello: ClientHello | None) -> str:
    """Return the name of the port that a connection to the one port is for."""
    if hello is not None:
        for protocol in hello.protocols:
            if protocol in _BY_PROTOCOL:
                return _BY_PROTOCOL[protocol]
        if hello.server_name == SERVER_NAME:
            return "api"
    return "public"


def handshake_limits(places: Places) -> Limits:
    """Return the limits of handshakes on a port that has so many places."""
    most = Limits()
    total = max(min(most.total, places.total // 2), 4)
    return Limits(total=total, per_address=max(min(most.per_address, total // 2), 2))


class Listeners(Mapping[str, Listener]):
    """The listeners that are open, by the names of their ports."""

    def __init__(self, config: Config, handed: Mapping[str, int] | None = None) -> None:
        """``handed`` are the numbers of ports on which another process accepts."""
        self.blocklist = KernelBlocklist()
        """The addresses that fill the ports of users go there."""
        self.plan = make_plan(open_files_limit(), config)
        """The connections that each port may have."""
        self._host = config.host
        self._proxies = TrustedProxies(config.trusted_proxies)
        self._proxy_protocol = config.proxy_protocol
        self._plain_from_proxies = config.plaintext_from_proxies
        self._known = KnownAddresses()
        self._users = asyncio.Event()
        """Set unless users who come to the one port have to wait for the nodes' takeover."""
        self._users.set()
        self._handed = handed
        self._listeners: dict[str, Listener] = {}

    def __getitem__(self, name: str) -> Listener:
        return self._listeners[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._listeners)

    def __len__(self) -> int:
        return len(self._listeners)

    def open_one(self, number: int, predecessor: Predecessor | None = None) -> Listener:
        """Listen on the number that the others share; open those next, before anything else runs.

        Not for handed ports: the other process sorts their connections.

        Raises ``PortProblem``.
        """
        port = SharedPort(
            ONE,
            self._host,
            number,
            self._choose,
            proxies=self._proxies,
            proxy_protocol=ONE in self._proxy_protocol,
            on_suspect=self.blocklist.report,
        )
        places = self.plan.ports[ONE]
        limits = Limits(total=places.total, per_address=places.total)
        listener = self._listeners[ONE] = Listener(port, limits, places, self._known)
        inherited = () if predecessor is None else predecessor.sockets(ONE, self._host, number)
        if inherited:
            self._users.clear()
        listener.open(inherited)
        return listener

    async def _choose(self, hello: ClientHello | None) -> Listener:
        name = sort(hello)
        if name in USER_PORTS:
            await self._users.wait()
        return self[name]

    @property
    def numbers(self) -> dict[str, int]:
        """The number of each port; that of the one port for those that are behind it."""
        names = ("control", "proxy", *USER_PORTS)
        numbers = {name: self[name if name in self else ONE].port for name in names}
        return numbers | ({ONE: self[ONE].port} if ONE in self else {})

    def number_for_nodes(self, name: str) -> int:
        """Return the number under which nodes reach a port: the one port's, where there is one."""
        if self._handed is not None:
            return self._handed[ONE if ONE in self._handed else name]
        return self[ONE if ONE in self else name].port

    def open(
        self,
        name: str,
        number: int | None,
        protocol: Callable[[Peer], AsyncioProtocol],
        context: Callable[[], ssl.SSLContext],
        *,
        alpn: str | None = None,
        predecessor: Predecessor | None = None,
    ) -> Listener:
        """Listen on port ``number``, or on the predecessor's sockets of that port.

        None gets its connections from the one port alone.  A port with an ALPN is the nodes', and
        takes TLS only.  Raises ``PortProblem``.
        """
        plaintext: Literal["loopback", "proxies", "never"] = "never" if alpn else "loopback"
        if name == "public" and self._plain_from_proxies:
            plaintext = "proxies"  # never on the API port, which carries management keys
        port = Port(
            name,
            self._host,
            number or 0,
            protocol,
            context,
            plaintext,
            alpn,
            proxies=self._proxies,
            proxy_protocol=name in self._proxy_protocol,
        )
        if name in USER_PORTS:
            port = replace(port, on_suspect=self.blocklist.report)
        places = self.plan.ports[name]
        listener = Listener(port, handshake_limits(places), places, self._known)
        self._listeners[name] = listener
        if self._handed is not None:
            listener.open_handed(self._handed[name])
            return listener
        if number is None:
            listener.open_behind(self[ONE])
            return listener
        inherited = () if predecessor is None else predecessor.sockets(name, self._host, number)
        listener.open(inherited)
        return listener

    def pause(self, names: Iterable[str]) -> None:
        """Leave new connections in the kernel's queues, for ``resume`` or a successor."""
        for listener in self._named(names):
            listener.pause_accepting()

    def resume(self, names: Iterable[str]) -> None:
        """Accept connections, also those that came during the pause."""
        for listener in self._named(names):
            listener.resume_accepting()
        if "public" in names:
            self._users.set()

    def stop_accepting(self, names: Iterable[str]) -> None:
        """Close these ports; connections that exist go on."""
        for listener in self._named(names):
            listener.stop_accepting()

    async def handshakes_done(self) -> None:
        """Wait until the handshakes of users that run now have ended."""
        for listener in self._named((ONE, "public")):
            await listener.handshakes_done()

    def _named(self, names: Iterable[str]) -> list[Listener]:
        return [self[name] for name in names if name in self]

    async def close(self) -> None:
        """Close all ports and end the handshakes under way."""
        for listener in self.values():
            await listener.close()
