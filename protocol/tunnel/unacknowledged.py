"""Streams that the node has ended and whose END the server has not acknowledged."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from protocol.tunnel.streams import TUNNEL_WINDOW, Stream

MAX_UNACKNOWLEDGED = 1024
"""Streams held; the oldest are dropped first and can't be resumed any more.  Their replay buffers
are limited to ``TUNNEL_WINDOW`` bytes in all."""
ACK_BYTES, ACK_BYTES_PER_END = 64 * 1024, 4 * 1024
"""Bytes of answers after which the server acknowledges ENDs; each END adds the second figure."""


class AckCounter:
    """Server's side: counts the ENDs received on a tunnel and decides when to acknowledge them."""

    __slots__ = ("_count", "_debt")

    def __init__(self) -> None:
        self._count = 0
        self._debt = 0

    def count(self, answer_bytes: int, pending: int) -> int:
        """Count one END; return the number to acknowledge, or 0 while that can wait.

        ``pending`` is an earlier result that is not sent yet: the new one replaces it.
        """
        self._count += 1
        self._debt += ACK_BYTES_PER_END + answer_bytes
        if self._debt < ACK_BYTES and not pending:
            return 0
        self._debt = 0
        return self._count


class Unacknowledged:
    """Ended streams in the order of their ENDs, with replay buffers for a RESUME."""

    __slots__ = ("_sizes", "_streams", "acknowledged", "replay_bytes")

    def __init__(self) -> None:
        self._streams: deque[Stream | None] = deque()
        """None in place of a stream that another tunnel has taken over."""
        self._sizes: deque[int] = deque()
        self.acknowledged = 0
        """Number of ENDs that came before those held: acknowledged, or dropped."""
        self.replay_bytes = 0

    @property
    def sent(self) -> int:
        """Number of ENDs sent on this tunnel."""
        return self.acknowledged + len(self._streams)

    def __len__(self) -> int:
        return len(self._streams)

    def add(self, stream: Stream) -> None:
        """Hold a stream whose END was just sent; drop the oldest when over a limit."""
        size = stream.replay_size()
        self._streams.append(stream)
        self._sizes.append(size)
        self.replay_bytes += size
        while self.replay_bytes > TUNNEL_WINDOW or len(self._streams) > MAX_UNACKNOWLEDGED:
            self._drop_oldest()

    def acknowledge(self, count: int) -> None:
        """Drop the first ``count`` streams ended on this tunnel; ``count`` is at most ``sent``."""
        while self.acknowledged < count:
            self._drop_oldest()

    def __iter__(self) -> Iterator[Stream]:
        return (stream for stream in self._streams if stream is not None)

    def remove(self, stream: Stream) -> None:
        """Take out a stream that another tunnel takes over; its END still counts."""
        at = self._streams.index(stream)
        self._streams[at] = None
        self.replay_bytes -= self._sizes[at]
        self._sizes[at] = 0

    def clear(self) -> None:
        self._streams.clear()
        self._sizes.clear()
        self.replay_bytes = 0

    def _drop_oldest(self) -> None:
        self._streams.popleft()
        self.replay_bytes -= self._sizes.popleft()
        self.acknowledged += 1
