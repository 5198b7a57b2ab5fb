"""Fair queue of the requests for one model.  Pure: ``now`` is passed in.

The next request is that of the key with the fewest slots (``shares``): at the engine that has one
free, then at all.  Among keys that hold as many, high priority goes first, a few times in a row;
then the key whose last turn is longest ago.  Low priority comes behind all others until it has
waited ``AGEING_SECONDS``.  Within a key, requests are served by priority, raised by one for every
``AGEING_SECONDS``, and in order of arrival.

    rings by priority, the longest unserved key first       a key's requests, the oldest first
    high
    medium      alice  turn 7                               a1 a4 a5
                bob    turn 9                               b1
    low         alice  turn 8                               a2

The rings are heaps, and a key's requests are ordered dicts: adding and removing cost the same
however long the queue is.  Finding the next request mostly takes one look at each ring, and at most
``MAX_LOOKS`` at keys that hold slots already.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from itertools import chain
from typing import Generic, Protocol, TypeVar

from fabric_server.nodes.held_slots import HeldSlots
from fabric_server.routing.criteria import Priority, Requirements
from fabric_server.routing.shares import ORDINARY, Shares, Standing, Turns

AGEING_SECONDS = 15.0
"""A quarter of the default ``queue_timeout``: so long requests of low priority let others pass."""
MAX_LOOKS = 64
"""Keys of a ring that are compared: of more, those whose last turn is long ago, which each key's
comes to be."""
_POSITIONS_SECONDS = 1.0
"""Positions are computed for all requests at once, and reused so long while the queue is
unchanged."""
_EXACT = 32
"""Up to so many requests have exact positions whatever changes."""
_SECONDS_PER_REQUEST = 0.005
"""Seconds, for each request of a longer queue, for which positions are reused, less those that were
served since: computing them takes some 10 µs for each, so a five-hundredth of the time, however
long the queue is and however often clients ask."""


class Waiter(Protocol):
    """A queued request; its hash is its identity."""

    @property
    def requirements(self) -> Requirements: ...
    @property
    def since(self) -> float: ...


W = TypeVar("W", bound=Waiter)

Rank = tuple[bool, Standing, int, float]
"""Whether it lets others pass, the key's standing and turn, and its arrival; of two requests, the
one with the smaller rank is served first."""


def is_high(rank: Rank) -> bool:
    """Return whether this is the rank of a request of high priority, or of one in its place."""
    return rank[1][2] != ORDINARY


def lets_others_pass(waiter: Waiter, now: float) -> bool:
    """Return whether the request is of low priority, and has not waited long."""
    return waiter.requirements.priority == Priority.LOW and now - waiter.since < AGEING_SECONDS


class _Flow(Generic[W]):
    """The waiting requests of one key and priority."""

    __slots__ = ("turn", "waiters")

    def __init__(self, turn: int) -> None:
        self.turn = turn
        self.waiters: OrderedDict[W, None] = OrderedDict()

    def first(self, fits: Callable[[W], bool]) -> W | None:
        return next(filter(fits, self.waiters), None)


class _Ring(Generic[W]):
    """The keys that wait with one priority, the one whose last turn is longest ago first."""

    __slots__ = ("_heap", "flows")

    def __init__(self) -> None:
        self.flows: dict[str, _Flow[W]] = {}
        self._heap: list[tuple[int, str]] = []
        """Turns and keys; some are those of flows that are gone, or that had a turn since."""

    def add(self, key_id: str, turn: int) -> _Flow[W]:
        flow = self.flows[key_id] = _Flow[W](turn)
        heap = self._heap
        if len(heap) > 2 * len(self.flows) + MAX_LOOKS:
            heap[:] = [(one.turn, name) for name, one in self.flows.items()]
            heapify(heap)
        else:
            heappush(heap, (turn, key_id))
        return flow

    def in_turn(self, last: Callable[[str], int]) -> Iterator[tuple[str, _Flow[W]]]:
        """Yield the first key, and then all others, of which the first ones come early.

        ``last`` gives the number of a key's last turn, in whatever queue.
        """
        heap, flows = self._heap, self.flows
        while heap:
            turn, key_id = heap[0]
            flow = flows.get(key_id)
            if flow is None or flow.turn != turn:
                heappop(heap)
            elif (newest := last(key_id)) > turn:
                flow.turn = newest
                heapreplace(heap, (newest, key_id))
            else:
                break
        for turn, key_id in heap:
            flow = flows.get(key_id)
            if flow is not None and flow.turn == turn:
                yield key_id, flow


class FairQueue(Generic[W]):
    """All requests that wait for one model."""

    def __init__(self, turns: Turns) -> None:
        """Queues whose ranks are compared share ``turns``."""
        self._turns = turns
        self._rings = tuple(_Ring[W]() for _ in Priority)
        self._all: tuple[OrderedDict[W, None], ...] = tuple(OrderedDict() for _ in Priority)
        self._queued: dict[str, int] = {}
        """Numbers of waiting requests by key."""
        self._lengths: Counter[int] = Counter()
        """How many keys have so many."""
        self._positions: dict[W, int] = {}
        self._positions_at = -math.inf
        self._changed = False
        """Requests were added or removed since."""
        self._served = 0
        """Requests that were served since."""

    def __len__(self) -> int:
        return sum(map(len, self._all))

    def __iter__(self) -> Iterator[W]:
        return chain.from_iterable(self._all)

    def __contains__(self, waiter: W) -> bool:
        return waiter in self._all[waiter.requirements.priority]

    @property
    def by_priority(self) -> tuple[int, ...]:
        return tuple(map(len, self._all))

    @property
    def oldest(self) -> W | None:
        heads = [next(iter(queue)) for queue in self._all if queue]
        return min(heads, key=lambda waiter: waiter.since, default=None)

    @property
    def keys(self) -> int:
        return len(self._queued)

    def queued(self, key_id: str) -> int:
        """Return how many requests of this key wait."""
        return self._queued.get(key_id, 0)

    def ahead(self, key_id: str) -> int:
        """Return how many requests would be served before one more of this key.

        The figure holds if all are of one priority, and no key holds more slots than another.
        """
        queued = self.queued(key_id)
        others = sum(min(queued + 1, length) * keys for length, keys in self._lengths.items())
        return queued + others - min(queued + 1, queued)

    # ── adding and removing ───────────────────────────────────────────────────────────────────

    def add(self, waiter: W, turn: int | None = None) -> None:
        """Append; call in order of ``since``.  A key that waited for none has this ``turn``, or a
        new one."""
        key_id, priority = waiter.requirements.key_id, waiter.requirements.priority
        ring = self._rings[priority]
        flow = ring.flows.get(key_id)
        if flow is None:
            flow = ring.add(key_id, self._turns.next() if turn is None else turn)
        flow.waiters[waiter] = None
        self._all[priority][waiter] = None
        self._set_queued(key_id, self.queued(key_id) + 1)

    def remove(self, waiter: W) -> None:
        """Remove a request that is not served.  Raises ``KeyError`` when it is not queued."""
        key_id, priority = waiter.requirements.key_id, waiter.requirements.priority
        del self._all[priority][waiter]
        self._positions.pop(waiter, None)
        flows = self._rings[priority].flows
        del flows[key_id].waiters[waiter]
        if not flows[key_id].waiters:
            del flows[key_id]
        self._set_queued(key_id, self._queued[key_id] - 1)

    def _set_queued(self, key_id: str, queued: int) -> None:
        lengths, before = self._lengths, self._queued.pop(key_id, 0)
        if before:
            lengths[before] -= 1
            if not lengths[before]:
                del lengths[before]
        if queued:
            self._queued[key_id] = queued
            lengths[queued] += 1
        self._changed = True

    def serve(self, waiter: W) -> None:
        """Remove a request that is served, and end its key's turn."""
        self.remove(waiter)
        self._served += 1
        self._turns.serve(waiter.requirements.key_id)

    # ── order of service ──────────────────────────────────────────────────────────────────────

    def first(self, now: float, fits: Callable[[W], bool], shares: Shares) -> tuple[Rank, W] | None:
        """Return the next request that ``fits``, with its rank; ``serve`` it afterwards."""
        best: tuple[Rank, W] | None = None
        for priority in Priority:
            found = self._first_of(priority, now, fits, shares)
            if found is not None and (best is None or found[0] < best[0]):
                best = found
        return best

    def _first_of(
        self, priority: Priority, now: float, fits: Callable[[W], bool], shares: Shares
    ) -> tuple[Rank, W] | None:
        last = self._turns.last
        best: tuple[Rank, W] | None = None
        looks = MAX_LOOKS
        for key_id, flow in self._rings[priority].in_turn(last):
            if shares.is_full(key_id) or (waiter := flow.first(fits)) is None:
                continue
            waiter = self._own_first(key_id, priority, waiter, now, fits)
            standing = shares.standing(key_id, priority)
            passes = lets_others_pass(waiter, now)
            rank = passes, standing, max(flow.turn, last(key_id)), waiter.since
            if best is None or rank < best[0]:
                best = rank, waiter
            looks -= 1
            if not looks or not (passes or standing[0] or standing[1]):
                break  # nobody of this ring holds fewer slots, and has waited longer for a turn
        return best

    def _own_first(
        self, key_id: str, priority: Priority, waiter: W, now: float, fits: Callable[[W], bool]
    ) -> W:
        """Return the request that a key has served instead of ``waiter``: an older one of lower
        priority, raised by one for every ``AGEING_SECONDS`` of waiting."""
        for lower in range(priority + 1, len(Priority)):
            flow = self._rings[lower].flows.get(key_id)
            other = None if flow is None else flow.first(fits)
            if other is None or other.since >= waiter.since:
                continue
            if now - other.since >= AGEING_SECONDS * (lower - priority):
                waiter = other
        return waiter

    def order(self, now: float) -> list[W]:
        """Return all requests in the order of service.

        It is the real one if no key holds a slot, and every free slot suits every request.
        """
        copy, order = FairQueue[W](Turns(self._turns.next())), list[W]()
        last = self._turns.last
        for ring in self._rings:
            turns = {key_id: max(flow.turn, last(key_id)) for key_id, flow in ring.flows.items()}
            for key_id, turn in turns.items():
                for waiter in ring.flows[key_id].waiters:
                    copy.add(waiter, turn)
        nothing = HeldSlots()
        shares = Shares(nothing, nothing)
        while (found := copy.first(now, lambda _: True, shares)) is not None:
            waiter = found[1]
            copy.serve(waiter)
            nothing.serve(is_high(found[0]))
            order.append(waiter)
        return order

    def position(self, waiter: W, now: float) -> int:
        """Return the request's position; 1 is next.  In a long queue it may be some seconds old."""
        length, reused = len(self), _POSITIONS_SECONDS
        if self._changed:
            reused = 0.0 if length <= _EXACT else _SECONDS_PER_REQUEST * length
        if not 0 <= now - self._positions_at < reused:
            order = self.order(now)
            self._positions = {one: place for place, one in enumerate(order, start=1)}
            self._positions_at = now
            self._changed, self._served = False, 0
        position = self._positions.get(waiter, length + self._served)
        return min(max(position - self._served, 1), length)
