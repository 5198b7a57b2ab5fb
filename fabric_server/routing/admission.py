"""Who is next: a request takes a free slot at once, or waits in line for one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from random import Random

from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.nodes.registry import Engine, Node, Registry
from fabric_server.routing.criteria import Requirements
from fabric_server.routing.fair_queue import FairQueue, Rank
from fabric_server.routing.load_balancer import Choice, LoadBalancer, is_cold, suits, within

RETRY_AFTER_NODE = 5.0
"""Seconds after which a node that went away may be back: reconnecting takes it about so long."""
MIN_RETRY_AFTER, MAX_RETRY_AFTER = 1.0, 120.0
USUAL_SECONDS = 5.0
"""What a request is taken to take of a slot's time before any has been measured."""
_NEWS = 0.1
"""How much one measured request moves the average."""


class Waiter:
    """A request in line."""

    __slots__ = ("future", "request_id", "requirements", "since")

    def __init__(
        self,
        requirements: Requirements,
        since: float,
        request_id: str,
        future: asyncio.Future[Engine],
    ) -> None:
        self.requirements = requirements
        self.since = since
        """Event-loop seconds."""
        self.request_id = request_id
        self.future = future


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """One model's line now."""

    model: str
    length: int
    by_priority: tuple[int, ...]
    keys: int
    oldest: float
    """Seconds that the one who has waited longest has waited."""
    slots: int
    """Of the engines that may serve it."""
    service: float
    """Seconds that an answer takes on average."""
    estimate: float | None
    """Seconds that one more would wait at most; None when nobody may serve it."""


@dataclass(frozen=True, slots=True)
class PlaceFigures:
    """One request's place in line now."""

    waiter: Waiter
    position: int
    """1 is next."""
    waited: float
    estimate: float | None


class Admission:
    """One line per model; a slot that becomes free goes at once to who is next for it.

    So, while an engine has room, nobody waits who could use it, and whoever comes may take it.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        rng: Random,
        queue_length: int,
        queue_length_per_key: int,
        queue_timeout: float,
        clock: Callable[[], float] | None = None,
        router: LoadBalancer | None = None,
    ) -> None:
        """``queue_length`` is the most requests that may wait for one model,
        ``queue_length_per_key`` the most of them of one key; times in event-loop seconds."""
        self._registry = registry
        self.router = router or LoadBalancer(registry.engine, rng)
        self._queue_length = queue_length
        self._queue_length_per_key = queue_length_per_key
        self._queue_timeout = queue_timeout
        self._clock = clock or asyncio.get_running_loop().time
        self._lines: dict[str, FairQueue[Waiter]] = {}
        self._waiters: dict[str, Waiter] = {}
        """By request id."""
        self._turns = count(1)
        self._service: dict[str, float] = {}
        """Seconds that an answer takes, by model: an average that forgets."""
        registry.on_room = self._on_room

    # ── what the gateway calls ────────────────────────────────────────────────────────────────

    def set_limits(
        self, *, queue_length: int, queue_length_per_key: int, queue_timeout: float
    ) -> None:
        """For those who come from now on; who is in line stays."""
        self._queue_length = queue_length
        self._queue_length_per_key = queue_length_per_key
        self._queue_timeout = queue_timeout

    def admit_now(self, requirements: Requirements, now: float) -> Choice | None:
        """Take a slot without waiting; None if there is none."""
        choice = self.router.choose(self._registry.able(requirements.model, now), requirements, now)
        if choice is not None:
            choice.engine.active += 1
        return choice

    async def admit(
        self, requirements: Requirements, deadline: float = math.inf, request_id: str = ""
    ) -> Choice:
        """An engine with one of its slots taken; give it back with ``Registry.release``.

        Raises Refusal: the model is unknown, no node for it is up, the line is full, or the wait
        too long; it ends at ``deadline`` (event-loop seconds) or after ``queue_timeout``.
        """
        model, now = requirements.model, self._clock()
        if now >= deadline:
            raise self._too_late(requirements)
        choice = self.admit_now(requirements, now)
        if choice is not None:
            return choice
        if not self._registry.candidates(model) and not self._registry.is_known(model):
            raise errors.model_not_found(model)
        able = self._registry.able(model, now)
        if not any(_may_serve(engine) and suits(engine, requirements) for engine in able):
            raise errors.no_capacity(model, RETRY_AFTER_NODE, requirements.regions)
        self._check_length(requirements)
        engine = await self._wait(
            requirements, now, min(deadline, now + self._queue_timeout), request_id
        )
        return Choice(engine, "the first free one after a wait", is_cold(engine, model))

    def another(self, requirements: Requirements) -> bool:
        """Whether some other node could take the request now."""
        now = self._clock()
        candidates = self._registry.able(requirements.model, now)
        return self.router.choose(candidates, requirements, now) is not None

    def learn(self, model: str, seconds: float) -> None:
        """A request has held a slot for so long: what waiting times are estimated by."""
        average = self._service.setdefault(model, seconds)
        self._service[model] = average + (seconds - average) * _NEWS

    # ── who waits ─────────────────────────────────────────────────────────────────────────────

    @property
    def waiting(self) -> int:
        return sum(map(len, self._lines.values()))

    def position(self, request_id: str) -> int | None:
        """1 is next, None is not in line."""
        waiter = self._waiters.get(request_id)
        if waiter is None or waiter.future.done():
            return None
        return self._lines[waiter.requirements.model].position(waiter, self._clock())

    def place(self, request_id: str) -> PlaceFigures | None:
        position = self.position(request_id)
        if position is None:
            return None
        waiter = self._waiters[request_id]
        estimate = self._estimate(waiter.requirements, position)
        return PlaceFigures(waiter, position, self._clock() - waiter.since, estimate)

    def lines(self) -> list[QueueFigures]:
        """Of the models that somebody waits for."""
        now = self._clock()
        return [self._figures(model, line, now) for model, line in sorted(self._lines.items())]

    def _figures(self, model: str, line: FairQueue[Waiter], now: float) -> QueueFigures:
        oldest = line.oldest
        return QueueFigures(
            model=model,
            length=len(line),
            by_priority=line.by_priority,
            keys=line.keys,
            oldest=0.0 if oldest is None else now - oldest.since,
            slots=self._slots(Requirements(model)),
            service=self._service.get(model, USUAL_SECONDS),
            estimate=self._estimate(Requirements(model), len(line) + 1),
        )

    # ── in line ───────────────────────────────────────────────────────────────────────────────

    async def _wait(
        self, requirements: Requirements, now: float, deadline: float, request_id: str
    ) -> Engine:
        waiter = Waiter(requirements, now, request_id, asyncio.get_running_loop().create_future())
        self._join(waiter)
        try:
            async with asyncio.timeout_at(deadline):
                return await waiter.future
        except TimeoutError:
            self._give_up(waiter)
            raise self._too_late(requirements) from None
        except asyncio.CancelledError:
            self._give_up(waiter)
            raise
        finally:
            self._waiters.pop(request_id, None)

    def _join(self, waiter: Waiter) -> None:
        line = self._lines.get(waiter.requirements.model)
        if line is None:
            line = self._lines[waiter.requirements.model] = FairQueue(self._turns)
        line.join(waiter)
        if waiter.request_id:
            self._waiters[waiter.request_id] = waiter

    def _give_up(self, waiter: Waiter) -> None:
        if waiter.future.done() and not waiter.future.cancelled():
            # Given a slot in the same turn in which the wait was given up: pass it on.
            self._registry.release(waiter.future.result())
            return
        line = self._lines.get(waiter.requirements.model)
        if line is not None and waiter in line:
            line.remove(waiter)
            self._tidy(waiter.requirements.model)

    def _tidy(self, model: str) -> None:
        if not len(self._lines[model]):
            del self._lines[model]

    def _on_room(self, node: Node) -> None:
        if not self._lines or self._registry.node(node.id) is not node:
            return
        now = self._clock()
        for engine in node.engines.values():
            while engine.has_room and (waiter := self._next_for(engine, now)):
                model = waiter.requirements.model
                self._lines[model].take(waiter)
                self._tidy(model)
                if not waiter.future.done():
                    engine.active += 1
                    waiter.future.set_result(engine)

    def _next_for(self, engine: Engine, now: float) -> Waiter | None:
        """Of all that this engine could serve; models that share it take turns like keys."""
        best: tuple[Rank, Waiter] | None = None
        for model, line in self._lines.items():
            if engine.serves(model) and engine.allows(model, now):
                found = line.first(now, lambda waiter: suits(engine, waiter.requirements))
                if found is not None and (best is None or found[0] < best[0]):
                    best = found
        return best and best[1]

    # ── refusing ──────────────────────────────────────────────────────────────────────────────

    def _check_length(self, requirements: Requirements) -> None:
        """Raises Refusal when the line is full: 429 when this key's own requests fill it, which
        are those that are more than an equal share."""
        line = self._lines.get(requirements.model)
        length, held = (0, 0) if line is None else (len(line), line.held(requirements.key_id))
        if length < self._queue_length and held < self._queue_length_per_key:
            return
        retry_after = self._retry_after(requirements)
        if (
            line is not None
            and held
            and held >= min(self._queue_length_per_key, self._queue_length / line.keys)
        ):
            raise errors.queue_share_full(requirements.model, retry_after)
        raise errors.queue_full(requirements.model, retry_after)

    def _too_late(self, requirements: Requirements) -> ApiError:
        return errors.queue_timeout(requirements.model, self._retry_after(requirements))

    def _retry_after(self, requirements: Requirements) -> float:
        """Until one more request of this key would be served."""
        line = self._lines.get(requirements.model)
        ahead = 0 if line is None else line.ahead(requirements.key_id)
        estimate = self._estimate(requirements, ahead + 1)
        if estimate is None:
            return RETRY_AFTER_NODE
        return min(max(estimate, MIN_RETRY_AFTER), MAX_RETRY_AFTER)

    def _estimate(self, requirements: Requirements, position: int) -> float | None:
        slots = self._slots(requirements)
        return (
            position * self._service.get(requirements.model, USUAL_SECONDS) / slots
            if slots
            else None
        )

    def _slots(self, requirements: Requirements) -> int:
        return sum(
            engine.slots
            for engine in self._registry.candidates(requirements.model)
            if _may_serve(engine) and within(engine, requirements)
        )


def _may_serve(engine: Engine) -> bool:
    """Whether it is worth waiting for."""
    return engine.healthy and engine.slots > 0 and engine.node.connected
