"""Health checks: whether the server is alive, and whether it is ready for requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from msgspec import Meta, Struct


class Live(Struct, frozen=True):
    status: Literal["alive"]


State = Literal["ok", "read_only", "away", "failing", "full"]


class Checks(Struct, frozen=True):
    store: Annotated[
        Literal["ok", "read_only", "away"],
        Meta(
            description="away: keys in memory still work, other keys get a 503. read_only: keys "
            "can't be created, and nodes can't register."
        ),
    ]
    cache: Annotated[Literal["ok", "away"], Meta(description="away: the store is used instead.")]
    bus: Annotated[
        Literal["ok", "away", "failing", "full"],
        Meta(
            description="away: neither ledger entries nor heartbeats are taken; they wait on disk. "
            "failing: the disk fails, so they wait in memory. full: no more fit, so "
            "requests are refused."
        ),
    ]
    public_port: Literal["open", "closed"]
    certificate: Annotated[
        Literal["ok", "not_issued"],
        Meta(
            description="not_issued: the ACME CA has not issued the certificate that is due. Users "
            "get the old one, or the fabric's own; the log and 'doctor' have the reason."
        ),
    ]
    nodes: Annotated[int, Meta(description="Nodes connected now.")]
    background: Annotated[
        list[str],
        Meta(
            description="Background tasks that fail and are started again, such as ledger_writer; "
            "the log has the reasons. Requests go on."
        ),
    ] = []
    workers: Annotated[
        dict[str, str],
        Meta(
            description="With workers, the state of each: a status of this answer, starting or "
            "away."
        ),
    ] = {}


class Ready(Struct, frozen=True):
    status: Literal["ready", "degraded", "draining", "not_ready"]
    checks: Checks


class Writer(Protocol):
    @property
    def problem(self) -> str | None: ...


class ChangeFeed(Protocol):
    @property
    def problem(self) -> str | None: ...
    @property
    def read_only(self) -> bool: ...


class Authenticator(Protocol):
    @property
    def cache_problem(self) -> str | None: ...


class Bus(Protocol):
    @property
    def full(self) -> bool: ...
    @property
    def problem(self) -> str | None: ...


class Port(Protocol):
    @property
    def accepting(self) -> bool: ...


class Registry(Protocol):
    def nodes(self) -> Sized: ...


class Acme(Protocol):
    @property
    def problem(self) -> object | None: ...


class Seat(Protocol):
    @property
    def states(self) -> Mapping[str, str]: ...
    @property
    def nodes(self) -> int: ...


class Tasks(Protocol):
    @property
    def problems(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The parts of the server whose state is checked."""

    change_feed: ChangeFeed
    authenticator: Authenticator
    writer: Writer
    bus: Bus
    registry: Registry
    ports: Mapping[str, Port]
    tasks: Tasks
    draining: Callable[[], bool]
    seat: Seat | None = None
    """The place of this worker; None: this process is the whole server."""
    acme: Acme | None = None
    """What orders the certificate for users; None without ``acme``."""


def backends_available(sources: Sources) -> Mapping[str, bool]:
    """Return, for each back end, whether it is wholly of use now."""
    states: dict[str, State] = {
        "store": _store_state(sources),
        "cache": _cache_state(sources),
        "bus": _bus_state(sources),
    }
    return {name: state == "ok" for name, state in states.items()}


class HealthHandlers:
    """Handlers of ``/health/…``.

    They read state that is in memory already: anybody may call them, at any rate.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    async def live(self) -> Live:
        """Tell whether the process responds."""
        return Live("alive")

    async def ready(self) -> tuple[Literal[200, 503], Ready]:
        """Tell whether clients should be sent to this server.

        200 when ready or degraded (known keys and connected nodes still work), 503 when draining
        or not ready. A server without nodes is ready: it responds to requests, with an error.
        """
        sources, seat = self._sources, self._sources.seat
        checks = Checks(
            store=_store_state(sources),
            cache=_cache_state(sources),
            bus=_bus_state(sources),
            public_port="open" if sources.ports["public"].accepting else "closed",
            certificate=_certificate_state(sources),
            nodes=len(sources.registry.nodes()) if seat is None else seat.nodes,
            background=sorted(sources.tasks.problems),
            workers={} if seat is None else dict(seat.states),
        )
        if sources.draining():
            return 503, Ready("draining", checks)
        if checks.public_port == "closed":
            return 503, Ready("not_ready", checks)
        states = (checks.store, checks.cache, checks.bus, checks.certificate)
        workers = any(state != "ready" for state in checks.workers.values())
        if checks.background or workers or any(state != "ok" for state in states):
            return 200, Ready("degraded", checks)
        return 200, Ready("ready", checks)


def _store_state(sources: Sources) -> Literal["ok", "read_only", "away"]:
    if sources.change_feed.problem is not None:
        return "away"
    return "read_only" if sources.change_feed.read_only else "ok"


def _cache_state(sources: Sources) -> Literal["ok", "away"]:
    return "ok" if sources.authenticator.cache_problem is None else "away"


def _bus_state(sources: Sources) -> Literal["ok", "away", "failing", "full"]:
    if sources.bus.full:
        return "full"
    if sources.bus.problem is not None:
        return "failing"
    return "ok" if sources.writer.problem is None else "away"


def _certificate_state(sources: Sources) -> Literal["ok", "not_issued"]:
    return "ok" if sources.acme is None or sources.acme.problem is None else "not_issued"
