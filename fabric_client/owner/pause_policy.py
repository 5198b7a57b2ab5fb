"""When this node takes nothing new, and why: the owner's word, hours, battery, others' GPU use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

import msgspec

from fabric_client.owner.control import Control
from fabric_client.owner.schedule import Schedule, is_open
from protocol.messages import EngineReport

SETTLE_SECONDS = 5.0
"""For so long after our last request, a GPU's reading may still be of our own work."""


class GpuUse:
    """Whether others use the GPU: pure.

    What a driver tells is the use by all, so only readings from between our requests count: above
    ``percent`` for ``seconds`` on end it is in use, and no more when not above it for as long.
    """

    def __init__(self, percent: float, seconds: float) -> None:
        self.busy = False
        self._percent = percent
        self._seconds = seconds
        self._since: float | None = None
        """Since when the readings have been against ``busy``."""

    def saw(self, now: float, percent: float, worked_at: float) -> None:
        """``worked_at``: when a request of ours last ran; ``now`` is of the same clock."""
        if now - worked_at < SETTLE_SECONDS or (percent > self._percent) is self.busy:
            self._since = None
            return
        if self._since is None:
            self._since = now
        if now - self._since >= self._seconds:
            self.busy = not self.busy
            self._since = None


def reason_to_pause(
    *,
    now: float,
    wall: datetime,
    control: Control,
    schedule: Schedule,
    hours: str,
    on_battery: bool,
    gpu_busy: bool,
) -> str | None:
    """None when there is none; else the first of what the owner said and what he set.

    ``now`` is in Unix seconds, ``wall`` the same moment as local time, ``hours`` the schedule's
    text.
    """
    if control.pauses(now):
        assert control.paused_until is not None
        if math.isinf(control.paused_until):
            return "by its owner"
        return f"by its owner until {datetime.fromtimestamp(control.paused_until):%Y-%m-%d %H:%M}"
    if not is_open(schedule, wall):
        return f"outside its hours ({hours})"
    if on_battery:
        return "on battery"
    if gpu_busy:
        return "the GPU is in use"
    return None


def told_paused(reports: Sequence[EngineReport], problem: str | None) -> list[EngineReport]:
    """What the server is told of the engines: that of a paused node none answers.

    One that is down anyway keeps its own problem, since that is what has to be put right.
    """
    if problem is None:
        return list(reports)
    return [
        msgspec.structs.replace(report, healthy=False, slots=0, problem=problem[:1024])
        if report.healthy
        else report
        for report in reports
    ]
