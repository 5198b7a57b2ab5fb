"""Resuming streams: the node's streams outlive their tunnels, and RESUME frames claim them.

A cut leaves a stream ``suspended`` on both sides, in the connection that carried it: that
connection takes commands for it and sends nothing.  A claimed stream moves with all its state to
the connection on which the claim came, whether the former one is cut or only thought to be::

    T1 carries ── T1 lost ──> suspended in T1 ── RESUME on T2 ──> T2 carries ── …
       │                          └── abandoned after KEEP_SECONDS ──> gone
       └── RESUME on T2, T1 half open ──────────────────────────> T2 carries
"""

from __future__ import annotations

from typing import Protocol

from protocol.messages import Resume
from protocol.tunnel.streams import Stream

KEEP_SECONDS = 10.0
"""Node side: time after a cut in which a stream can be claimed; then it is given up."""
RESUME_SECONDS = 3.0
"""Server side: time after a cut in which a tunnel must come; then the stream is lost."""


class StreamHolder(Protocol):
    """Node side: a connection whose streams can be claimed."""

    number: int
    closed: bool

    def find_stream(self, origin: tuple[int, int]) -> Stream | None:
        """Return the stream opened on tunnel ``origin[0]`` with id ``origin[1]`` if it is here."""

    def hand_over(self, stream: Stream) -> None:
        """Let another connection have a stream that ``find_stream`` returned."""


class ResumeTable:
    """Node side: the connections whose streams can be claimed; all tunnels share one table."""

    def __init__(self) -> None:
        self._holders: dict[int, StreamHolder] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def add(self, holder: StreamHolder) -> None:
        self._holders[holder.number] = holder

    def forget(self, holder: StreamHolder) -> None:
        self._holders.pop(holder.number, None)

    @property
    def lost(self) -> list[int]:
        """Numbers of the tunnels that were cut and can still be resumed from, the newest last."""
        return [number for number, holder in self._holders.items() if holder.closed]

    def find(self, claim: Resume) -> tuple[StreamHolder, Stream] | None:
        """Return the claimed stream and the connection it is in now; None when it is gone."""
        origin = claim.tunnel, claim.stream
        home = self._holders.get(claim.tunnel)
        stream = None if home is None else home.find_stream(origin)
        if home is not None and stream is not None:
            return home, stream
        for holder in self._holders.values():  # rare: only a stream that has moved before
            stream = holder.find_stream(origin)
            if stream is not None:
                return holder, stream
        return None
