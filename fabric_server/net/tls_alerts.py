"""Tells a TLS client why its handshake failed.

When a handshake fails, OpenSSL writes an alert that says why ("certificate expired", "protocol
version"), but neither asyncio nor uvloop sends it: the client sees a closed connection and can tell
its owner nothing.  (Seen with Python 3.11.7 and uvloop 0.23, on both loops, for every reason.)
Here the alert is taken where OpenSSL leaves it, and whoever accepted the connection sends it.
"""

from __future__ import annotations

import ssl
from contextvars import ContextVar
from typing import Any, Protocol


class Told(Protocol):
    """Who wants to hear of the alert; called inside the failing handshake."""

    def on_alert(self, alert: bytes) -> None: ...


handshaking: ContextVar[Told | None] = ContextVar("handshaking", default=None)
"""Set in the task that starts a handshake; the event loop carries it into its callbacks."""


class _Conversation(ssl.SSLObject):
    outgoing: ssl.MemoryBIO | None = None

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError:
            told = handshaking.get()
            if told is not None and self.outgoing is not None:
                told.on_alert(self.outgoing.read())
            raise
        self.outgoing = None


class AlertingContext(ssl.SSLContext):
    """An ``SSLContext`` whose failed handshakes are told to ``handshaking``."""

    sslobject_class = _Conversation

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **kwargs: Any
    ) -> ssl.SSLObject:
        conversation = super().wrap_bio(incoming, outgoing, *args, **kwargs)
        if isinstance(conversation, _Conversation):
            conversation.outgoing = outgoing
        return conversation
