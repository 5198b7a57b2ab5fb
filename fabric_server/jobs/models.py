"""The models that jobs and batches can name: those served now, and those served lately."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from fabric_server.gateway.requirements import check_variant
from fabric_server.nodes.registry import Registry
from fabric_server.nodes.standing import ROOM
from fabric_server.routing.aliases import Aliases
from fabric_server.routing.load_balancer import reports_of
from fabric_server.routing.variants import WantedVariant

HISTORY_SECONDS = 30 * 86_400.0
"""Models that any server's node served within this time are known."""
REFRESH_SECONDS = 5.0
"""Time for which the store's list is cached: clients may send unknown models at any rate."""


class Store(Protocol):
    async def known_models(self, since: float) -> list[str]: ...


class ServedModels:
    """Models by their public names: real names and ``aliases``, which a reload replaces."""

    def __init__(
        self,
        registry: Registry,
        store: Store,
        aliases: Aliases,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.aliases = aliases
        self._registry = registry
        self._store = store
        self._clock = clock
        self._history: set[str] = set()
        self._history_until = 0.0

    def names(self) -> set[str]:
        """Return every name by which a model that is served now can be requested."""
        names = self._served()
        return names | {name.removesuffix(":latest") for name in names}

    def availability(self) -> Mapping[str, bool]:
        """Tell for each model that is served now whether it has a free slot."""
        return {
            model: any(
                engine.has_room
                for name in self._real_names(model)
                for engine in self._registry.candidates(name).up_to(ROOM)
            )
            for model in self._served()
        }

    async def is_known(self, model: str) -> bool:
        """Return whether the model is served, here or by another server, or was lately."""
        if model in self.aliases or self._registry.is_known(model) or self._is_served(model):
            return True
        now = time.monotonic()
        if now >= self._history_until:
            self._history_until = now + REFRESH_SECONDS
            self._history = set(await self._store.known_models(self._clock() - HISTORY_SECONDS))
        return model in self._history or f"{model}:latest" in self._history

    def check_variant(self, model: str, wanted: WantedVariant | None) -> None:
        """Raise ApiError 404 when the model is served here now, and not in these weights."""
        if wanted is None:
            return
        reports = [
            report
            for name in self._real_names(model)
            for report in reports_of(self._registry.candidates(name), name)
        ]
        if reports:
            check_variant(model, wanted, reports)

    def _served(self) -> set[str]:
        return {*self._registry.models(), *filter(self._is_served, self.aliases)}

    def _is_served(self, model: str) -> bool:
        return any(self._registry.candidates(name) for name in self._real_names(model))

    def _real_names(self, model: str) -> tuple[str, ...]:
        return self.aliases.get(model, (model,))
