"""Requests and usage from the ledger, running requests, and models that are served now."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal, Protocol

from msgspec import UNSET, Meta, Struct

from fabric_server.admin.parameters import not_found
from fabric_server.admin.servers import Row, ServerQuery, Servers, States
from fabric_server.auth.keys import Key
from fabric_server.dialects import errors
from fabric_server.mesh.views import Question
from fabric_server.nodes.node import Engine
from fabric_server.proxy.request_record import RequestRecord, RequestState
from fabric_server.routing.variants import count_variants
from ledger.records import LedgerEntry, Outcome, UsageRow
from ledger.reports import RequestFilter

log = logging.getLogger("fabric.api")

DAY = 86_400.0
MAX_ROWS = 10_000

Group = Literal["account", "key", "model", "node", "engine", "path", "outcome", "hour", "day"]
Text = Annotated[str, Meta(max_length=256)]
Instant = Annotated[
    str, Meta(max_length=64, description="Unix seconds, or ISO 8601 (UTC when it names no zone).")
]


class RequestQuery(Struct, frozen=True, forbid_unknown_fields=True):
    account: Text | None = None
    key: Annotated[str | None, Meta(description="The id of a key.")] = None
    node: Annotated[str | None, Meta(description="The id of a node.")] = None
    model: Text | None = None
    outcome: Outcome | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    before: (
        Annotated[str, Meta(max_length=300, description="'next' of the previous page.")] | None
    ) = None


class RequestList(Struct, frozen=True):
    data: list[LedgerEntry]
    next: Annotated[
        str | None,
        Meta(description="Give it as 'before' to get the next page; null: there is none."),
    ]


class UsageQuery(Struct, frozen=True, forbid_unknown_fields=True):
    since: Annotated[Instant | None, Meta(description="Default: one day before until.")] = None
    until: Annotated[Instant | None, Meta(description="Exclusive. Default: now.")] = None
    by: Annotated[
        list[Group], Meta(max_length=9, description="Groups to sum by; none: one total.")
    ] = []
    limit: Annotated[int, Meta(ge=1, le=MAX_ROWS)] = MAX_ROWS


class UsageReport(Struct, frozen=True):
    since: float
    until: float
    by: list[Group]
    data: list[UsageRow]
    complete: Annotated[bool, Meta(description="false: rows beyond limit are left out.")]


class VariantView(Struct, frozen=True, kw_only=True):
    """Weights of a model, as far as their engines tell."""

    quantization: str | None
    digest: str | None
    engines: Annotated[int, Meta(description="Number of engines that serve these.")]


class ModelView(Row, frozen=True, kw_only=True):
    name: str
    nodes: int
    slots: Annotated[int, Meta(description="Slots of all reachable engines that serve it.")]
    active: Annotated[int, Meta(description="Slots in use there, by any model.")]
    loaded: Annotated[int, Meta(description="Number of engines that have it in memory.")]
    variants: Annotated[
        list[VariantView],
        Meta(description="The different weights that engines serve under this name."),
    ]


class ModelList(Struct, frozen=True):
    data: list[ModelView]
    servers: States = UNSET


class RunningView(Row, frozen=True, kw_only=True):
    request_id: str
    state: Annotated[
        RequestState,
        Meta(
            description="waiting: for its body or a slot. asked: sent to an engine, no response "
            "byte yet. answering: a part of its response is here."
        ),
    ]
    account: str
    key_id: str
    model: str
    node_id: Annotated[
        str | None,
        Meta(
            description="null: none is asked, or another server is, which has not told yet which "
            "node it has chosen."
        ),
    ]
    engine: str | None
    stream: bool
    attempts: int
    seconds: Annotated[float, Meta(description="Time since it arrived.")]
    bytes_out: int


class RunningList(Struct, frozen=True):
    data: list[RunningView]
    servers: States = UNSET


class ActiveRequests(Protocol):
    def list(self) -> list[RequestRecord]: ...
    def find(self, request_id: str) -> RequestRecord | None: ...


class Store(Protocol):
    async def request(self, request_id: str) -> LedgerEntry | None: ...

    async def requests(
        self,
        filter: RequestFilter,
        *,
        limit: int,
        before: tuple[float, str] | None,
    ) -> list[LedgerEntry]: ...

    async def usage(
        self, since: float, until: float, by: Sequence[str], *, limit: int
    ) -> list[UsageRow]: ...


class Registry(Protocol):
    def models(self, *, here: bool) -> Mapping[str, Sequence[Engine]]: ...


class ReportHandlers:
    """Handlers of ``/api/v1/models``, ``requests…``, ``running`` and ``usage``."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        active: ActiveRequests,
        servers: Servers,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._active = active
        self._registry = registry
        self._clock = clock
        self._models = servers.view("models", ModelView, self._own_models)
        self._running = servers.view("running", RunningView, self._own_running)
        self._cancel = servers.view("cancel", RunningView, self._cancel_own)

    async def list_models(self, query: ServerQuery) -> ModelList:
        """List the models that connected nodes serve now, by name.

        With several servers, a model has a row for each that has nodes for it.
        """
        found = await self._models.gather(query.server)
        return ModelList(sorted(found.marked(), key=lambda row: row.name), found.states)

    async def _own_models(self, question: Question) -> Iterable[ModelView]:
        models = self._registry.models(here=True)
        return (_model(name, models[name]) for name in sorted(models))

    async def list_requests(self, query: RequestQuery) -> RequestList:
        """List requests from the ledger, newest first, as of two seconds ago or later."""
        filter = RequestFilter(
            key_id=query.key,
            node_id=query.node,
            model=query.model,
            outcome=query.outcome,
            account=query.account,
        )
        found = await self._store.requests(
            filter,
            limit=query.limit + 1,
            before=None if query.before is None else _position(query.before),
        )
        data = found[: query.limit]
        last = data[-1] if len(found) > query.limit else None
        return RequestList(data, None if last is None else f"{last.at!r},{last.request_id}")

    async def list_running(self, query: ServerQuery) -> RunningList:
        """List the requests that run now, oldest first."""
        found = await self._running.gather(query.server)
        rows = sorted(found.marked(), key=lambda row: row.seconds, reverse=True)
        return RunningList(rows, found.states)

    async def _own_running(self, question: Question) -> Iterable[RunningView]:
        now = asyncio.get_running_loop().time()
        return (_running(record, now) for record in self._active.list())

    async def cancel_request(self, id: str, by: Key) -> RunningView:
        """Cancel a running request, at whichever server, and stop its engine; show it as it was.

        A stream that has begun ends with an error event, any other request with 403
        `cancelled_by_operator`. 503 `server_silent`: it was not found, but may be at a server that
        has not answered.
        """
        return await self._cancel.find_marked(id, by.id, where="under way on this server")

    async def _cancel_own(self, question: Question) -> Iterable[RunningView]:
        record = self._active.find(question.about)
        if record is None:
            return ()
        view = _running(record, asyncio.get_running_loop().time())
        record.cancel(errors.cancelled())
        log.info("request cancelled", extra={"request": question.about, "by": question.by})
        return (view,)

    async def show_request(self, id: str) -> LedgerEntry:
        """Show one request from the ledger, by the x-request-id of its response."""
        entry = await self._store.request(id)
        if entry is None:
            raise not_found("request", id)
        return entry

    async def usage(self, query: UsageQuery) -> UsageReport:
        """Sum requests, tokens and bytes of requests that arrived in a period: since <= t < until.

        Hours and days are in UTC, and named by their first second.
        """
        until = self._clock() if query.until is None else _instant("until", query.until)
        since = until - DAY if query.since is None else _instant("since", query.since)
        if since > until:
            raise errors.bad_field("since", "since is later than until.")
        by = list(dict.fromkeys(query.by))
        rows = await self._store.usage(since, until, by, limit=query.limit + 1)
        return UsageReport(since, until, by, rows[: query.limit], len(rows) <= query.limit)


def _running(record: RequestRecord, now: float) -> RunningView:
    choice = record.choice
    return RunningView(
        request_id=record.request.id,
        state=record.state,
        account=record.key.account,
        key_id=record.key.id,
        model=record.parsed.model,
        node_id=None if choice is None or not choice.engine_name else choice.node_id,
        engine=None if choice is None else choice.engine_name or None,
        stream=record.parsed.stream,
        attempts=record.attempts,
        seconds=now - record.request.arrived,
        bytes_out=record.request.response.bytes_out,
    )


def _model(name: str, engines: Sequence[Engine]) -> ModelView:
    here = [engine for engine in engines if engine.healthy and engine.node.reachable]
    return ModelView(
        name=name,
        nodes=len({engine.node.id for engine in engines}),
        slots=sum(engine.slots for engine in here),
        active=sum(engine.active for engine in here),
        loaded=sum(bool(engine.models[name].loaded) for engine in engines),
        variants=[
            VariantView(
                quantization=one.quantization or None, digest=one.digest or None, engines=count
            )
            for one, count in count_variants(engine.models[name] for engine in engines)
        ],
    )


def _position(text: str) -> tuple[float, str]:
    """Parse the ``next`` of a page: a time and a request id."""
    at, comma, request_id = text.partition(",")
    try:
        if comma and request_id:
            return _finite(at), request_id
    except ValueError:
        pass
    raise errors.bad_field("before", "before is not the 'next' of a previous page.")


def _instant(name: str, text: str) -> float:
    """Parse a time, given as Unix seconds or ISO 8601, into Unix seconds."""
    try:
        return _finite(text)
    except ValueError:
        pass
    try:
        # In a query, '+' arrives as a space.
        moment = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
    except ValueError:
        text = f"{name} is neither Unix seconds nor a time such as 2026-01-31T12:00:00Z."
        raise errors.bad_field(name, text) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
