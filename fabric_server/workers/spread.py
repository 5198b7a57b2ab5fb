"""The choice of the worker for each connection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

from fabric_server.net.client_hello import ClientHello
from fabric_server.workers.messages import Load
from protocol.names import NAMED_ALPN, worker_of


class Loaded(Protocol):
    """A worker, as far as the choice goes."""

    @property
    def number(self) -> int: ...
    @property
    def loads(self) -> Mapping[str, Load]:
        """Its last report."""

    @property
    def handed(self) -> Counter[str]:
        """The connections of each port that the worker was handed since its start."""


W = TypeVar("W", bound=Loaded)


def connections(worker: Loaded, port: str) -> int:
    """Return how many connections of the port it has, those on their way to it included."""
    load = worker.loads.get(port, Load())
    return load.open + worker.handed[port] - load.taken


def least_loaded(workers: Iterable[W], port: str) -> W | None:
    """Return the worker with the fewest connections of the port; None if there is no worker."""
    return min(workers, key=lambda one: (connections(one, port), one.number), default=None)


def home(hello: ClientHello | None) -> int | None:
    """Return the number of the worker that a node's connection is for; None leaves the choice.

    A tunnel names the worker that has the node's link.  A link may go to any, if the node can name
    that one then; the first has those of older nodes, which can't.
    """
    if hello is None:
        return 0
    number = worker_of(hello.server_name)
    if number is not None:
        return number
    return None if NAMED_ALPN in hello.protocols else 0
