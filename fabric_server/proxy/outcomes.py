"""Reports of attempts on their engines: how fast they are, and whether they work."""

from __future__ import annotations

import asyncio
import logging

from fabric_server.nodes.circuit_breaker import CircuitBreaker
from fabric_server.nodes.registry import Registry
from fabric_server.proxy.attempt import Attempt, Ending
from fabric_server.proxy.hedging import Hedging
from fabric_server.routing.latency import tokens_per_second
from fabric_server.routing.load_balancer import RoutingState
from protocol.errors import Code

log = logging.getLogger("fabric.gateway")

TRY_ELSEWHERE = frozenset(
    {
        Code.REFUSED,
        Code.ENGINE_DOWN,
        Code.ENGINE_FAILED,
        Code.DRAINING,
        Code.LOST,
        Code.INTERNAL,
        Code.PROTOCOL,
    }
)
"""Failures that another node may not have."""
_ENGINES_FAULT = frozenset({Code.ENGINE_DOWN, Code.ENGINE_FAILED, Code.INTERNAL, Code.TIMEOUT})
_ITS_FAULT = (TRY_ELSEWHERE | {Code.TIMEOUT}) - {Code.DRAINING}
"""Failures that count as slow answers, when an engine is chosen."""


class OutcomeReporter:
    """Keeps latency estimates and circuit breakers up to date (Envoy: outlier detection)."""

    def __init__(
        self, known: RoutingState, registry: Registry, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.known = known
        self._registry = registry
        self._loop = loop

    def update_latency(
        self, attempt: Attempt, ending: Ending, model: str, hedging: Hedging, *, stream: bool
    ) -> None:
        """Measure how fast the engine was."""
        now, first, began = self._loop.time(), attempt.first_byte_at, attempt.clock.began_at
        engine, cold, latency = attempt.choice.engine, attempt.choice.cold_start, self.known.latency
        if ending.code in _ITS_FAULT or attempt.answer.status >= 500:
            latency.penalize(engine, model, now=now)
        elif ending.lost_hedge and not cold:
            hedging.observe_at_least(model, now - began, stream=stream)
            if stream:
                latency.observe_at_least(engine, model, now - began, now=now)
        elif ending.outcome == "ok" and first is not None:
            if not cold:
                hedging.observe(model, first - began, stream=stream)
            tokens = attempt.answer.meter.usage.completion_tokens
            if stream:
                rate = tokens_per_second(tokens, now - first)
                latency.update(engine, model, first - began, rate, now=now, cold=cold)
            else:  # the whole answer came at once
                rate = tokens_per_second(tokens, now - began)
                latency.update(engine, model, None, rate, now=now, cold=cold)

    def update_breaker(self, attempt: Attempt, ending: Ending, model: str) -> None:
        """Count a failure or a success in the engine's circuit breaker for ``model``.

        A 5xx that was passed on counts as neither: some engines answer so to a client's own
        mistake, and it is passed on only where no other engine could be asked.
        """
        engine = attempt.choice.engine
        breaker = engine.breakers.get(model)
        if ending.outcome in ("ok", "engine_error") and attempt.answer.status < 500:
            if breaker is not None:
                del engine.breakers[model]
        elif ending.code in _ENGINES_FAULT:
            if breaker is None:
                breaker = engine.breakers[model] = CircuitBreaker()
            seconds = breaker.record_failure(self._loop.time())
            if seconds is not None:
                self._loop.call_later(seconds, self._registry.room, engine.node)
                log.warning(
                    "engine avoided",
                    extra={
                        "node": engine.node.id,
                        "engine": engine.name,
                        "model": model,
                        "seconds": seconds,
                        "reason": ending.reason,
                    },
                )
        elif breaker is not None:
            breaker.release_probe()
