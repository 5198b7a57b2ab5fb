"""What an attempt tells of its engine: for the next choice, and for its breaker."""

from __future__ import annotations

import asyncio
import logging

from fabric_server.nodes.circuit_breaker import CircuitBreaker
from fabric_server.nodes.registry import Registry
from fabric_server.proxy.attempt import Attempt, Ending
from fabric_server.proxy.hedging import Hedging
from fabric_server.routing.load_balancer import Knowledge
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
"""What another node may do better."""
_ENGINES_FAULT = frozenset({Code.ENGINE_DOWN, Code.ENGINE_FAILED, Code.INTERNAL, Code.TIMEOUT})
_ITS_FAULT = (TRY_ELSEWHERE | {Code.TIMEOUT}) - {Code.DRAINING}
"""What speaks against the engine, when the next one is chosen."""


class OutcomeReporter:
    def __init__(
        self, known: Knowledge, registry: Registry, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.known = known
        self._registry = registry
        self._loop = loop

    def learn(
        self, exchange: Attempt, ending: Ending, model: str, hedging: Hedging, *, stream: bool
    ) -> None:
        """How fast the engine was."""
        now, first, began = self._loop.time(), exchange.first_byte_at, exchange.began_at
        engine, cold, latency = exchange.engine, exchange.cold, self.known.latency
        if ending.code in _ITS_FAULT or exchange.status >= 500:
            latency.fail(engine, model, now=now)
        elif ending.beaten and not cold:
            hedging.learn_at_least(model, now - began, stream=stream)
            if stream:
                latency.outwait(engine, model, now - began, now=now)
        elif ending.outcome == "ok" and first is not None:
            if not cold:
                hedging.learn(model, first - began, stream=stream)
            tokens = exchange.usage.completion_tokens
            if stream:
                latency.learn(engine, model, first - began, tokens, now - first, now=now, cold=cold)
            else:  # it came in one piece
                latency.learn(engine, model, None, tokens, now - began, now=now, cold=cold)

    def judge(self, exchange: Attempt, ending: Ending, model: str) -> None:
        """Whether it works at all.

        A 5xx that was passed on tells nothing: some engines answer so to a user's own mistake, and
        with nobody else to ask, shutting this engine out would help no one.
        """
        engine = exchange.engine
        breaker = engine.breakers.get(model)
        if ending.outcome in ("ok", "engine_error") and exchange.status < 500:
            if breaker is not None:
                del engine.breakers[model]
        elif ending.code in _ENGINES_FAULT:
            if breaker is None:
                breaker = engine.breakers[model] = CircuitBreaker()
            seconds = breaker.failed(self._loop.time())
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
            breaker.let_go()
