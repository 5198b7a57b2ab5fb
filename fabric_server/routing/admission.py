"""Admission to an engine's slots: a request takes a free slot at once, or is queued for one."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from random import Random
from time import time

from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.nodes.candidates import Candidates
from fabric_server.nodes.node import Engine, Node
from fabric_server.nodes.registry import Registry
from fabric_server.nodes.standing import CUT_OFF, FULL, RESTING
from fabric_server.routing.absence import SOON, Absence, find_absence
from fabric_server.routing.choice import Choice, forward
from fabric_server.routing.criteria import HERE, Requirements
from fabric_server.routing.fair_queue import FairQueue, Rank, is_high
from fabric_server.routing.homes import Homes
from fabric_server.routing.load_balancer import (
    LoadBalancer,
    can_pick,
    choose_waited_for,
    filter_engine,
    supports,
)
from fabric_server.routing.queues import QueueLimits, QueuePosition, QueueStats, Waiter
from fabric_server.routing.shares import Shares, Turns

MIN_RETRY_AFTER, MAX_RETRY_AFTER = 1.0, 120.0
DEFAULT_SERVICE_SECONDS = 5.0
"""How long a request is assumed to hold a slot before any has been measured."""
MAX_COUNTED = 64
"""Engines up to which all are looked at.  A sample of more tells an estimate, or why none may
serve; it is larger if few of these suit."""
_SMOOTHING = 0.1
"""Weight of one measured request in the average."""


class Admission:
    """One fair queue per model; a slot that becomes free goes at once to the next request for it.

    So no request waits while an engine that could serve it has room, and an arriving request may
    take any free slot.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        rng: Random,
        limits: QueueLimits,
        clock: Callable[[], float] | None = None,
        balancer: LoadBalancer | None = None,
        wall: Callable[[], float] = time,
    ) -> None:
        """``clock`` returns event-loop seconds, ``wall`` Unix seconds."""
        self._registry = registry
        self.balancer = balancer or LoadBalancer(registry.engine, rng)
        self.limits = limits
        """Limits for requests that arrive from now on; queued ones stay."""
        self._clock = clock or asyncio.get_running_loop().time
        self._wall = wall
        self._queues: dict[str, FairQueue[Waiter]] = {}
        self._granted: Counter[Node] = Counter()
        """Slots given to requests that wake up in a moment and open their streams, by node."""
        self._waiters: dict[str, Waiter] = {}
        """Queued requests by id."""
        self._turns = Turns()
        self._service: dict[str, float] = {}
        """Seconds that an answer takes, by model: a moving average."""
        self.homes: Homes | None = None
        """Other servers, in whose queues requests may wait; None without any."""
        registry.on_room = self._on_room
        registry.on_paused = self._on_paused

    # ── what the gateway calls ────────────────────────────────────────────────────────────────

    def admit_now(self, requirements: Requirements, now: float) -> Choice | None:
        """Take a slot without waiting; None if there is none."""
        registry = self._registry
        candidates = registry.candidates(requirements.model)
        if not registry.homes or requirements.stays:
            choice = self.balancer.pick(candidates, requirements, now)
        else:
            choice = self._pick_anywhere(candidates, requirements, now)
        if choice is not None:
            registry.take(choice.engine, choice.key_id, now)
        return choice

    def _pick_anywhere(
        self, candidates: Candidates[Engine], requirements: Requirements, now: float
    ) -> Choice | None:
        """Pick one of this server's engines if one has room, and else another server."""
        terms = requirements.terms
        requirements.terms = HERE if terms is None else replace(terms, here=True)
        choice = self.balancer.pick(candidates, requirements, now)
        requirements.terms = terms
        if choice is None:
            choice = self.balancer.pick(candidates, requirements, now)
        return None if choice is None else forward(choice, requirements)

    async def admit(
        self, requirements: Requirements, deadline: float = math.inf, request_id: str = ""
    ) -> Choice:
        """Take a slot, waiting for one if need be; give it back with ``Registry.release``.

        The wait ends at ``deadline`` (event-loop seconds) or after the queue's timeout.  Raises
        ``ApiError``: the model is unknown, no node for it is up, the queue is full, or the wait
        too long.
        """
        model, now = requirements.model, self._clock()
        if now >= deadline:
            raise self._timed_out(requirements)
        choice = self.admit_now(requirements, now)
        if choice is not None:
            return choice
        if not self._registry.candidates(model) and not self._registry.is_known(model):
            raise errors.model_not_found(model)
        if not self._may_be_served(requirements, now):
            raise self._no_capacity(requirements)
        deadline = min(deadline, now + self.limits.timeout)
        if self.homes is not None and not requirements.stays:
            seconds = self.expected_wait(requirements, now)
            choice = await self.homes.wait(requirements, seconds, deadline, request_id)
            if choice is not None:
                return choice
        self._check_length(requirements)
        engine = await self._wait(requirements, now, deadline, request_id)
        return forward(choose_waited_for(engine, requirements), requirements)

    def expected_wait(self, requirements: Requirements, now: float) -> float | None:
        """Return the seconds that a request would wait in this server's queue, for its own nodes;
        None when none of them may serve it."""
        candidates = self._registry.candidates(requirements.model)
        engines, looked_at = candidates.sample(
            MAX_COUNTED,
            lambda one: one.may_serve and not one.node.remote and supports(one, requirements),
        )
        if not engines:
            return None
        slots = max(1, sum(one.slots for one in engines) * len(candidates) // looked_at)
        queue = self._queues.get(requirements.model)
        return (1 + (0 if queue is None else len(queue))) * self.service(requirements.model) / slots

    def service(self, model: str) -> float:
        """Return the seconds that an answer of the model takes on average."""
        return self._service.get(model, DEFAULT_SERVICE_SECONDS)

    def has_alternative(self, requirements: Requirements) -> bool:
        """Return whether another node could take the request now."""
        candidates = self._registry.candidates(requirements.model)
        return can_pick(candidates, requirements, self._clock())

    def record_service_time(self, model: str, seconds: float) -> None:
        """Take in how long a request held its slot; waiting times are estimated from it."""
        average = self._service.setdefault(model, seconds)
        self._service[model] = average + (seconds - average) * _SMOOTHING

    # ── figures ───────────────────────────────────────────────────────────────────────────────

    @property
    def waiting(self) -> int:
        return sum(map(len, self._queues.values()))

    def waiting_by_model(self) -> dict[str, tuple[int, float]]:
        """Return the length of each queue that is not empty, and the seconds of an answer."""
        return {model: (len(one), self.service(model)) for model, one in self._queues.items()}

    def position(self, request_id: str) -> int | None:
        """Return the request's position, 1 being next; None when it is not queued."""
        waiter = self._waiters.get(request_id)
        if waiter is None or waiter.future.done():
            return None if self.homes is None else self.homes.position(request_id)
        return self._queues[waiter.requirements.model].position(waiter, self._clock())

    def place(self, request_id: str) -> QueuePosition | None:
        position, waiter = self.position(request_id), self._waiters.get(request_id)
        if position is None or waiter is None:
            return None
        estimate = self._estimate(waiter.requirements, position)
        return QueuePosition(waiter, position, self._clock() - waiter.since, estimate)

    def queues(self) -> list[QueueStats]:
        """Return the figures of every queue that is not empty."""
        now = self._clock()
        return [self._stats(model, queue, now) for model, queue in sorted(self._queues.items())]

    def _stats(self, model: str, queue: FairQueue[Waiter], now: float) -> QueueStats:
        oldest = queue.oldest
        return QueueStats(
            model=model,
            length=len(queue),
            by_priority=queue.by_priority,
            keys=queue.keys,
            oldest=0.0 if oldest is None else now - oldest.since,
            slots=self._slots(Requirements(model)),
            service=self.service(model),
            estimate=self._estimate(Requirements(model), len(queue) + 1),
        )

    # ── queueing ──────────────────────────────────────────────────────────────────────────────

    async def _wait(
        self, requirements: Requirements, now: float, deadline: float, request_id: str
    ) -> Engine:
        waiter = Waiter(requirements, now, request_id, asyncio.get_running_loop().create_future())
        self._enqueue(waiter)
        try:
            async with asyncio.timeout_at(deadline):
                engine = await waiter.future
            self._wake(engine.node)
            return engine
        except TimeoutError:
            self._abandon(waiter)
            raise self._timed_out(requirements) from None
        except asyncio.CancelledError:
            self._abandon(waiter)
            raise
        finally:
            self._waiters.pop(request_id, None)

    def _enqueue(self, waiter: Waiter) -> None:
        queue = self._queues.get(waiter.requirements.model)
        if queue is None:
            queue = self._queues[waiter.requirements.model] = FairQueue(self._turns)
        queue.add(waiter)
        if waiter.request_id:
            self._waiters[waiter.request_id] = waiter

    def _abandon(self, waiter: Waiter) -> None:
        if waiter.future.done() and not waiter.future.cancelled():
            if waiter.future.exception() is not None:
                return
            # It got a slot in the same turn of the loop in which the wait ended: pass it on.
            engine = waiter.future.result()
            self._wake(engine.node)
            self._registry.release(engine, waiter.requirements.key_id)
            return
        queue = self._queues.get(waiter.requirements.model)
        if queue is not None and waiter in queue:
            queue.remove(waiter)
            self._drop_if_empty(waiter.requirements.model)

    def _drop_if_empty(self, model: str) -> None:
        if not len(self._queues[model]):
            del self._queues[model]

    def _on_room(self, node: Node) -> None:
        if not self._queues or self._registry.node(node.id) is not node:
            return
        now = self._clock()
        streams = sum(one.connection.free_streams for one in node.tunnels) - self._granted[node]
        for engine in node.engines.values():
            while streams > 0 and engine.has_room and (found := self._next_for(engine, now)):
                rank, waiter = found
                model = waiter.requirements.model
                self._queues[model].serve(waiter)
                self._drop_if_empty(model)
                if not waiter.future.done():
                    self._registry.take(engine, waiter.requirements.key_id, now)
                    engine.held.serve(is_high(rank))
                    streams -= 1
                    self._granted[node] += 1
                    waiter.future.set_result(engine)

    def _on_paused(self, node: Node) -> None:
        """Refuse what waits and no engine may serve any more, as what arrives now is refused."""
        if self._registry.node(node.id) is not node:
            return
        now, engines = self._clock(), node.engines.values()
        for model in {model for engine in engines for model in self._waited_for(engine)}:
            queue = self._queues[model]
            for waiter in list(queue):
                if not self._may_be_served(waiter.requirements, now):
                    queue.remove(waiter)
                    if not waiter.future.done():
                        waiter.future.set_exception(self._no_capacity(waiter.requirements))
            self._drop_if_empty(model)

    def _wake(self, node: Node) -> None:
        """Count a request as awake that was given a slot of this node."""
        self._granted[node] -= 1
        if not self._granted[node]:
            del self._granted[node]

    def _next_for(self, engine: Engine, now: float) -> tuple[Rank, Waiter] | None:
        """Return the next request that this engine can serve, of whatever model, with its rank."""
        best: tuple[Rank, Waiter] | None = None
        shares = Shares(engine.held, self._registry.held, engine.most_per_key(now))

        def fits(waiter: Waiter) -> bool:
            return self._may_take(engine, waiter.requirements, now)

        for model in self._waited_for(engine):
            found = self._queues[model].first(now, fits, shares)
            if found is not None and (best is None or found[0] < best[0]):
                best = found
        return best

    def _waited_for(self, engine: Engine) -> list[str]:
        """Return the engine's models for which requests wait."""
        queues = self._queues
        if len(queues) <= len(engine.models):
            return [model for model in queues if engine.serves(model)]
        return [model for model in engine.names() if model in queues]

    def _may_take(self, engine: Engine, requirements: Requirements, now: float) -> bool:
        if not filter_engine(engine, requirements):
            return False
        return not engine.breakers or not self._registry.is_ejected(
            engine, requirements.model, now, requirements.path
        )

    # ── limits ────────────────────────────────────────────────────────────────────────────────

    def _check_length(self, requirements: Requirements) -> None:
        """Raise ``ApiError`` when the queue is full.

        The status is 429 when this key's own requests fill it: more of them wait than an equal
        share.  Requests for which there are free slots, and that only wait for a tunnel, are not
        refused.
        """
        limits, queue = self.limits, self._queues.get(requirements.model)
        length, queued = (
            (0, 0) if queue is None else (len(queue), queue.queued(requirements.key_id))
        )
        if length < limits.length and queued < limits.length_per_key:
            return
        over = max(length - limits.length, queued - limits.length_per_key)
        if free := self._free_slots(requirements, over + 1):
            length, queued = max(0, length - free), max(0, queued - free)
            if length < limits.length and queued < limits.length_per_key:
                return
        retry_after = self._retry_after(requirements)
        if (
            queue is not None
            and queued
            and queued >= min(limits.length_per_key, limits.length / queue.keys)
        ):
            raise errors.queue_share_full(requirements.model, retry_after)
        raise errors.queue_full(requirements.model, retry_after)

    def _may_be_served(self, requirements: Requirements, now: float) -> bool:
        """Return whether an engine may serve it, now or when it has a free slot."""
        candidates = self._registry.candidates(requirements.model)
        return any(
            one.may_serve and filter_engine(one, requirements)
            for one in candidates.serving(now, requirements.path)
        )

    def _no_capacity(self, requirements: Requirements) -> ApiError:
        regions, terms = requirements.regions, requirements.terms
        wanted = None if terms is None else terms.variant
        absence = self._absence(requirements)
        return errors.no_capacity(
            requirements.model,
            SOON if absence is None else absence.retry_after,
            regions,
            "" if wanted is None else str(wanted),
            why="" if absence is None else str(absence),
        )

    def _absence(self, requirements: Requirements) -> Absence | None:
        """Return why no engine may serve the request; None if one may, but not now."""
        model, registry = requirements.model, self._registry
        candidates = registry.candidates(model)
        anywhere = requirements.regions is None and requirements.terms is None
        engines, _ = candidates.sample(MAX_COUNTED, lambda one: supports(one, requirements))
        if anywhere:
            return find_absence(engines, registry.gone_for(model), self._wall())
        # Regions and weights of nodes that are away are not known.
        return find_absence(engines, None, self._wall()) if engines else None

    def _timed_out(self, requirements: Requirements) -> ApiError:
        candidates = self._registry.candidates(requirements.model)
        serving = candidates.serving(self._clock(), requirements.path, last=FULL)
        reachable = any(
            one.node.reachable and one.may_serve and filter_engine(one, requirements)
            for one in chain(serving, candidates.segment(RESTING))
        )
        return errors.queue_timeout(
            requirements.model, self._retry_after(requirements), reachable=reachable
        )

    def _retry_after(self, requirements: Requirements) -> float:
        """Estimate the seconds until one more request of this key would be served."""
        queue = self._queues.get(requirements.model)
        ahead = 0 if queue is None else queue.ahead(requirements.key_id)
        estimate = self._estimate(requirements, ahead + 1)
        if estimate is None:
            return SOON
        return min(max(estimate, MIN_RETRY_AFTER), MAX_RETRY_AFTER)

    def _estimate(self, requirements: Requirements, position: int) -> float | None:
        slots = self._slots(requirements)
        if not slots:
            return None
        return position * self.service(requirements.model) / slots

    def _free_slots(self, requirements: Requirements, enough: int) -> int:
        """Return how many slots are free at engines that may serve this and only lack a tunnel;
        counts until it has found ``enough``."""
        model, path, free = requirements.model, requirements.path, 0
        for engine in self._registry.candidates(model).segment(CUT_OFF):
            if engine.may_serve and filter_engine(engine, requirements):
                if self._registry.is_ejected(engine, model, self._clock(), path):
                    continue
                free += max(0, engine.slots - engine.active - engine.elsewhere)
                if free >= enough:
                    break
        return free

    def _slots(self, requirements: Requirements) -> int:
        """Return how many slots may serve it, about."""
        regions, terms, path = requirements.regions, requirements.terms, requirements.path
        candidates = self._registry.candidates(requirements.model)
        if regions is None and terms is None and candidates.all_support(path):
            return candidates.slots
        engines, looked_at = candidates.sample(
            MAX_COUNTED, lambda one: one.may_serve and supports(one, requirements)
        )
        return sum(one.slots for one in engines) * len(candidates) // max(looked_at, 1)
