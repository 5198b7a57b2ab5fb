"""Watches what may pause a node: its owner's commands, the hours, the battery and the GPU."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fabric_client.hardware.machine import Machine
from fabric_client.owner.control import ControlFile
from fabric_client.owner.pause_policy import GpuUse, find_back_at, pause_reason, report_paused
from fabric_client.owner.schedule import Schedule
from protocol.messages import EngineReport

log = logging.getLogger("fabric.supervisor")

SENSOR_SECONDS = 2.0
"""Time between two readings of the battery or the GPU, if they matter."""


@dataclass(frozen=True, kw_only=True)
class PauseSettings:
    """The owner's settings; ``Config`` has the same ones in text."""

    schedule: Schedule
    on_battery: bool
    """Pause on battery."""
    gpu_percent: float | None
    """Pause while others use the GPU more than this; None never does."""
    gpu_seconds: float
    """Time for which they have to, or have to have stopped."""


class PauseMonitor:
    """Knows whether the node is paused, and why.

    Call ``check`` often; run ``watch_gpu`` and ``watch_battery`` for as long as the node runs.
    """

    def __init__(
        self,
        directory: Path,
        settings: PauseSettings,
        machine: Machine,
        *,
        run: str,
        clock: Callable[[], float],
    ) -> None:
        """``run`` is ``State.run``; ``clock`` gives Unix seconds."""
        self.reason: str | None = None
        """Set while the node is paused."""
        self.back_at = 0.0
        """Earliest end of the pause, in Unix seconds; 0 when it is not known."""
        self.drain_requested = asyncio.Event()
        """Set when the owner wants this run to end."""
        self._reload: float | None = None
        self._settings = settings
        self._machine = machine
        self._run = run
        self._clock = clock
        self._control = ControlFile(directory)
        self._gpu = GpuUse(settings.gpu_percent or 100.0, settings.gpu_seconds)
        self._on_battery = False

    @property
    def problem(self) -> str | None:
        """The reason for which the server should send nothing, None if it may."""
        if self.drain_requested.is_set():
            return "draining: finishing running requests, then stopping"
        return None if self.reason is None else f"paused: {self.reason}"

    @property
    def acknowledged(self) -> float:
        """``Control.at`` of the last command that was acted on."""
        return self._control.current.at

    def check(self) -> None:
        """Bring everything up to date with the owner's commands and the time."""
        if trouble := self._control.poll():
            log.warning("the owner's command can't be read", extra={"reason": trouble})
        control = self._control.current
        if control.drain == self._run:
            self.drain_requested.set()
        now = self._clock()
        self.reason = pause_reason(
            now=now,
            wall=datetime.fromtimestamp(now),
            control=control,
            schedule=self._settings.schedule,
            on_battery=self._on_battery,
            gpu_busy=self._gpu.busy,
        )
        self.back_at = 0.0
        if self.reason is not None and not self.drain_requested.is_set():
            self.back_at = find_back_at(now, control, self._settings.schedule)

    def take_reload(self) -> bool:
        """Return whether the owner wants the settings read again, each time once."""
        before, self._reload = self._reload, self._control.current.reload
        return before is not None and before != self._reload

    def change(self, settings: PauseSettings) -> None:
        """Keep to other settings from now on."""
        before, self._settings = self._settings, settings
        gpu = settings.gpu_percent, settings.gpu_seconds
        if gpu != (before.gpu_percent, before.gpu_seconds):
            self._gpu = GpuUse(settings.gpu_percent or 100.0, settings.gpu_seconds)
        self._on_battery &= settings.on_battery

    def apply(self, reports: Sequence[EngineReport]) -> list[EngineReport]:
        """Return the engines' reports as the server gets them."""
        return report_paused(reports, self.problem, self.back_at)

    async def read_battery(self) -> None:
        if self._settings.on_battery:
            self._on_battery = await asyncio.to_thread(self._machine.on_battery)

    async def watch_battery(self) -> None:
        while True:
            await asyncio.sleep(SENSOR_SECONDS)
            await self.read_battery()

    async def watch_gpu(self, worked_at: Callable[[float], float]) -> None:
        """Take readings; ``worked_at`` is ``Forwarder.worked_at``."""
        loop = asyncio.get_running_loop()
        while True:
            if self._settings.gpu_percent is not None:
                # The call has a thread: a GPU's driver may hang, and `busy` stays until it answers.
                percent = await asyncio.to_thread(self._machine.gpu_percent, loop.time())
                now = loop.time()
                self._gpu.observe(now, percent, worked_at(now))
            await asyncio.sleep(SENSOR_SECONDS)
