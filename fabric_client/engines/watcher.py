"""Keeps the list of engines true: asks them in turn, notices what changed, says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

import aiohttp

from fabric_client.engines.addresses import Address, local
from fabric_client.engines.discovery import DEFAULT_PORTS, MAX_ENGINES, PATIENCE, Engine, discover
from protocol.messages import EngineReport


class Watcher:
    """Looks after all engines of a node.

    Run ``watch()`` in one task for as long as the node runs; ``reports`` and ``engine()`` may be
    used from anywhere in the loop at any time.  Times are in seconds.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        addresses: Iterable[Address] = (),
        *,
        discover: bool = True,
        slots: int | None = None,
        ports: Sequence[int] = tuple(DEFAULT_PORTS.values()),
        pulse: float = 2.0,
        refresh: float = 10.0,
        repeat: float = 30.0,
        timeouts: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``pulse``: how often to ask each engine whether it lives; ``refresh``: how often for its
        models, and whether a new engine has come up on one of ``ports``; ``repeat``: how often the
        list is told when nothing changed; ``timeouts``: how long an answer may take."""
        self._session = session
        self._slots = slots
        self._timeouts = timeouts
        self._ports = tuple(ports) if discover else ()
        self._pulse = pulse
        self._refresh = refresh
        self._repeat = repeat
        self._clock = clock
        self._poked = asyncio.Event()
        self._named_for: dict[Engine, str] = {}
        self.engines: list[Engine] = []
        """Those configured in their order, then those found; one that dies stays listed."""
        for address in addresses:
            if not self._knows(address):
                self.engines.append(self._engine(address))
        self._give_names()

    @property
    def reports(self) -> list[EngineReport]:
        return [engine.report for engine in self.engines]

    def engine(self, name: str) -> Engine | None:
        """The engine of that name, healthy or not."""
        for engine in self.engines:  # asked for each request, and there are few
            if engine.name == name:
                return engine
        return None

    def poke(self) -> None:
        """Ask everything now: somebody has reason to think that something changed."""
        self._poked.set()

    async def watch(self) -> AsyncIterator[list[EngineReport]]:
        """Yield the whole list at once, whenever it changes, and every ``repeat`` seconds.

        Ends only by cancellation.
        """
        told: list[EngineReport] | None = None
        repeat_at = refresh_at = self._clock()
        while True:
            if self._poked.is_set() or self._clock() >= refresh_at:
                self._poked.clear()
                await self.refresh()
                refresh_at = self._clock() + self._refresh
            else:
                await self._check()
            if (reports := self.reports) != told or self._clock() >= repeat_at:
                told = reports
                repeat_at = self._clock() + self._repeat
                yield list(reports)
            try:
                async with asyncio.timeout(self._pulse):
                    await self._poked.wait()
            except TimeoutError:
                continue

    async def refresh(self) -> list[EngineReport]:
        """Look for new engines and ask all of them everything, once."""
        async with asyncio.TaskGroup() as group:
            for engine in self.engines:
                group.create_task(engine.probe())
            found = group.create_task(self._find())
        new = found.result()
        async with asyncio.TaskGroup() as group:
            for engine in new:
                group.create_task(engine.probe())
        self.engines = [*self.engines, *new][:MAX_ENGINES]
        self._give_names()
        return self.reports

    async def _find(self) -> list[Engine]:
        free = [port for port in self._ports if not self._knows(local(port))]
        return await discover(self._session, free, slots=self._slots, timeouts=self._timeouts)

    def _engine(self, address: Address) -> Engine:
        return Engine(self._session, address, slots=self._slots, timeouts=self._timeouts)

    def _knows(self, address: Address) -> bool:
        """Two ways to write one address are one engine: loopback hosts are all called localhost."""

        def place(one: Address) -> tuple[str, str]:
            return one.host, one.url.partition("://")[2].partition("/")[2]

        return any(place(engine.address) == place(address) for engine in self.engines)

    async def _check(self) -> None:
        async def one(engine: Engine) -> None:
            if await engine.alive() != engine.healthy:
                await engine.probe()

        async with asyncio.TaskGroup() as group:
            for engine in self.engines:
                group.create_task(one(engine))
        self._give_names()

    def _give_names(self) -> None:
        """``ollama``, ``ollama-2``, …: kept for as long as the engine keeps its kind."""
        for engine in self.engines:
            if self._named_for.get(engine) == engine.kind:
                continue
            taken = {other.name for other in self._named_for if other is not engine}
            name, number = engine.kind, 1
            while name in taken:
                number += 1
                name = f"{engine.kind}-{number}"
            engine.name = name
            self._named_for[engine] = engine.kind


def loaded_models(reports: Iterable[EngineReport]) -> list[str]:
    """Names of the models in memory now, for ``Heartbeat.loaded_models``."""
    names = (model.name for one in reports if one.healthy for model in one.models if model.loaded)
    return list(dict.fromkeys(names))[:512]
