"""Reasons for a node to pause: its owner's command, hours, battery, GPU use by others.  Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

import msgspec

from fabric_client.owner.control import Control
from fabric_client.owner.schedule import Schedule
from protocol.messages import MAX_SECONDS, EngineReport

SETTLE_SECONDS = 5.0
"""Time after the end of our last request in which a GPU's reading may still be of our own work."""


class GpuUse:
    """Decides whether other programs use the GPU.

    A driver reports the use by all programs, so that only readings from between our requests
    count: above ``percent`` for ``seconds`` on end the GPU is in use, and it is free again when it
    was not above that for as long.
    """

    def __init__(self, percent: float, seconds: float) -> None:
        self.busy = False
        self._percent = percent
        self._seconds = seconds
        self._since: float | None = None
        """Time since which the readings have contradicted ``busy``."""

    def observe(self, now: float, percent: float, worked_at: float) -> None:
        """Take a reading.

        ``worked_at`` is when a request of ours last ran, by the same clock as ``now``.
        """
        if now - worked_at < SETTLE_SECONDS or (percent > self._percent) is self.busy:
            self._since = None
            return
        if self._since is None:
            self._since = now
        if now - self._since >= self._seconds:
            self.busy = not self.busy
            self._since = None


def pause_reason(
    *,
    now: float,
    wall: datetime,
    control: Control,
    schedule: Schedule,
    on_battery: bool,
    gpu_busy: bool,
) -> str | None:
    """Return the first reason to pause, None if there is none.

    ``now`` is in Unix seconds, ``wall`` the same moment as local time.
    """
    if control.pauses(now):
        assert control.paused_until is not None
        if math.isinf(control.paused_until):
            return "by its owner"
        return f"by its owner until {datetime.fromtimestamp(control.paused_until):%Y-%m-%d %H:%M}"
    if not schedule.is_open(wall):
        return f"outside its hours ({schedule.text})"
    if on_battery:
        return "on battery"
    if gpu_busy:
        return "the GPU is in use"
    return None


def find_back_at(now: float, control: Control, schedule: Schedule) -> float:
    """Return the earliest time at which a paused node takes requests again, in Unix seconds.

    0 is returned when nobody knows: after a pause without an end, on battery, while the GPU is in
    use.  Both the command and the hours must allow the time.
    """
    back_at = now
    if control.pauses(now):
        assert control.paused_until is not None
        back_at = control.paused_until
        if back_at - now > MAX_SECONDS:
            return 0.0
    wall = datetime.fromtimestamp(back_at)
    if not schedule.is_open(wall):
        back_at = schedule.opens_at(wall).timestamp()
    return back_at if back_at > now else 0.0


def report_paused(
    reports: Sequence[EngineReport], problem: str | None, back_at: float = 0.0
) -> list[EngineReport]:
    """Return the reports as the server gets them: with a ``problem`` no engine is healthy.

    ``back_at`` is what ``find_back_at`` returns.  An engine that is down anyway keeps its own
    problem, which is the one to be put right.
    """
    if problem is None:
        return list(reports)
    told = []
    for report in reports:
        down = msgspec.structs.replace(report, healthy=False, paused=True, back_at=back_at)
        if report.healthy:
            down = msgspec.structs.replace(down, slots=0, problem=problem[:1024])
        told.append(down)
    return told
