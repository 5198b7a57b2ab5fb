"""Reasons for which no engine may serve a model, and the time at which one can be back.

What nodes write about their problems is for operators; users get the sentences from here only.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from fabric_server.nodes.node import Engine
from protocol.messages import MAX_SECONDS

SOON = 5.0
"""Seconds after which a lost node or an engine may be back: about as long as reconnecting takes."""
LATER = 60.0
"""Seconds after which a client may ask again if nobody knows when the model is back."""
RECENT = 60.0
"""Seconds for which a node that has left, or was to be back, is expected at any moment."""
MIN_RETRY_AFTER, MAX_RETRY_AFTER = 1.0, 86_400.0

PAUSED = "its node is paused by the owner's command, hours or settings"
DRAINED = "its node is drained or shutting down"
DOWN = "its node's engine can't be used"
AWAY = "no node that serves it is connected"


class Absence(NamedTuple):
    """The reason for which a model can't be used now."""

    reason: str
    retry_after: float
    """Seconds."""
    back_at: float | None = None
    """Earliest time at which it can be used again, in Unix seconds; None when it is not known."""

    def __str__(self) -> str:
        if self.back_at is None:
            return self.reason
        at = datetime.fromtimestamp(self.back_at, UTC)
        return f"{self.reason} and can be back at {at:%Y-%m-%d %H:%M:%S} UTC"


def find_absence(engines: Sequence[Engine], gone_for: float | None, now: float) -> Absence | None:
    """Return why none of a model's engines may serve; None if one may.

    ``gone_for`` is ``Registry.gone_for``, or None if nodes that are away do not count; ``now`` is
    in Unix seconds.
    """
    if any(engine.may_serve for engine in engines):
        return None
    connected = [engine for engine in engines if engine.node.connected]
    times = [engine.back_at for engine in connected if engine.paused]
    # Times beyond these bounds are not known: a node's clock or its owner's may be wrong.
    times = [at for at in times if now - RECENT < at <= now + MAX_SECONDS]
    expected = gone_for is not None and gone_for < RECENT
    if times:
        back_at = min(times)
        most = SOON if expected else MAX_RETRY_AFTER
        retry_after = min(max(back_at - now, MIN_RETRY_AFTER), most)
        return Absence(PAUSED, retry_after, back_at if back_at > now else None)
    down = any(not engine.paused for engine in connected)
    if any(engine.paused for engine in connected):
        reason = PAUSED
    elif down:
        reason = DOWN
    else:
        reason = DRAINED if engines else AWAY
    return Absence(reason, SOON if expected or down else LATER)
