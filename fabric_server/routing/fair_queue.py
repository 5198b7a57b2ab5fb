"""Fair priority queue of the requests for one model.  Pure: ``now`` is passed in.

Requests are ordered first by level: the priority, raised by one for every ``AGEING_SECONDS`` of
waiting, so that low priorities are served too.  Within a level the keys take turns (round robin):
the key whose last round is longest ago is next, however many requests each has waiting.  Within a
key, requests are served in order of arrival.

    flows, the longest unserved first     queues of a flow by priority, the oldest first
    alice   round 7                       high    ·
                                          medium  a1 a4 a5
                                          low     a2
    bob     round 9                       …

Both are ordered dicts: adding and removing cost the same however long the queue is.  The next
request is mostly found in the first flow; finding it takes at most one look at each flow.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from fabric_server.routing.criteria import Priority, Requirements

AGEING_SECONDS = 15.0
"""A quarter of the default ``queue_timeout``: the lowest level is the highest after half of it."""
_POSITIONS_SECONDS = 1.0
"""Positions are computed for all requests at once, and reused so long while the queue is
unchanged."""


class Waiter(Protocol):
    """A queued request; its hash is its identity."""

    @property
    def requirements(self) -> Requirements: ...
    @property
    def since(self) -> float: ...


W = TypeVar("W", bound=Waiter)
_ByPriority = tuple[OrderedDict[W, None], ...]
"""Waiters by priority; in each the oldest first."""

Rank = tuple[int, int]
"""Level and round; of the heads of two queues, the smaller rank is served first."""


def present_level(waiter: Waiter, now: float) -> int:
    """Return the waiter's level with ageing.

    Ageing never lifts it above the highest level: among the oldest, the key with the most requests
    would be served most.
    """
    return max(0, waiter.requirements.priority - int((now - waiter.since) / AGEING_SECONDS))


def _by_priority() -> _ByPriority[W]:
    return tuple(OrderedDict() for _ in Priority)


class _Flow(Generic[W]):
    """The waiting requests of one key."""

    __slots__ = ("queues", "round")

    def __init__(self, round: int) -> None:
        self.round = round
        self.queues: _ByPriority[W] = _by_priority()

    def __len__(self) -> int:
        return sum(map(len, self.queues))

    def first(self, now: float, fits: Callable[[W], bool]) -> tuple[int, W] | None:
        best: tuple[int, W] | None = None
        for queue in self.queues:
            for waiter in queue:
                if fits(waiter):
                    level = present_level(waiter, now)
                    if best is None or (level, waiter.since) < (best[0], best[1].since):
                        best = level, waiter
                    break
        return best

    def by_level(self, now: float) -> dict[int, deque[W]]:
        waiters = sorted((w for queue in self.queues for w in queue), key=lambda one: one.since)
        levels: dict[int, deque[W]] = defaultdict(deque)
        for waiter in waiters:
            levels[present_level(waiter, now)].append(waiter)
        return levels


class FairQueue(Generic[W]):
    """All requests that wait for one model."""

    def __init__(self, rounds: Iterator[int]) -> None:
        """``rounds`` counts upwards; queues whose ranks are compared share it."""
        self._rounds = rounds
        self._flows: OrderedDict[str, _Flow[W]] = OrderedDict()
        self._all: _ByPriority[W] = _by_priority()
        self._positions: dict[W, int] | None = None
        self._positions_at = 0.0

    def __len__(self) -> int:
        return sum(map(len, self._all))

    def __contains__(self, waiter: W) -> bool:
        return waiter in self._all[waiter.requirements.priority]

    @property
    def by_priority(self) -> tuple[int, ...]:
        return tuple(map(len, self._all))

    @property
    def oldest(self) -> W | None:
        return min(self._heads(), key=lambda waiter: waiter.since, default=None)

    def _heads(self) -> list[W]:
        return [next(iter(queue)) for queue in self._all if queue]

    @property
    def keys(self) -> int:
        return len(self._flows)

    def queued(self, key_id: str) -> int:
        """Return how many requests of this key wait."""
        flow = self._flows.get(key_id)
        return 0 if flow is None else len(flow)

    def ahead(self, key_id: str) -> int:
        """Return how many requests would be served before one more of this key.

        The figure holds if all are of one level.
        """
        queued = self.queued(key_id)
        others = (len(flow) for name, flow in self._flows.items() if name != key_id)
        return queued + sum(min(queued + 1, length) for length in others)

    # ── adding and removing ───────────────────────────────────────────────────────────────────

    def add(self, waiter: W) -> None:
        """Append; call in order of ``since``."""
        key_id = waiter.requirements.key_id
        flow = self._flows.get(key_id)
        if flow is None:
            flow = self._flows[key_id] = _Flow(next(self._rounds))
        flow.queues[waiter.requirements.priority][waiter] = None
        self._all[waiter.requirements.priority][waiter] = None
        self._positions = None

    def remove(self, waiter: W) -> None:
        """Remove a request that is not served.  Raises ``KeyError`` when it is not queued."""
        key_id = waiter.requirements.key_id
        del self._all[waiter.requirements.priority][waiter]
        flow = self._flows[key_id]
        del flow.queues[waiter.requirements.priority][waiter]
        if not len(flow):
            del self._flows[key_id]
        self._positions = None

    def serve(self, waiter: W) -> None:
        """Remove a request that is served, and end its key's round."""
        self.remove(waiter)
        key_id = waiter.requirements.key_id
        flow = self._flows.get(key_id)
        if flow is not None:
            flow.round = next(self._rounds)
            self._flows.move_to_end(key_id)

    # ── order of service ──────────────────────────────────────────────────────────────────────

    def first(self, now: float, fits: Callable[[W], bool]) -> tuple[Rank, W] | None:
        """Return the next request that ``fits``, with its rank; ``serve`` it afterwards."""
        best: tuple[Rank, W] | None = None
        highest = min((present_level(one, now) for one in self._heads()), default=0)
        for flow in self._flows.values():
            found = flow.first(now, fits)
            if found is not None and (best is None or found[0] < best[0][0]):
                best = (found[0], flow.round), found[1]
                if found[0] == highest:
                    break  # no level is above it, and it is this key's turn
        return best

    def order(self, now: float) -> list[W]:
        """Return all requests in the order of service, if every free slot suited every request."""
        flows = [flow.by_level(now) for flow in self._flows.values()]
        order: list[W] = []
        for level in range(len(Priority)):
            ring = deque(place for place, levels in enumerate(flows) if levels.get(level))
            served: dict[int, None] = {}
            while ring:
                place = ring.popleft()
                own = flows[place][level]
                order.append(own.popleft())
                if own:
                    ring.append(place)
                else:
                    served[place] = None
            flows = [flow for place, flow in enumerate(flows) if place not in served] + [
                flows[place] for place in served
            ]
        return order

    def position(self, waiter: W, now: float) -> int:
        """Return the request's position; 1 is next."""
        if self._positions is None or not 0 <= now - self._positions_at < _POSITIONS_SECONDS:
            order = self.order(now)
            self._positions = {one: place for place, one in enumerate(order, start=1)}
            self._positions_at = now
        return self._positions[waiter]
