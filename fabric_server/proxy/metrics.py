"""Prometheus metrics of requests.  To count is to add to an integer; labels are bounded."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from ledger.records import LedgerEntry

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Histogram:
    """Counts of seconds by upper bound."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.sum += seconds

    def family(self, name: str, documentation: str) -> HistogramMetricFamily:
        total, buckets = 0, []
        for bound, count in zip((*map(str, SECONDS), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, total))
        family = HistogramMetricFamily(name, documentation)
        family.add_metric([], buckets, self.sum)
        return family


class Metrics:
    """A prometheus collector of what the requests leave behind; ``api.figures`` asks the rest."""

    def __init__(self) -> None:
        self.requests: defaultdict[tuple[str, str], int] = defaultdict(int)
        """By endpoint, which is one of a table, and outcome."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """Time to the last byte, by outcome."""
        self.errors: Counter[str] = Counter()
        """By code, of requests answered by the fabric itself."""
        self.media: Counter[str] = Counter()
        """By result: fetched, refused or failed."""
        self.retries = 0
        self.continued = 0
        self.hedged = 0
        self.hedges_won = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.implausible = 0
        self.estimated = 0
        self.first_byte = Histogram()
        self.total = Histogram()
        self.queued = Histogram()

    def count(self, entry: LedgerEntry) -> None:
        """Count a request that has ended."""
        seconds = entry.total_ms / 1000
        self.requests[entry.path, entry.outcome] += 1
        self.seconds[entry.outcome] += seconds
        self.total.observe(seconds)
        if entry.queue_ms:
            self.queued.observe(entry.queue_ms / 1000)
        if entry.first_byte_ms is not None:
            self.first_byte.observe(entry.first_byte_ms / 1000)
        self.implausible += entry.usage_implausible
        self.estimated += entry.estimated
        self.prompt_tokens += entry.prompt_tokens or 0
        self.completion_tokens += entry.completion_tokens or 0

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "fabric_requests", "Requests that have ended.", labels=["endpoint", "outcome"]
        )
        for (endpoint, outcome), count in self.requests.items():
            requests.add_metric([endpoint, outcome], count)
        yield requests
        errors = CounterMetricFamily(
            "fabric_refusals",
            "Requests that the fabric itself refused.",
            labels=["code"],
        )
        for code, count in self.errors.items():
            errors.add_metric([code], count)
        yield errors
        tokens = CounterMetricFamily("fabric_tokens", "Tokens metered.", labels=["kind"])
        tokens.add_metric(["prompt"], self.prompt_tokens)
        tokens.add_metric(["completion"], self.completion_tokens)
        yield tokens
        media = CounterMetricFamily(
            "fabric_media_urls", "URLs of media in requests.", labels=["result"]
        )
        for result, count in self.media.items():
            media.add_metric([result], count)
        yield media
        yield CounterMetricFamily(
            "fabric_usage_implausible",
            "Answers whose node reported more tokens than plausible.",
            value=self.implausible,
        )
        yield CounterMetricFamily(
            "fabric_usage_estimated",
            "Requests of which the engine did not tell all tokens.",
            value=self.estimated,
        )
        yield CounterMetricFamily("fabric_retries", "Retries.", value=self.retries)
        yield CounterMetricFamily(
            "fabric_continued", "Streams that were continued on another node.", value=self.continued
        )
        yield CounterMetricFamily(
            "fabric_hedged",
            "Requests sent to a second node, too.",
            value=self.hedged,
        )
        yield CounterMetricFamily(
            "fabric_hedges_won",
            "Hedged requests that the second won.",
            value=self.hedges_won,
        )
        yield self.first_byte.family("fabric_first_byte_seconds", "Time to the first byte.")
        yield self.total.family("fabric_request_seconds", "Time to the last byte.")
        yield self.queued.family("fabric_queue_seconds", "Time in the queue.")
