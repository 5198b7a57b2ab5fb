"""Metrics and health of the consumer, over plain HTTP and without a key: no secrets, no names.

GET /metrics        for Prometheus, named fabric_consumer_…
GET /health/live    200 when the process answers at all
GET /health/ready   200 when it writes; 503 and the reason when it can't
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import msgspec
from aiohttp import web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    GCCollector,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ledger.batch_writer import BatchWriter

RECORDS = (1, 10, 50, 100, 250, 500, 1000, 2500, 5000, 10_000)
SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Source(Protocol):
    """The part of the bus that is measured."""

    @property
    def problem(self) -> str | None: ...

    async def lag(self) -> Mapping[str, int]: ...


class Tasks(Protocol):
    """The background tasks, and why some of them fail."""

    @property
    def failures(self) -> Mapping[str, int]: ...
    @property
    def problems(self) -> Mapping[str, str]: ...


class Metrics:
    def __init__(self, worker: BatchWriter, source: Source, tasks: Tasks) -> None:
        self._worker = worker
        self._tasks = tasks
        self._source = source
        self._lag: Mapping[str, int] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._records = Histogram(
            "fabric_consumer_batch_records",
            "Records written in one transaction.",
            buckets=RECORDS,
            registry=self._registry,
        )
        self._seconds = Histogram(
            "fabric_consumer_batch_seconds",
            "Seconds to write one batch.",
            buckets=SECONDS,
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        worker.on_written = self._on_written

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/health/live", self._live)
        application.router.add_get("/health/ready", self._ready)
        return application

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        worker = self._worker
        yield CounterMetricFamily(
            "fabric_consumer_records_written",
            "Records stored, including those that were there already.",
            value=worker.written,
        )
        yield CounterMetricFamily(
            "fabric_consumer_records_dead",
            "Records copied to the topic dead-letters.",
            value=worker.rejected,
        )
        failures = CounterMetricFamily(
            "fabric_consumer_background_failures",
            "Failures of background tasks, each of which was started again.",
            labels=["task"],
        )
        for name, count in self._tasks.failures.items():
            failures.add_metric([name], count)
        yield failures
        failing = not self._is_ready()
        yield GaugeMetricFamily(
            "fabric_consumer_failing", "1 while records can't be read or stored.", value=failing
        )
        lag = GaugeMetricFamily(
            "fabric_consumer_lag", "Records on the bus that are not stored yet.", labels=["topic"]
        )
        for topic, count in self._lag.items():
            lag.add_metric([topic], count)
        yield lag

    def _on_written(self, records: int, seconds: float) -> None:
        self._records.observe(records)
        self._seconds.observe(seconds)

    async def _metrics(self, request: web.Request) -> web.Response:
        self._lag = await self._source.lag()
        headers = {"content-type": CONTENT_TYPE_LATEST}
        return web.Response(body=generate_latest(self._registry), headers=headers)

    def _is_ready(self) -> bool:
        healthy = self._worker.problem is None and self._source.problem is None
        return healthy and not self._tasks.problems

    async def _live(self, request: web.Request) -> web.Response:
        return _json(200, {"status": "alive"})

    async def _ready(self, request: web.Request) -> web.Response:
        problems = {"store": self._worker.problem, "bus": self._source.problem}
        checks = {part: "ok" if problem is None else "away" for part, problem in problems.items()}
        if failing := sorted(self._tasks.problems):
            checks["background"] = ", ".join(failing)
        ready = self._is_ready()
        return _json(200 if ready else 503, {"status": "ready" if ready else "failing", **checks})


def _json(status: int, content: object) -> web.Response:
    body = msgspec.json.encode(content)
    return web.Response(status=status, body=body, content_type="application/json")
