"""Keeps the list of engines up to date: asks each of them regularly, and reports changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass

import aiohttp

from fabric_client.engines.addresses import Address, local
from fabric_client.engines.discovery import (
    DEFAULTS,
    MAX_ENGINES,
    Engine,
    EngineSettings,
    discover,
)
from fabric_client.offer.offered import HeldBack
from fabric_client.offer.patterns import Offer
from protocol.messages import EngineReport


@dataclass(frozen=True, kw_only=True)
class WatchTimes:
    """Times in seconds."""

    alive: float = 1.0
    """Interval of looks at an engine's health and its list of models."""
    refresh: float = 10.0
    """Interval of all other questions, and of searches for new engines."""
    repeat: float = 30.0
    """Interval of reports to the server when nothing changed."""


class Watcher:
    """Looks after all engines of a node.

    Run ``watch()`` in one task for as long as the node runs; ``reports`` and ``engine()`` may be
    used from anywhere in the loop at any time.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        addresses: Iterable[Address] = (),
        *,
        ports: Sequence[int] = (),
        settings: EngineSettings = DEFAULTS,
        times: WatchTimes = WatchTimes(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``ports`` of this machine are looked at for engines besides those at ``addresses``."""
        self._session = session
        self._settings = settings
        self._ports: tuple[int, ...] = ()
        self._times = times
        self._clock = clock
        self._poked = asyncio.Event()
        self._named_for: dict[Engine, str] = {}
        """The kind of engine that its name was chosen for."""
        self.engines: list[Engine] = []
        """Configured ones in their order, then those found; one that dies stays listed."""
        self.configure(addresses, ports, settings)

    @property
    def reports(self) -> list[EngineReport]:
        return [engine.report for engine in self.engines]

    @property
    def held_back(self) -> dict[str, list[HeldBack]]:
        """Models that are not offered, by the name of their engine."""
        return {one.name: held for one in self.engines if (held := one.offered.held_back)}

    def engine(self, name: str) -> Engine | None:
        """Return the engine of that name, healthy or not."""
        for engine in self.engines:  # called for each request, but there are few
            if engine.name == name:
                return engine
        return None

    @property
    def offer(self) -> Offer:
        """The models that are offered."""
        return self._settings.offer

    def configure(
        self, addresses: Iterable[Address], ports: Sequence[int], settings: EngineSettings
    ) -> None:
        """Look after these engines from now on, and for others at ``ports`` of this machine.

        Those that stay keep their names.  Requests that run at another one go on there.
        """
        self._ports, self._settings = tuple(ports), settings
        before = {engine.address: engine for engine in self.engines}
        self.engines = []
        for address in (*addresses, *(one for one in before if self._may_find(one))):
            if not self._knows(address):
                engine = before.get(address) or Engine(self._session, address, settings)
                engine.change_settings(settings)
                self.engines.append(engine)
        self._named_for = {
            one: kind for one, kind in self._named_for.items() if one in self.engines
        }
        self._give_names()
        self.poke()

    def poke(self) -> None:
        """Ask everything now: something may have changed."""
        self._poked.set()

    async def watch(self) -> AsyncIterator[list[EngineReport]]:
        """Yield the whole list at once, whenever it changes, and every ``repeat`` seconds.

        Ends only by cancellation.
        """
        reported: list[EngineReport] | None = None
        repeat_at = refresh_at = self._clock()
        while True:
            if self._poked.is_set() or self._clock() >= refresh_at:
                self._poked.clear()
                await self.refresh()
                refresh_at = self._clock() + self._times.refresh
            else:
                await self._check()
            if (reports := self.reports) != reported or self._clock() >= repeat_at:
                reported = reports
                repeat_at = self._clock() + self._times.repeat
                yield list(reports)
            try:
                async with asyncio.timeout(self._times.alive):
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
        # The settings may have changed since the search began.
        new = [one for one in new if self._may_find(one.address) and not self._knows(one.address)]
        for engine in new:
            engine.change_settings(self._settings)
        self.engines = [*self.engines, *new][:MAX_ENGINES]
        self._give_names()
        return self.reports

    async def _find(self) -> list[Engine]:
        free = [port for port in self._ports if not self._knows(local(port))]
        return await discover(self._session, free, self._settings)

    def _may_find(self, address: Address) -> bool:
        return any(address == local(port) for port in self._ports)

    def _knows(self, address: Address) -> bool:
        """Return whether an engine is listed; all names of this machine are one."""

        def place(one: Address) -> tuple[str, str]:
            return one.host, one.url.partition("://")[2].partition("/")[2]

        return any(place(engine.address) == place(address) for engine in self.engines)

    async def _check(self) -> None:
        async def one(engine: Engine) -> None:
            if await engine.alive() != engine.healthy or engine.outdated:
                await engine.probe()

        async with asyncio.TaskGroup() as group:
            for engine in self.engines:
                group.create_task(one(engine))
        self._give_names()

    def _give_names(self) -> None:
        """Name engines ``ollama``, ``ollama-2``, …; one keeps its name while it keeps its kind."""
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
    """Return the names of the models in memory now, for ``Heartbeat.loaded_models``."""
    names = (model.name for one in reports if one.healthy for model in one.models if model.loaded)
    return list(dict.fromkeys(names))[:512]
