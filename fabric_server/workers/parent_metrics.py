"""The parent's own metrics, in Prometheus' format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from fabric_server.net.listener import Listener
from fabric_server.workers.process import Worker


class Source(Protocol):
    @property
    def workers(self) -> Sequence[Worker]: ...
    @property
    def listeners(self) -> Mapping[str, Listener]: ...


def own_metrics(source: Source) -> str:
    """Return what only the parent knows."""
    return "".join(f"{line}\n" for line in _lines(source))


def _lines(source: Source) -> Iterator[str]:
    yield "# HELP fabric_workers_serving Workers that take connections."
    yield "# TYPE fabric_workers_serving gauge"
    yield f"fabric_workers_serving {sum(one.begun.is_set() for one in source.workers)}"
    yield "# HELP fabric_worker_restarts_total Times that workers were started again."
    yield "# TYPE fabric_worker_restarts_total counter"
    yield f"fabric_worker_restarts_total {sum(one.restarts for one in source.workers)}"
    yield "# HELP fabric_connections_refused_total Connections refused."
    yield "# TYPE fabric_connections_refused_total counter"
    for name, listener in source.listeners.items():
        for reason, count in listener.refused.items():
            yield f'fabric_connections_refused_total{{port="{name}",reason="{reason}"}} {count}'
