"""Sends TLS clients the alert that says why their handshake failed.

When a handshake fails, OpenSSL writes an alert with the reason ("certificate expired", "protocol
version"), but neither asyncio nor uvloop sends it: the client only sees a closed connection.
(Seen with Python 3.11.7 and uvloop 0.23, on both loops, for every reason.)  This module takes the
alert from OpenSSL's buffer, and the acceptor of the connection sends it.

It also shows which protocol (ALPN) the client offers, while somebody wants to know: Python's
callback for the name (SNI) is not told.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol

ACME_ALPN = "acme-tls/1"
"""What a certificate authority offers that checks a name (RFC 8737), and nobody else."""
MAX_HELLO = 16_384
_OFFERS_ACME = b"\x00\x10\x00\x0d\x00\x0b\x0aacme-tls/1"
"""The extension of such a ClientHello, which has no other protocol in it."""


class AlertReceiver(Protocol):
    """Receives the alert, inside the failing handshake."""

    def on_alert(self, alert: bytes) -> None: ...


handshaking: ContextVar[AlertReceiver | None] = ContextVar("handshaking", default=None)
"""Set in the task that starts a handshake; the event loop carries it into its callbacks."""


class _AlertingObject(ssl.SSLObject):
    outgoing: ssl.MemoryBIO | None = None
    incoming: ssl.MemoryBIO | None = None
    hello = b""
    """The first bytes of the client, if the context keeps them."""

    def do_handshake(self) -> None:
        if self.incoming is not None:
            self._keep_hello(self.incoming)
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError:
            receiver = handshaking.get()
            if receiver is not None and self.outgoing is not None:
                receiver.on_alert(self.outgoing.read())
            raise
        self.outgoing = self.incoming = None
        self.hello = b""

    def _keep_hello(self, incoming: ssl.MemoryBIO) -> None:
        if len(self.hello) < MAX_HELLO and (data := incoming.read()):
            incoming.write(data)
            self.hello += data


def offers_acme(tls: ssl.SSLObject) -> bool:
    """Return whether a client in its handshake is a CA that checks a name.

    Never, unless the context keeps the first bytes.
    """
    return isinstance(tls, _AlertingObject) and _OFFERS_ACME in tls.hello


class AlertingContext(ssl.SSLContext):
    """An ``SSLContext`` that reports the alerts of failed handshakes to ``handshaking``."""

    sslobject_class = _AlertingObject
    keeps_hello: Callable[[], bool] | None = None
    """Whether the clients' first bytes are kept, for ``offers_acme``."""

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **kwargs: Any
    ) -> ssl.SSLObject:
        tls = super().wrap_bio(incoming, outgoing, *args, **kwargs)
        if isinstance(tls, _AlertingObject):
            tls.outgoing = outgoing
            if self.keeps_hello is not None and self.keeps_hello():
                tls.incoming = incoming
        return tls
