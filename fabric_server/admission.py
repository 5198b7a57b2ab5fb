"""Who is next: a request takes a free slot at once, or waits in line for one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection
from random import Random

from fabric_server import refusals
from fabric_server.nodes import Engine, Registry
from fabric_server.routing import choose

RETRY_AFTER_NODE = 5.0
"""Seconds after which a node that went away may be back: reconnecting takes it about so long."""


class _Waiter:
    __slots__ = ("exclude", "future")

    def __init__(self, future: asyncio.Future[Engine], exclude: Collection[str]) -> None:
        self.future = future
        self.exclude = exclude


class Admission:
    """One line per model, first come first served; a slot that becomes free is given at once."""

    def __init__(
        self, registry: Registry, *, rng: Random, queue_length: int, queue_timeout: float
    ) -> None:
        self._registry = registry
        self._rng = rng
        self._queue_length = queue_length
        self._queue_timeout = queue_timeout
        self._lines: dict[str, deque[_Waiter]] = {}
        registry.on_room = self._on_room

    @property
    def waiting(self) -> int:
        return sum(len(line) for line in self._lines.values())

    async def admit(self, model: str, exclude: Collection[str] = ()) -> Engine:
        """An engine with one of its slots taken; give it back with ``Registry.release``.

        Raises Refusal: the model is unknown, no node for it is up, the line is full, or the wait
        too long.
        """
        candidates = self._registry.candidates(model)
        if model not in self._lines:
            engine = choose(candidates, self._rng, exclude)
            if engine is not None:
                engine.active += 1
                return engine
        self._refuse_hopeless(model, candidates, exclude)
        return await self._wait(model, exclude)

    def another(self, model: str, exclude: Collection[str]) -> bool:
        """Whether some other node could take the request now."""
        return choose(self._registry.candidates(model), self._rng, exclude) is not None

    def _refuse_hopeless(
        self, model: str, candidates: tuple[Engine, ...], exclude: Collection[str]
    ) -> None:
        if not candidates and not self._registry.is_known(model):
            raise refusals.model_not_found(model)
        alive = [
            engine
            for engine in candidates
            if engine.healthy and engine.slots and engine.node.connected
        ]
        if all(engine.node.id in exclude for engine in alive):
            raise refusals.no_capacity(model, RETRY_AFTER_NODE)

    async def _wait(self, model: str, exclude: Collection[str]) -> Engine:
        line = self._lines.setdefault(model, deque())
        if len(line) >= self._queue_length:
            raise refusals.overloaded(f"Too many requests wait for '{model}'.", RETRY_AFTER_NODE)
        waiter = _Waiter(asyncio.get_running_loop().create_future(), exclude)
        line.append(waiter)
        try:
            async with asyncio.timeout(self._queue_timeout):
                return await waiter.future
        except (TimeoutError, asyncio.CancelledError) as error:
            self._leave(model, waiter)
            if isinstance(error, TimeoutError):
                raise refusals.no_capacity(model, RETRY_AFTER_NODE) from None
            raise

    def _leave(self, model: str, waiter: _Waiter) -> None:
        line = self._lines.get(model)
        if line is not None and waiter in line:
            line.remove(waiter)
            if not line:
                del self._lines[model]
        if waiter.future.done() and not waiter.future.cancelled():
            # Given a slot in the same turn in which the wait was given up: pass it on.
            self._registry.release(waiter.future.result())

    def _on_room(self, engine: Engine) -> None:
        if not self._lines:
            return
        for model in list(self._lines):
            if engine not in self._registry.candidates(model):
                continue
            line = self._lines[model]
            while line and engine.has_room:
                waiter = next((w for w in line if engine.node.id not in w.exclude), None)
                if waiter is None:
                    break
                line.remove(waiter)
                if not waiter.future.done():
                    engine.active += 1
                    waiter.future.set_result(engine)
            if not line:
                del self._lines[model]
