"""Whether the server lives, and whether users should be sent to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from typing import Annotated, Literal, Protocol

from msgspec import Meta, Struct


class Live(Struct, frozen=True):
    status: Literal["alive"]


class Checks(Struct, frozen=True):
    store: Annotated[
        Literal["ok", "read_only", "away"],
        Meta(
            description="away: keys already in memory still work, others are refused. read_only: "
            "no key can be made, and no node can register."
        ),
    ]
    cache: Annotated[
        Literal["ok", "away"], Meta(description="away: keys are looked up in the store instead.")
    ]
    bus: Annotated[
        Literal["ok", "away", "failing", "full"],
        Meta(
            description="away: ledger entries and heartbeats wait in the server until they are "
            "taken. failing: its disk fails, and they wait in memory. full: there is no room for "
            "more, and requests are refused."
        ),
    ]
    public_port: Literal["open", "closed"]
    nodes: Annotated[int, Meta(description="Nodes connected now.")]


class Ready(Struct, frozen=True):
    status: Literal["ready", "degraded", "draining", "not_ready"]
    checks: Checks


class Troubled(Protocol):
    @property
    def problem(self) -> str | None: ...


class ChangeFeed(Troubled, Protocol):
    @property
    def read_only(self) -> bool: ...


class Accounts(Protocol):
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


class Health:
    """Looks only at what is known already: anybody may ask, as often as they like."""

    def __init__(
        self,
        watch: ChangeFeed,
        accounts: Accounts,
        worker: Troubled,
        bus: Bus,
        registry: Registry,
        ports: Mapping[str, Port],
        draining: Callable[[], bool],
    ) -> None:
        self._watch = watch
        self._accounts = accounts
        self._worker = worker
        self._bus = bus
        self._registry = registry
        self._ports = ports
        self._draining = draining

    async def live(self) -> Live:
        """Whether the process answers at all."""
        return Live("alive")

    async def ready(self) -> tuple[Literal[200, 503], Ready]:
        """Whether users should be sent here.

        200 when ready or degraded (known keys and connected nodes still work), 503 when draining
        or not ready. A server without nodes is ready: it can tell users so.
        """
        checks = Checks(
            store=self._state_of_store(),
            cache="ok" if self._accounts.cache_problem is None else "away",
            bus=self._state_of_bus(),
            public_port="open" if self._ports["public"].accepting else "closed",
            nodes=len(self._registry.nodes()),
        )
        if self._draining():
            return 503, Ready("draining", checks)
        if checks.public_port == "closed":
            return 503, Ready("not_ready", checks)
        if not checks.store == checks.cache == checks.bus == "ok":
            return 200, Ready("degraded", checks)
        return 200, Ready("ready", checks)

    def _state_of_store(self) -> Literal["ok", "read_only", "away"]:
        if self._watch.problem is not None:
            return "away"
        return "read_only" if self._watch.read_only else "ok"

    def _state_of_bus(self) -> Literal["ok", "away", "failing", "full"]:
        if self._bus.full:
            return "full"
        if self._bus.problem is not None:
            return "failing"
        return "ok" if self._worker.problem is None else "away"
