"""Requests that wait for a free slot now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Protocol

from msgspec import UNSET, Meta, Struct

from fabric_server.admin.servers import Row, ServerQuery, Servers, States
from fabric_server.mesh.views import Question
from fabric_server.routing.criteria import Priority
from fabric_server.routing.queues import QueuePosition, QueueStats
from fabric_server.storage.rows import PriorityName


class Waiting(Struct, frozen=True):
    """Numbers of queued requests by their priority."""

    high: int
    medium: int
    low: int


class QueueView(Row, frozen=True, kw_only=True):
    model: Annotated[str, Meta(description="The name that the requests use.")]
    length: int
    by_priority: Waiting
    keys: Annotated[int, Meta(description="How many different keys these requests have.")]
    oldest_seconds: Annotated[float, Meta(description="How long the oldest request has waited.")]
    slots: Annotated[int, Meta(description="Slots of all engines that may serve the model.")]
    service_seconds: Annotated[float, Meta(description="How long a response takes, on average.")]
    estimated_seconds: Annotated[
        float | None,
        Meta(description="Estimated wait of a request that arrives now, at the end of the queue."),
    ]


class Queue(Struct, frozen=True):
    data: list[QueueView]
    servers: States = UNSET


class PlaceView(Row, frozen=True, kw_only=True):
    request_id: str
    model: str
    key_id: str
    priority: PriorityName
    position: Annotated[int, Meta(description="Position in the queue; 1 is next.")]
    waited_seconds: float
    estimated_seconds: Annotated[
        float | None, Meta(description="Estimated wait until it gets a slot.")
    ]


class Admission(Protocol):
    def queues(self) -> Sequence[QueueStats]: ...
    def place(self, request_id: str) -> QueuePosition | None: ...


class QueueHandlers:
    """Handlers of ``/api/v1/queue…``."""

    def __init__(self, admission: Admission, servers: Servers) -> None:
        self._admission = admission
        self._queues = servers.view("queue", QueueView, self._own_queues)
        self._places = servers.view("place", PlaceView, self._own_place)

    async def show_queue(self, query: ServerQuery) -> Queue:
        """List the models that requests wait for, and the length of each queue.

        Each server has a queue of its own; a request waits in that where a slot is expected first.
        """
        found = await self._queues.gather(query.server)
        return Queue(sorted(found.marked(), key=lambda row: row.model), found.states)

    async def show_place(self, id: str) -> PlaceView:
        """Show the position of one request in its queue, by the x-request-id of its response."""
        return await self._places.find_marked(id, where="in a queue of this server")

    async def _own_queues(self, question: Question) -> Iterable[QueueView]:
        return map(_queue_view, self._admission.queues())

    async def _own_place(self, question: Question) -> Iterable[PlaceView]:
        place = self._admission.place(question.about)
        return () if place is None else (_place_view(place),)


_NAMES: dict[Priority, PriorityName] = {
    Priority.HIGH: "high",
    Priority.MEDIUM: "medium",
    Priority.LOW: "low",
}


def _queue_view(figures: QueueStats) -> QueueView:
    return QueueView(
        model=figures.model,
        length=figures.length,
        by_priority=Waiting(*figures.by_priority),
        keys=figures.keys,
        oldest_seconds=figures.oldest,
        slots=figures.slots,
        service_seconds=figures.service,
        estimated_seconds=figures.estimate,
    )


def _place_view(place: QueuePosition) -> PlaceView:
    waiter = place.waiter
    return PlaceView(
        request_id=waiter.request_id,
        model=waiter.requirements.model,
        key_id=waiter.requirements.key_id,
        priority=_NAMES[waiter.requirements.priority],
        position=place.position,
        waited_seconds=place.waited,
        estimated_seconds=place.estimate,
    )
