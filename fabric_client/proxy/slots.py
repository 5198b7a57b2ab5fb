"""What one registration has running at the engines, of which another's server knows nothing.

A node that changes from a server to its successor is registered with both for a while, and what a
lost registration left behind runs on beside the next one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from protocol.messages import EngineReport

if TYPE_CHECKING:
    from fabric_client.engines.discovery import Engine
    from fabric_client.proxy.exchange import EngineRequest
    from fabric_client.proxy.forwarder import Forwarder
    from protocol.aio.tunnel import Stream
    from protocol.messages import RequestHead


class RegistrationSlots:
    """Made by ``Forwarder.share``; ``close`` it with its registration."""

    def __init__(self, forwarder: Forwarder, on_change: Callable[[], None]) -> None:
        self.on_change = on_change
        """Called when ``elsewhere`` may have changed."""
        self.open = True
        self._forwarder = forwarder
        self._running: Counter[Engine] = Counter()

    @property
    def running(self) -> int:
        return self._running.total()

    def running_at(self, engine: Engine) -> int:
        return self._running[engine]

    def accept(self, stream: Stream, head: RequestHead, ended: bool) -> EngineRequest | None:
        """Takes the streams of this registration's tunnels (``protocol.aio.tunnel.Accept``)."""
        return self._forwarder.accept(stream, head, ended, self)

    def began(self, engine: Engine) -> None:
        self._running[engine] += 1

    def ended(self, engine: Engine) -> None:
        self._running[engine] -= 1

    def elsewhere(self) -> dict[str, int]:
        """Slots that others' requests hold, by engine; those with none are left out."""
        return {
            engine.name: others
            for engine in self._forwarder.engines_in_use()
            if (others := engine.active - self._running[engine]) > 0
        }

    def told(self, reports: Sequence[EngineReport]) -> list[EngineReport]:
        """What this registration's server is told of the engines."""
        elsewhere = self.elsewhere()
        if not elsewhere:
            return list(reports)
        return [
            msgspec.structs.replace(report, elsewhere=elsewhere.get(report.name, 0))
            for report in reports
        ]

    def close(self) -> None:
        """What runs goes on; nothing is told any more."""
        self.open = False
        self._forwarder.tidy_shares()
