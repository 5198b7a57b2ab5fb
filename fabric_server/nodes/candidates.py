"""Candidates: the engines that serve one model, sorted by what routing has to look at.

    with room | full | without a tunnel | resting | troubled | of no use
              ^ends[0]                                       ^ends[5 - 1]

The engines are one list, in which each segment follows the other; an engine that changes is swapped
over the borders between its old segment and its new one.  So all that a choice looks at is kept by
difference, and costs the same however many engines there are.  A change costs an engine one move
for each of its models that many others serve.

A few engines are not sorted: whoever looks for one can look at all of them.  So what is found in
these lists is always checked again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Generic, TypeVar, overload

from fabric_server.nodes.ejection import Ejection
from fabric_server.nodes.offers import Card, Offer
from fabric_server.nodes.standing import (
    NO_USE,
    NOTHING,
    RESTING,
    ROOM,
    TROUBLED,
    Listed,
    Standing,
)

E = TypeVar("E", bound=Listed)

UNSORTED = 8
"""Up to so many engines are not sorted, while all their circuit breakers are closed."""

ENOUGH = 16
"""Engines that suit, after which a sample looks at no more."""


class Candidates(Sequence[E]):
    """The engines that serve one model, in no order; what is asked for comes early."""

    __slots__ = ("_engines", "_segments", "model")

    def __init__(self, model: str) -> None:
        self.model = model
        self._engines: list[E] = []
        self._segments: Segments[E] | None = None
        """None while they are not sorted."""

    def __len__(self) -> int:
        return len(self._engines)

    def __iter__(self) -> Iterator[E]:
        return iter(self._engines)

    @overload
    def __getitem__(self, index: int) -> E: ...
    @overload
    def __getitem__(self, index: slice) -> list[E]: ...
    def __getitem__(self, index: int | slice) -> E | list[E]:
        return self._engines[index]

    def __eq__(self, other: object) -> bool:
        """Candidates are equal to any sequence of the same engines, as sequences are."""
        return isinstance(other, Sequence) and [*self] == [*other]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Candidates {self.model} {len(self)}>"

    # ── queries ───────────────────────────────────────────────────────────────────────────────

    def with_room(self, now: float, path: str) -> tuple[list[E], int, list[E]]:
        """Return a list, how many of its first engines may have room, and others that may.

        Of those that have room and are not ejected, none is missing.
        """
        segments = self._segments
        if segments is None:
            return self._engines, len(self._engines), _NONE
        if not segments.troubled:
            return self._engines, segments.ends[ROOM], _NONE
        return self._engines, segments.ends[ROOM], segments.ejection(path, now).room

    @property
    def offers(self) -> list[Offer]:
        """Return the engines' offers of the model, in the order of ``with_room``."""
        if self._segments is None:
            return [engine.offers[self.model] for engine in self._engines]
        return self._segments.offers

    def serving(self, now: float, path: str, last: int = RESTING) -> Iterator[E]:
        """Yield the engines up to this segment, and the troubled ones that are not ejected.

        Others may be among them, and some come twice.
        """
        segments = self._segments
        if segments is None:
            return iter(self._engines)
        found = islice(self._engines, segments.ends[last])
        if not segments.troubled:
            return found
        ejection = segments.ejection(path, now)
        troubled = self.segment(TROUBLED)
        others = (engine for engine in troubled if engine not in ejection.ejected)
        return chain(found, ejection.let_in(), others)

    def up_to(self, last: int) -> Iterator[E]:
        """Yield the engines up to this segment, and the troubled ones, ejected or not.

        Others may be among them.
        """
        segments = self._segments
        if segments is None:
            return iter(self._engines)
        found = islice(self._engines, segments.ends[last])
        if not segments.troubled:
            return found
        return chain(found, self.segment(TROUBLED))

    def segment(self, segment: int) -> Iterator[E]:
        """Yield the engines of one segment; others may be among them."""
        segments = self._segments
        if segments is None:
            return iter(self._engines)
        return islice(self._engines, segments.ends[segment - 1], segments.ends[segment])

    def ejected(self, now: float, path: str) -> set[E]:
        """Return the engines that get no requests for this path, because they fail."""
        segments = self._segments
        if segments is None or not segments.troubled:
            return set()
        return segments.ejection(path, now).ejected

    @property
    def slots(self) -> int:
        """Return the slots of the engines that may serve."""
        if self._segments is None:
            return sum(engine.slots for engine in self._engines if engine.may_serve)
        return self._segments.slots

    def cards(self) -> Iterable[Card]:
        """Return the hints in the reports of the model, each that differs once or more."""
        if self._segments is None:
            return [engine.offers[self.model].card for engine in self._engines]
        return self._segments.cards

    def all_support(self, path: str) -> bool:
        """Return whether all engines that could serve now do so at this path, as far as is known
        without looking at each."""
        return not path or (self._segments is not None and self._segments.all_support(path))

    def sample(self, most: int, suits: Callable[[E], bool]) -> tuple[list[E], int]:
        """Return some engines that suit, from all segments alike, and how many were looked at.

        ``most`` are looked at; more where few of them suit, and all where hardly any does.
        """
        engines, found, looked_at = self._engines, list[E](), 0
        step = -(-len(engines) // most)
        for first in range(step):
            part = engines[first::step]
            looked_at += len(part)
            found += filter(suits, part)
            if len(found) >= ENOUGH:
                break
        return found, looked_at

    # ── changes ───────────────────────────────────────────────────────────────────────────────

    def add(self, engine: E) -> None:
        if self._segments is None:
            self._engines.append(engine)
            if len(self._engines) > UNSORTED:
                self._segments = Segments(self.model, self._engines)
        else:
            self._segments.add(engine)
        if engine.breakers:
            self.on_breakers(engine)

    def remove(self, engine: E) -> None:
        if self._segments is None:
            self._engines.remove(engine)
        else:
            self._segments.remove(engine)
            self._unsort_few()

    def on_breakers(self, engine: E) -> None:
        """Take in that breakers of an engine have changed, which may be none of these any more."""
        segments = self._segments
        if segments is None:
            if engine not in self._engines or engine.breakers.are_closed(self.model):
                return
            segments = self._segments = Segments(self.model, self._engines)
        segments.on_breakers(engine)
        self._unsort_few()

    def _unsort_few(self) -> None:
        segments = self._segments
        if segments is not None and len(self._engines) <= UNSORTED and not segments.troubled:
            segments.disband()
            self._segments = None


_NONE: list[Any] = []
NOBODY = Candidates[Any]("")
"""Candidates for a model that no engine serves."""


class Segments(Generic[E]):
    """The segments of one model's engines, and the sums over them."""

    __slots__ = (
        "_ejections",
        "_engines",
        "_paths",
        "_places",
        "cards",
        "ends",
        "model",
        "offers",
        "slots",
        "troubled",
    )

    def __init__(self, model: str, engines: list[E]) -> None:
        """``engines`` is sorted in place, from now on."""
        self.model = model
        self._engines = engines
        self._places = {engine: place for place, engine in enumerate(engines)}
        self.offers = [engine.offers[model] for engine in engines]
        """Their offers of the model, at the same places."""
        self.ends = [0] * NO_USE
        """Where each segment ends, but for the last."""
        self.slots = 0
        self.troubled: set[E] = set()
        self.cards: dict[Card, int] = {}
        """The hints in reports of the model, and how many engines share them."""
        self._paths: dict[frozenset[str], int] = {}
        """How many engines could serve at these paths."""
        self._ejections: dict[str, Ejection[E]] = {}
        """By path, made when they are asked for, while there are troubled engines."""
        for engine in self._places:
            self._enter(engine)

    def disband(self) -> None:
        for engine in self._engines:
            engine.part(self)

    def add(self, engine: E) -> None:
        self._places[engine] = len(self._engines)
        self._engines.append(engine)
        self.offers.append(engine.offers[self.model])
        self._enter(engine)

    def _enter(self, engine: E) -> None:
        engine.join(self)
        self.update(engine, NOTHING, engine.standing)
        self._count_card(engine.offers[self.model].card, 1)

    def remove(self, engine: E) -> None:
        self._count_card(engine.offers[self.model].card, -1)
        self.update(engine, engine.standing, NOTHING)
        engine.part(self)
        self.troubled.discard(engine)
        if not self.troubled:
            self._ejections.clear()
        place, last, offer = self._places.pop(engine), self._engines.pop(), self.offers.pop()
        if last is not engine:
            self._engines[place], self.offers[place] = last, offer
            self._places[last] = place

    def update(self, engine: E, before: Standing, after: Standing) -> None:
        """Take in a change of an engine."""
        start, end = before.segment, after.segment
        if self.troubled and engine in self.troubled:
            start, end = max(start, TROUBLED), max(end, TROUBLED)
            for ejection in self._ejections.values():
                ejection.change(engine)
        if start != end:
            self._move(engine, start, end)
        self.slots += after.slots - before.slots
        if before.paths is not after.paths:
            self._count(before.paths, -1)
            self._count(after.paths, 1)

    def all_support(self, path: str) -> bool:
        return all(path in paths for paths in self._paths)

    def change_offer(self, engine: E, before: Offer) -> None:
        """Take in that an engine has another offer than before."""
        offer = self.offers[self._places[engine]] = engine.offers[self.model]
        if offer.card is not before.card:
            self._count_card(before.card, -1)
            self._count_card(offer.card, 1)

    def _count_card(self, card: Card, change: int) -> None:
        count = self.cards[card] = self.cards.get(card, 0) + change
        if not count:
            del self.cards[card]

    def on_breakers(self, engine: E) -> None:
        """Take in that breakers of an engine have changed."""
        if engine not in self._places:
            return
        troubled, segment = not engine.breakers.are_closed(self.model), engine.standing.segment
        if troubled is not (engine in self.troubled):
            start, end = segment, max(segment, TROUBLED)
            if troubled:
                self.troubled.add(engine)
            else:
                self.troubled.remove(engine)
                start, end = end, start
            self._move(engine, start, end)
        for ejection in self._ejections.values():
            ejection.change(engine)
        if not self.troubled:
            self._ejections.clear()

    def ejection(self, path: str, now: float) -> Ejection[E]:
        """Return what is ejected for this path now."""
        ejection = self._ejections.get(path)
        if ejection is None:
            able = sum(count for paths, count in self._paths.items() if not path or path in paths)
            ejection = self._ejections[path] = Ejection(self.model, path, able, self.troubled)
        ejection.settle(now)
        return ejection

    def _count(self, paths: frozenset[str] | None, change: int) -> None:
        if paths is None:
            return
        count = self._paths[paths] = self._paths.get(paths, 0) + change
        if not count:
            del self._paths[paths]
        for path, ejection in self._ejections.items():
            if not path or path in paths:
                ejection.able += change

    def _move(self, engine: E, start: int, end: int) -> None:
        engines, offers, places, ends = self._engines, self.offers, self._places, self.ends
        place = places[engine]
        offer = offers[place]
        while start != end:
            if start < end:  # it becomes the last of its segment, and the first of the next
                ends[start] = border = ends[start] - 1
                start += 1
            else:  # it becomes the first of its segment, and the last of the one before
                start -= 1
                border = ends[start]
                ends[start] = border + 1
            if border != place:
                other = engines[border]
                engines[place], offers[place], places[other] = other, offers[border], place
                place = border
        engines[place], offers[place], places[engine] = engine, offer, place
