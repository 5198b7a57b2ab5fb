"""The other servers that hold nodes, as far as admission needs them."""

from __future__ import annotations

from typing import Protocol

from fabric_server.routing.choice import Choice
from fabric_server.routing.criteria import Requirements


class Homes(Protocol):
    """The other servers."""

    async def wait(
        self, requirements: Requirements, here: float | None, deadline: float, request_id: str
    ) -> Choice | None:
        """Wait in the queue of the server where a slot is expected first, and return the slot.

        ``here`` are the seconds that it would take in this server's own queue, None when that leads
        nowhere; ``deadline`` is in event-loop seconds.  None: wait here.  Raises ``ApiError``.
        """

    def position(self, request_id: str) -> int | None:
        """Return the position of a request that waits at another server, as it was told last."""
