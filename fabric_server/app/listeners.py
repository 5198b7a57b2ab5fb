"""The four ports of a server, by name: ``control``, ``proxy``, ``public`` and ``api``."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Literal

from fabric_server.config import Config
from fabric_server.net.connection_budget import Peer, Places
from fabric_server.net.descriptor_plan import make_plan
from fabric_server.net.known_addresses import KnownAddresses
from fabric_server.net.listener import Limits, Listener, Port
from fabric_server.net.takeover import Predecessor
from fabric_server.net.trusted_proxies import TrustedProxies
from runtime.descriptors import open_files_limit

NODE_PORTS = ("control", "proxy")
USER_PORTS = ("public", "api")


def handshake_limits(places: Places) -> Limits:
    """Return the limits of handshakes on a port that has so many places."""
    most = Limits()
    total = max(min(most.total, places.total // 2), 4)
    return Limits(total=total, per_address=max(min(most.per_address, total // 2), 2))


class Listeners(Mapping[str, Listener]):
    """The listeners that are open, by the names of their ports."""

    def __init__(
        self, config: Config, on_suspect: Callable[[str], None] = lambda address: None
    ) -> None:
        """``on_suspect`` is that of the ports of users, see ``Port``."""
        self.plan = make_plan(open_files_limit(), config)
        """The connections that each port may have."""
        self._host = config.host
        self._proxies = TrustedProxies(config.trusted_proxies)
        self._proxy_protocol = config.proxy_protocol
        self._plain_from_proxies = config.plaintext_from_proxies
        self._on_suspect = on_suspect
        self._known = KnownAddresses()
        self._listeners: dict[str, Listener] = {}

    def __getitem__(self, name: str) -> Listener:
        return self._listeners[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._listeners)

    def __len__(self) -> int:
        return len(self._listeners)

    def open(
        self,
        name: str,
        number: int,
        protocol: Callable[[Peer], asyncio.BaseProtocol],
        context: Callable[[], ssl.SSLContext],
        *,
        alpn: str | None = None,
        predecessor: Predecessor | None = None,
    ) -> Listener:
        """Listen on port ``number``, or on the predecessor's sockets of that port.

        A port with an ALPN is the nodes', and takes TLS only.  Raises ``PortProblem``.
        """
        plaintext: Literal["loopback", "proxies", "never"] = "never" if alpn else "loopback"
        if name == "public" and self._plain_from_proxies:
            plaintext = "proxies"  # never on the API port, which carries management keys
        port = Port(
            name,
            self._host,
            number,
            protocol,
            context,
            plaintext,
            alpn,
            proxies=self._proxies,
            proxy_protocol=name in self._proxy_protocol,
        )
        if name in USER_PORTS:
            port = replace(port, on_suspect=self._on_suspect)
        places = self.plan.ports[name]
        listener = Listener(port, handshake_limits(places), places, self._known)
        inherited = () if predecessor is None else predecessor.sockets(name, self._host, number)
        listener.open(inherited)
        self._listeners[name] = listener
        return listener

    def pause(self, names: Iterable[str]) -> None:
        """Leave new connections in the kernel's queues, for ``resume`` or a successor."""
        for name in names:
            self[name].pause_accepting()

    def resume(self, names: Iterable[str]) -> None:
        """Accept connections, also those that came during the pause."""
        for name in names:
            self[name].resume_accepting()

    def stop_accepting(self, names: Iterable[str]) -> None:
        """Close these ports; connections that exist go on."""
        for name in names:
            self[name].stop_accepting()

    async def close(self) -> None:
        """Close all ports and end the handshakes under way."""
        for listener in self.values():
            await listener.close()
