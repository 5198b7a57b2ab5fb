"""Ejection: which engines of a model get no requests because their circuit breakers are open.

Not more than half of the engines that could serve the model at a path are ejected, so never its
only one; the worst of them stay out, and the others are asked as if nothing had happened.

    avoided, by how badly they fail    a  b  c | d  e  f  g
                                      let in     ejected, as many as half of the able engines

Both lists are kept by difference: a breaker that changes moves its engine, and an engine that comes
or goes moves the border by one at most.  Time opens no breaker and closes none, but lets probes
through; whoever asks passes the time.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from heapq import heappop, heappush
from itertools import count, islice
from typing import Generic, TypeVar

from fabric_server.nodes.standing import Listed

E = TypeVar("E", bound=Listed)

_Entry = tuple[tuple[int, float], int, E]
"""How badly an engine fails, and a number that tells entries apart."""


class Ejection(Generic[E]):
    """The engines of one model that are ejected for one path.  ``now`` is in event-loop seconds."""

    __slots__ = (
        "_avoided",
        "_changed",
        "_due",
        "_entries",
        "_first",
        "_model",
        "_numbers",
        "_path",
        "_places",
        "_troubled",
        "able",
        "ejected",
        "room",
    )

    def __init__(self, model: str, path: str, able: int, troubled: AbstractSet[E]) -> None:
        """``troubled`` has the engines with breakers that are not closed, now and later."""
        self._model, self._path = model, path
        self.able = able
        """How many engines could serve the model at this path."""
        self.ejected: set[E] = set()
        self.room: list[E] = []
        """Troubled engines that have room, and are not ejected."""
        self._places: dict[E, int] = {}
        """The places of engines in that list."""
        self._troubled = troubled
        self._changed = set(troubled)
        self._avoided: list[_Entry[E]] = []
        """Engines that could serve it, but for their breakers; the worst is the last."""
        self._first = 0
        """Place in ``_avoided`` from which on they are ejected."""
        self._entries: dict[E, tuple[_Entry[E], float]] = {}
        """Their entries, and when their breakers let a request through."""
        self._due: list[tuple[float, int, E]] = []
        """A heap of the times at which breakers let a request through."""
        self._numbers = count()

    def change(self, engine: E) -> None:
        """Note that an engine, which is or was troubled, has changed."""
        self._changed.add(engine)

    def let_in(self) -> Iterator[E]:
        """Yield the engines that are asked although their breakers are open."""
        return (engine for _, _, engine in islice(self._avoided, self._first))

    def settle(self, now: float) -> None:
        """Bring ``ejected`` and ``room`` up to date."""
        due, changed, avoided = self._due, self._changed, self._avoided
        while due and due[0][0] <= now:
            changed.add(heappop(due)[2])
        for engine in changed:
            self._judge(engine, now)
        first = max(0, len(avoided) - self.able // 2)
        if first == self._first and not changed:
            return
        while self._first != first:
            if self._first < first:
                engine = avoided[self._first][2]
                self.ejected.discard(engine)
                self._first += 1
            else:
                self._first -= 1
                engine = avoided[self._first][2]
                self.ejected.add(engine)
            changed.add(engine)
        for engine in changed:
            self._list(engine)
        changed.clear()

    def _judge(self, engine: E, now: float) -> None:
        """Put an engine where it belongs among those that are avoided."""
        avoided, before = self._avoided, self._entries.pop(engine, None)
        if before is not None:
            place = bisect_left(avoided, before[0])
            del avoided[place]
            self._first -= place < self._first
            self.ejected.discard(engine)
        if engine not in self._troubled or not engine.is_able(self._path):
            return
        breakers = list(engine.breakers.of(self._model, self._path))
        allows_at = max((one.allows_at for one in breakers), default=now)
        if allows_at <= now:
            return
        number = next(self._numbers) if before is None else before[0][1]
        entry = max(one.badness for one in breakers), number, engine
        self._entries[engine] = entry, allows_at
        insort(avoided, entry)
        if bisect_left(avoided, entry) < self._first:
            self._first += 1
        else:
            self.ejected.add(engine)
        if before is None or before[1] != allows_at:
            heappush(self._due, (allows_at, next(self._numbers), engine))

    def _list(self, engine: E) -> None:
        """Put an engine on the list of those with room, or take it off."""
        room, places = self.room, self._places
        wanted = (
            engine.standing.has_room and engine in self._troubled and engine not in self.ejected
        )
        if wanted and engine not in places:
            places[engine] = len(room)
            room.append(engine)
        elif not wanted and engine in places:
            place, last = places.pop(engine), room.pop()
            if last is not engine:
                room[place] = last
                places[last] = place
