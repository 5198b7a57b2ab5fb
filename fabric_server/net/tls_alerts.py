"""Sends TLS clients the alert that says why their handshake failed.

When a handshake fails, OpenSSL writes an alert with the reason ("certificate expired", "protocol
version"), but neither asyncio nor uvloop sends it: the client only sees a closed connection.
(Seen with Python 3.11.7 and uvloop 0.23, on both loops, for every reason.)  This module takes the
alert from OpenSSL's buffer, and the acceptor of the connection sends it.
"""

from __future__ import annotations

import ssl
from contextvars import ContextVar
from typing import Any, Protocol


class AlertReceiver(Protocol):
    """Receives the alert, inside the failing handshake."""

    def on_alert(self, alert: bytes) -> None: ...


handshaking: ContextVar[AlertReceiver | None] = ContextVar("handshaking", default=None)
"""Set in the task that starts a handshake; the event loop carries it into its callbacks."""


class _AlertingObject(ssl.SSLObject):
    outgoing: ssl.MemoryBIO | None = None

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError:
            receiver = handshaking.get()
            if receiver is not None and self.outgoing is not None:
                receiver.on_alert(self.outgoing.read())
            raise
        self.outgoing = None


class AlertingContext(ssl.SSLContext):
    """An ``SSLContext`` that reports the alerts of failed handshakes to ``handshaking``."""

    sslobject_class = _AlertingObject

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **kwargs: Any
    ) -> ssl.SSLObject:
        tls = super().wrap_bio(incoming, outgoing, *args, **kwargs)
        if isinstance(tls, _AlertingObject):
            tls.outgoing = outgoing
        return tls
