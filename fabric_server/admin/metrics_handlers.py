"""The handler of ``/metrics``."""

from __future__ import annotations

import asyncio

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    GCCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.registry import Collector

from fabric_server.admin.metrics import Sources, StateCollector
from fabric_server.admin.routes import Text
from fabric_server.admin.scrape import merge

LAG_SECONDS = 0.02
"""The sleep by which the lag of the event loop is measured."""


class MetricsHandlers:
    """The handler of ``/metrics``; each server has a Prometheus registry of its own."""

    def __init__(self, metrics: Collector, sources: Sources) -> None:
        self._seat = sources.seat
        self._backlog = sources.jobs.backlog
        self._state = StateCollector(sources)
        self._registry = CollectorRegistry()
        self._registry.register(metrics)
        self._registry.register(self._state)
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    async def metrics(self) -> Text:
        """Export metrics in Prometheus' text format, named fabric_…, process_… and python_….

        With workers, those of all, each with the label ``worker``.
        """
        own, seat = await self.own(), self._seat
        if seat is None:
            return Text(own, CONTENT_TYPE_LATEST)
        try:
            others = await seat.metrics_of_others()
        except (TimeoutError, ConnectionError):  # its own are told all the same
            others = {}
        texts = {seat.name: own, **others}
        return Text(
            merge({name: texts[name].decode() for name in sorted(texts)}).encode(),
            CONTENT_TYPE_LATEST,
        )

    async def own(self) -> bytes:
        """Return the metrics of this process."""
        await self._backlog.count()
        loop = asyncio.get_running_loop()
        due = loop.time() + LAG_SECONDS
        await asyncio.sleep(LAG_SECONDS)
        self._state.lag = max(0.0, loop.time() - due)
        return generate_latest(self._registry)
