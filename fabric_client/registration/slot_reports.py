"""Keeps one server informed of the slots that other registrations' requests hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from fabric_client.proxy.forwarder import Forwarder
from protocol.aio.node import Accept
from protocol.messages import EngineReport

REPORT_SECONDS = 0.1
"""Least time between two reports: slots change with each request, too often for a link."""
REPORT_SECONDS_PER_MODEL = 0.001
"""More of it for many models: a server accepts 512 KiB a second, and a model may take 300 bytes."""


class SlotReports:
    """The slots of one registration, and what its server knows of the others'."""

    def __init__(self, forwarder: Forwarder, send: Callable[[], None]) -> None:
        """``send`` is called when the server needs new reports of the engines."""
        self._slots = forwarder.slots.register(self._on_change)
        self.accept: Accept = partial(forwarder.accept, self._slots)
        """Takes the streams of the registration's tunnels."""
        self._send = send
        self._sent: dict[str, int] = {}
        self.seconds = REPORT_SECONDS
        """Least time until the next report, by the size of the last."""
        self._started = False
        self._timer: asyncio.TimerHandle | None = None

    def adjust(self, reports: Sequence[EngineReport]) -> list[EngineReport]:
        """Return the reports as the server is to get them, which happens now."""
        self._sent = self._slots.elsewhere()
        models = sum(len(report.models) for report in reports)
        self.seconds = max(REPORT_SECONDS, REPORT_SECONDS_PER_MODEL * models)
        return self._slots.adjust(reports)

    def start(self) -> None:
        """Call ``send`` whenever something has changed since the last reports; perhaps at once."""
        self._started = True
        self._on_change()

    def close(self) -> None:
        """Stop; what runs goes on."""
        self._started = False
        self._slots.close()
        if self._timer is not None:
            self._timer.cancel()

    def _on_change(self) -> None:
        if self._timer is None and self._started:
            self._check()

    def _check(self) -> None:
        self._timer = None
        if self._slots.elsewhere() != self._sent:
            self._send()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.seconds, self._check)
