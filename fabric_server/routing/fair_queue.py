"""Who is next among those that wait for one model: a value, which is told the time.

First by class: a request's priority, raised by one for every ``AGEING_SECONDS`` that it has waited,
so that the lowest is served too.  Within a class keys take turns: whoever's turn is longest ago is
next, however many each has waiting.  Within a key, who came first.

    shares, whose turn it is first     lanes of a share, who came first first
    alice   turn 7                     high  ·
                                       medium  a1 a4 a5
                                       low  a2
    bob     turn 9                     …

Both are ordered dicts: joining and leaving cost the same however long the line is.  Who is next is
mostly found at whose turn it is, and costs at the most as much as there are keys.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from fabric_server.routing.criteria import Priority, Requirements

AGEING_SECONDS = 15.0
"""A quarter of the default ``queue_timeout``: the lowest becomes the highest in half of it."""
_AS_OF_SECONDS = 1.0
"""Positions are worked out for everybody at once, and hold so long while nobody comes or goes."""


class Waiter(Protocol):
    """Whoever waits; its hash is its identity."""

    @property
    def requirements(self) -> Requirements: ...
    @property
    def since(self) -> float: ...


W = TypeVar("W", bound=Waiter)
_Lanes = tuple[OrderedDict[W, None], ...]
"""By priority; in each who came first first."""

Rank = tuple[int, int]
"""Class and turn: of two lines' first, the smaller goes first."""


def present_class(waiter: Waiter, now: float) -> int:
    """Not above the highest: there keys take turns, or whoever has most waiting would be served
    most."""
    return max(0, waiter.requirements.priority - int((now - waiter.since) / AGEING_SECONDS))


def _lanes() -> _Lanes[W]:
    return tuple(OrderedDict() for _ in Priority)


class _Share(Generic[W]):
    """What one key has waiting in one line."""

    __slots__ = ("lanes", "turn")

    def __init__(self, turn: int) -> None:
        self.turn = turn
        self.lanes: _Lanes[W] = _lanes()

    def __len__(self) -> int:
        return sum(map(len, self.lanes))

    def first(self, now: float, fits: Callable[[W], bool]) -> tuple[int, W] | None:
        best: tuple[int, W] | None = None
        for lane in self.lanes:
            for waiter in lane:
                if fits(waiter):
                    its = present_class(waiter, now)
                    if best is None or (its, waiter.since) < (best[0], best[1].since):
                        best = its, waiter
                    break
        return best

    def by_class(self, now: float) -> dict[int, deque[W]]:
        waiters = sorted((w for lane in self.lanes for w in lane), key=lambda waiter: waiter.since)
        classes: dict[int, deque[W]] = defaultdict(deque)
        for waiter in waiters:
            classes[present_class(waiter, now)].append(waiter)
        return classes


class FairQueue(Generic[W]):
    """Everybody who waits for one model."""

    def __init__(self, turns: Iterator[int]) -> None:
        """``turns`` numbers turns, upwards; lines that are compared have it in common."""
        self._turns = turns
        self._shares: OrderedDict[str, _Share[W]] = OrderedDict()
        self._all: _Lanes[W] = _lanes()
        self._positions: dict[W, int] | None = None
        self._as_of = 0.0

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
        return [next(iter(lane)) for lane in self._all if lane]

    @property
    def keys(self) -> int:
        return len(self._shares)

    def held(self, key_id: str) -> int:
        """How many of this key wait."""
        share = self._shares.get(key_id)
        return 0 if share is None else len(share)

    def ahead(self, key_id: str) -> int:
        """How many would go before one more of this key, if all were of one class."""
        held = self.held(key_id)
        others = (len(share) for name, share in self._shares.items() if name != key_id)
        return held + sum(min(held + 1, its) for its in others)

    # ── coming and going ──────────────────────────────────────────────────────────────────────

    def join(self, waiter: W) -> None:
        """Whoever joins later is not older."""
        key_id = waiter.requirements.key_id
        share = self._shares.get(key_id)
        if share is None:
            share = self._shares[key_id] = _Share(next(self._turns))
        share.lanes[waiter.requirements.priority][waiter] = None
        self._all[waiter.requirements.priority][waiter] = None
        self._positions = None

    def remove(self, waiter: W) -> None:
        """It goes unserved.  Raises KeyError when it is not here."""
        key_id = waiter.requirements.key_id
        del self._all[waiter.requirements.priority][waiter]
        share = self._shares[key_id]
        del share.lanes[waiter.requirements.priority][waiter]
        if not len(share):
            del self._shares[key_id]
        self._positions = None

    def take(self, waiter: W) -> None:
        """It is served, and its key has had its turn."""
        self.remove(waiter)
        key_id = waiter.requirements.key_id
        share = self._shares.get(key_id)
        if share is not None:
            share.turn = next(self._turns)
            self._shares.move_to_end(key_id)

    # ── who is next ───────────────────────────────────────────────────────────────────────────

    def first(self, now: float, fits: Callable[[W], bool]) -> tuple[Rank, W] | None:
        """The next of those that ``fits`` is true of; ``take`` it."""
        best: tuple[Rank, W] | None = None
        highest = min((present_class(one, now) for one in self._heads()), default=0)
        for share in self._shares.values():
            found = share.first(now, fits)
            if found is not None and (best is None or found[0] < best[0][0]):
                best = (found[0], share.turn), found[1]
                if found[0] == highest:
                    break  # nobody is above it, and it is this key's turn
        return best

    def order(self, now: float) -> list[W]:
        """All, as they would be served now if whatever came free suited everybody."""
        shares = [share.by_class(now) for share in self._shares.values()]
        order: list[W] = []
        for its in range(len(Priority)):
            ring = deque(place for place, classes in enumerate(shares) if classes.get(its))
            served: dict[int, None] = {}
            while ring:
                place = ring.popleft()
                mine = shares[place][its]
                order.append(mine.popleft())
                if mine:
                    ring.append(place)
                else:
                    served[place] = None
            shares = [share for place, share in enumerate(shares) if place not in served] + [
                shares[place] for place in served
            ]
        return order

    def position(self, waiter: W, now: float) -> int:
        """1 is next."""
        if self._positions is None or not 0 <= now - self._as_of < _AS_OF_SECONDS:
            order = self.order(now)
            self._positions = {one: place for place, one in enumerate(order, start=1)}
            self._as_of = now
        return self._positions[waiter]
