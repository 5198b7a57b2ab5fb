"""A node's streams outlive its tunnels: where the server's claim on one is looked up.

A cut leaves a stream ``suspended`` on both sides, in the connection that carried it: commands are
taken, nothing is sent.  Claimed, it moves with all its state to the connection that the claim came
on, be the former one cut or only thought to be::

    T1 carries ── T1 lost ──> suspended in T1 ── RESUME on T2 ──> T2 carries ── …
       │                          └── abandoned after KEEP_SECONDS ──> gone
       └── RESUME on T2, T1 half open ──────────────────────────> T2 carries
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protocol.messages import Resume
    from protocol.tunnel.connection import Connection
    from protocol.tunnel.streams import Stream

KEEP_SECONDS = 10.0
"""Node side: a stream that nobody claims in this time is given up."""
RESUME_SECONDS = 3.0
"""Server side: a stream for which no tunnel comes in this time is lost."""


class ResumeTable:
    """Node side: every connection whose streams may be claimed, shared by all of them."""

    def __init__(self) -> None:
        self._connections: dict[int, Connection] = {}

    def __len__(self) -> int:
        return len(self._connections)

    def add(self, connection: Connection) -> None:
        self._connections[connection.number] = connection

    def forget(self, connection: Connection) -> None:
        self._connections.pop(connection.number, None)

    @property
    def lost(self) -> list[int]:
        """The numbers of those that were cut and are remembered, the newest last."""
        return [number for number, one in self._connections.items() if one.closed]

    def find(self, claim: Resume) -> tuple[Connection, Stream] | None:
        """Where the stream is now; None when it is gone."""
        home = self._connections.get(claim.tunnel)
        stream = None if home is None else home.opened_here(claim.stream)
        if home is not None and stream is not None:
            return home, stream
        origin = (claim.tunnel, claim.stream)
        for connection in self._connections.values():  # it has moved before: rare
            stream = connection.came_from(origin)
            if stream is not None:
                return connection, stream
        return None
