"""Reports of attempts on their engines: how fast they are, and whether they work."""

from __future__ import annotations

import asyncio
import logging

from fabric_server.nodes.node import Engine
from fabric_server.nodes.registry import Registry
from fabric_server.nodes.slot_limit import RAISE_SECONDS, SlotLimit
from fabric_server.proxy.attempt import Attempt
from fabric_server.proxy.ending import Ending
from fabric_server.proxy.hedging import Hedging
from fabric_server.proxy.outcome_rules import Counts
from fabric_server.routing.criteria import Requirements
from fabric_server.routing.latency import tokens_per_second
from fabric_server.routing.load_balancer import RoutingState

TOKENS_PER_EVENT = 4
"""Tokens of a stream's event that are believed, on average, when speeds are compared."""

log = logging.getLogger("fabric.gateway")


class OutcomeReporter:
    """Keeps latency estimates and circuit breakers up to date (Envoy: outlier detection), by the
    rules of ``outcome_rules``."""

    def __init__(
        self, known: RoutingState, registry: Registry, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.known = known
        self._registry = registry
        self._loop = loop
        self._growing: dict[Engine, asyncio.TimerHandle] = {}
        """Engines with a limit for their slots, and when it is raised."""

    # ── speed ─────────────────────────────────────────────────────────────────────────────────

    def update_latency(
        self, attempt: Attempt, ending: Ending, model: str, hedging: Hedging, *, stream: bool
    ) -> None:
        """Measure how fast the engine was; only whole answers show it."""
        now, first, began = self._loop.time(), attempt.first_byte_at, attempt.clock.began_at
        engine, cold, latency = attempt.choice.engine, attempt.choice.cold_start, self.known.latency
        if engine.node.remote and ending.rule.counts is not Counts.SUCCESS:
            return  # it tells of one engine there, or of no slot, and not of all that it stands for
        if ending.rule.slow:
            latency.penalize(engine, model, now=now)
        elif ending.lost_hedge and not cold:
            hedging.observe_at_least(model, now - began, stream=stream)
            if stream:
                latency.observe_at_least(engine, model, now - began, now=now)
        elif ending.rule.counts is not Counts.SUCCESS or first is None:
            latency.observe_nothing(engine, model, now=now)
        else:
            if not cold:
                hedging.observe(model, first - began, stream=stream)
            tokens = attempt.answer.meter.usage.completion_tokens
            if stream:
                # While the client was slow, so was the engine, which had to wait for it.
                throttled = attempt.clock.throttled
                seen = attempt.answer.meter.events * TOKENS_PER_EVENT  # what it only claims is fast
                tokens = None if tokens is None or throttled else min(tokens, seen)
                rate = tokens_per_second(tokens, now - first)
                latency.update(engine, model, first - began, rate, now=now, cold=cold)
            else:  # the whole answer came at once
                rate = tokens_per_second(tokens, now - began)
                latency.update(engine, model, None, rate, now=now, cold=cold)

    # ── failures ──────────────────────────────────────────────────────────────────────────────

    def update_breaker(
        self,
        engine: Engine,
        began_at: float,
        ending: Ending,
        requirements: Requirements,
        account: str,
    ) -> None:
        """Count the end of an attempt in the engine's circuit breakers; its home does, if that is
        another server."""
        rule = ending.rule
        if engine.node.remote:
            return
        model, path = requirements.model, requirements.path
        scope = model, path if rule.path_only else ""
        match rule.counts:
            case Counts.SUCCESS:
                if engine.breakers:
                    engine.breakers.close(model, path)
            case Counts.FAILURE:
                breaker = engine.breaker(scope)
                seconds = breaker.record_failure(self._loop.time(), ending.reason)
                self._on_opened(engine, requirements, seconds, ending.reason)
            case Counts.SUSPICION:
                breaker, now = engine.breaker(scope), self._loop.time()
                seconds = breaker.record_suspicion(now, account, ending.reason)
                self._on_opened(engine, requirements, seconds, ending.reason)
            case Counts.BUSY:
                self._lower_slots(engine, requirements, began_at)
                self._release_probes(engine, requirements)
            case Counts.NOTHING:
                self._release_probes(engine, requirements)

    def confirm(self, engine: Engine, ending: Ending, requirements: Requirements) -> None:
        """Count a failure after all: another engine has answered the same request."""
        rule, now = ending.rule, self._loop.time()
        if engine.node.remote:
            return
        breaker = engine.breaker((requirements.model, requirements.path if rule.path_only else ""))
        seconds = breaker.record_failure(now, ending.reason)
        self._on_opened(engine, requirements, seconds, ending.reason)
        self.known.latency.penalize(engine, requirements.model, now=now)

    def _release_probes(self, engine: Engine, requirements: Requirements) -> None:
        if engine.breakers:
            for breaker in engine.breakers.of(requirements.model, requirements.path):
                breaker.release_probe()

    def _on_opened(
        self, engine: Engine, requirements: Requirements, seconds: float | None, reason: str
    ) -> None:
        """Wake the queue when a breaker lets requests through again, and log that it opened."""
        if seconds is None:
            return
        self._loop.call_later(seconds, self._registry.room, engine.node)
        now, model, path = self._loop.time(), requirements.model, requirements.path
        if self._registry.is_ejected(engine, model, now, path):  # never a model's only one
            names = {"node": engine.node.id, "engine": engine.name, "model": model}
            log.warning(
                "engine avoided",
                extra={**names, "path": path, "seconds": seconds, "reason": reason},
            )

    # ── engines that have too much to do ──────────────────────────────────────────────────────

    def _lower_slots(self, engine: Engine, requirements: Requirements, began: float) -> None:
        """Give the engine fewer requests at once, and more again in time."""
        limit = engine.slot_limit
        if limit is None:
            limit = engine.slot_limit = SlotLimit()
        now = self._loop.time()
        alone = self._registry.is_alone(engine, requirements.model, now, requirements.path)
        seconds = limit.lower(engine.active, began, now, alone=alone)
        if seconds is None:
            return
        self._grow_after(seconds, engine)
        engine.limit_slots()
        names = {"node": engine.node.id, "engine": engine.name, "slots": engine.slots}
        log.info("engine is busy", extra=names)

    def _grow_after(self, seconds: float, engine: Engine) -> None:
        timer = self._growing.pop(engine, None)
        if timer is not None:
            timer.cancel()
        self._growing[engine] = self._loop.call_later(seconds, self._grow, engine)

    def _grow(self, engine: Engine) -> None:
        del self._growing[engine]
        limit = engine.slot_limit
        if limit is None:
            return
        if limit.slots >= engine.reported_slots:
            engine.slot_limit = None
        else:
            limit.grow()
            self._grow_after(RAISE_SECONDS, engine)
        engine.limit_slots()
        self._registry.room(engine.node)
