"""The four ports of a server, by name: ``control``, ``proxy``, ``public`` and ``api``."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

from fabric_server.net.listener import Listener, Port
from fabric_server.net.takeover import Predecessor

NODE_PORTS = ("control", "proxy")
USER_PORTS = ("public", "api")


class Listeners(Mapping[str, Listener]):
    """The listeners that are open, by the names of their ports."""

    def __init__(self, host: Sequence[str]) -> None:
        self._host = tuple(host)
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
        protocol: Callable[[], asyncio.BaseProtocol],
        context: Callable[[], ssl.SSLContext],
        *,
        alpn: str | None = None,
        predecessor: Predecessor | None = None,
    ) -> Listener:
        """Listen on port ``number``, or on the predecessor's sockets of that port.

        A port with an ALPN is the nodes', and takes TLS only.  Raises ``PortProblem``.
        """
        plaintext: Literal["loopback", "never"] = "never" if alpn else "loopback"
        listener = Listener(Port(name, self._host, number, protocol, context, plaintext, alpn))
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
