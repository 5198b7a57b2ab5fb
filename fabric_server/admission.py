"""Who is next: a request takes a free slot at once, or waits in line for one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection
from random import Random

from fabric_server import refusals
from fabric_server.nodes import Engine, Node, Registry
from fabric_server.routing import Router
from fabric_server.wish import Wish

RETRY_AFTER_NODE = 5.0
"""Seconds after which a node that went away may be back: reconnecting takes it about so long."""


class _Waiter:
    __slots__ = ("exclude", "future", "number")

    def __init__(
        self, number: int, future: asyncio.Future[Engine], exclude: Collection[str]
    ) -> None:
        self.number = number
        self.future = future
        self.exclude = exclude


class Admission:
    """One line per model; a slot that becomes free goes at once to who has waited longest for it.

    So, while an engine has room, nobody waits who could use it, and whoever comes may take it.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        rng: Random,
        queue_length: int,
        queue_timeout: float,
        router: Router | None = None,
    ) -> None:
        """``queue_length`` is the most requests that may wait for one model; times in seconds."""
        self._registry = registry
        self.router = router or Router(registry.engine, rng)
        self._queue_length = queue_length
        self._queue_timeout = queue_timeout
        self._lines: dict[str, deque[_Waiter]] = {}
        self._count = 0
        self._loop = asyncio.get_running_loop()
        registry.on_room = self._on_room

    @property
    def waiting(self) -> int:
        return sum(len(line) for line in self._lines.values())

    async def admit(
        self, model: str, exclude: Collection[str] = (), wish: Wish | None = None
    ) -> Engine:
        """An engine with one of its slots taken; give it back with ``Registry.release``.

        Raises Refusal: the model is unknown, no node for it is up, the line is full, or the wait
        too long.
        """
        now = self._loop.time()
        candidates = self._registry.able(model, now)
        wish = wish or Wish(model, tried=list(exclude))
        choice = self.router.choose(candidates, wish, now)
        if choice is not None:
            wish.why = choice.why
            choice.engine.active += 1
            return choice.engine
        if not self._registry.candidates(model) and not self._registry.is_known(model):
            raise refusals.model_not_found(model)
        if not any(_may_serve(engine, exclude) for engine in candidates):
            raise refusals.no_capacity(model, RETRY_AFTER_NODE)
        wish.why = "the first free one after a wait"
        return await self._wait(model, exclude)

    def another(self, model: str, exclude: Collection[str]) -> bool:
        """Whether some other node could take the request now."""
        wish = Wish(model, tried=list(exclude))
        now = self._loop.time()
        return self.router.choose(self._registry.able(model, now), wish, now) is not None

    async def _wait(self, model: str, exclude: Collection[str]) -> Engine:
        line = self._lines.get(model, ())
        if len(line) >= self._queue_length:
            raise refusals.overloaded(f"Too many requests wait for '{model}'.", RETRY_AFTER_NODE)
        self._count += 1
        waiter = _Waiter(self._count, asyncio.get_running_loop().create_future(), exclude)
        self._lines.setdefault(model, deque()).append(waiter)
        try:
            async with asyncio.timeout(self._queue_timeout):
                return await waiter.future
        except TimeoutError:
            self._leave(model, waiter)
            raise refusals.no_capacity(model, RETRY_AFTER_NODE) from None
        except asyncio.CancelledError:
            self._leave(model, waiter)
            raise

    def _leave(self, model: str, waiter: _Waiter) -> None:
        if waiter.future.done() and not waiter.future.cancelled():
            # Given a slot in the same turn in which the wait was given up: pass it on.
            self._registry.release(waiter.future.result())
        else:
            self._remove(model, waiter)

    def _remove(self, model: str, waiter: _Waiter) -> None:
        line = self._lines.get(model)
        if line is not None and waiter in line:
            line.remove(waiter)
            if not line:
                del self._lines[model]

    def _on_room(self, node: Node) -> None:
        if not self._lines:
            return
        for engine in node.engines.values():
            while engine.has_room and (first := self._first_for(engine)):
                model, waiter = first
                self._remove(model, waiter)
                if not waiter.future.done():
                    engine.active += 1
                    waiter.future.set_result(engine)

    def _first_for(self, engine: Engine) -> tuple[str, _Waiter] | None:
        """Who has waited longest of those that this engine could serve."""
        first: tuple[str, _Waiter] | None = None
        now = self._loop.time()
        for model, line in self._lines.items():
            if engine in self._registry.able(model, now):
                waiter = next((w for w in line if engine.node.id not in w.exclude), None)
                if waiter and (first is None or waiter.number < first[1].number):
                    first = model, waiter
        return first


def _may_serve(engine: Engine, exclude: Collection[str]) -> bool:
    """Whether it is worth waiting for."""
    return (
        engine.healthy
        and engine.slots > 0
        and engine.node.connected
        and engine.node.id not in exclude
    )
