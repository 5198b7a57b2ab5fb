"""All that has to do with jobs, made in one place."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from random import Random

from fabric_server.auth.keys import Accounts, Key
from fabric_server.config import Config
from fabric_server.edge.router import Router
from fabric_server.jobs.batch_runner import BatchRunner
from fabric_server.jobs.batches import ENDPOINTS, Batches
from fabric_server.jobs.files import Files
from fabric_server.jobs.inference import Inference
from fabric_server.jobs.internal_request import InternalClient
from fabric_server.jobs.metrics import Backlog
from fabric_server.jobs.runner import Runner
from fabric_server.jobs.store_errors import StoreErrors
from fabric_server.jobs.webhooks import Webhooks
from fabric_server.nodes.registry import Registry
from fabric_server.routing.admission import Admission
from fabric_server.routing.aliases import Aliases
from fabric_server.storage.batches import BatchStore
from fabric_server.storage.files import FileStore
from fabric_server.storage.jobs import JobStore
from fabric_server.storage.store import SqlStore
from fabric_server.storage.webhooks import WebhookStore

MEMORY_SECONDS = 30 * 86_400.0
"""Models that were served in this time are known."""
KNOWN_SECONDS = 5.0
"""How long the store's answer is believed: users may ask as often as they like."""


class Jobs:
    """To be made when ``public`` has all else: lines of batches may ask what is in it by then."""

    def __init__(
        self,
        config: Config,
        store: SqlStore,
        accounts: Accounts,
        registry: Registry,
        admission: Admission,
        public: Router,
        aliases: Aliases,
        *,
        new_id: Callable[[], str],
        must_wait: Callable[[Key], float],
        rng: Random,
    ) -> None:
        """``new_id`` makes ids of requests, ``must_wait`` tells for how many seconds a key's limits
        let it ask nothing."""
        self._store = store
        self._known_names: set[str] = set()
        self._known_until = 0.0
        self._registry = registry
        self.aliases = aliases
        database = store.database
        jobs, files, batches = JobStore(database), FileStore(database), BatchStore(database)
        told = WebhookStore(database)
        self.backlog = Backlog(jobs, told, time.monotonic)
        self._webhooks = Webhooks(told, plain=config.webhook_http, private=config.webhook_private)
        self._runner = Runner(
            jobs,
            store,
            InternalClient(public.handle, new_id),
            rng=rng,
            jobs_at_once=config.jobs_at_once,
            lines_at_once=config.batch_at_once,
            models=self._served_names,
            must_wait=must_wait,
            in_line=lambda request_id: admission.position(request_id) is not None,
            webhook=self._webhooks.of_job,
        )
        self._files = Files(
            files,
            accounts,
            most=config.file_limit,
            most_of_account=config.files_per_account,
            days=config.files_days,
        )
        self._work = BatchRunner(
            batches,
            jobs,
            files,
            self._files,
            self._webhooks,
            owner=self._runner.owner,
            wake_jobs=self._runner.wake,
            known=self._known,
            results_seconds=config.results_hours * 3600.0,
            most_answered=config.files_per_account,
        )
        self._runner.on_line_end = self._work.wake
        self._inference = Inference(
            jobs,
            accounts,
            admission,
            self._runner,
            self._webhooks,
            models=self._models,
            known=self._known,
            most=config.jobs_per_account,
        )
        endpoints = [path for path in ENDPOINTS if public.has("POST", path)]
        self._batches = Batches(
            batches, files, accounts, self._webhooks, endpoints=endpoints, wake=self._work.wake
        )
        guarded = StoreErrors(public)
        for part in (self._inference, self._files, self._batches):
            part.add_to(guarded)

    async def run(self) -> None:
        """Until cancelled; jobs that run then are broken off, and are run after the next start."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._runner.run())
            group.create_task(self._work.run())
            group.create_task(self._webhooks.run())

    @property
    def under_way(self) -> Mapping[str, int]:
        """Jobs and lines that this server runs, by kind: ``job``, ``line``."""
        return self._runner.under_way

    @property
    def ended(self) -> Mapping[tuple[str, str], int]:
        """By this server since its start, by kind and state."""
        return self._runner.ended

    @property
    def deliveries(self) -> Mapping[str, int]:
        """Tries of webhooks by this server since its start, by result."""
        return self._webhooks.results

    def drain(self) -> None:
        """Begin nothing new; what has a slot may finish."""
        self._runner.drain()
        self._work.drain()

    def _names(self, model: str) -> tuple[str, ...]:
        return self.aliases.get(model, (model,))

    def _served(self, model: str) -> bool:
        return any(self._registry.candidates(name) for name in self._names(model))

    def _served_names(self) -> set[str]:
        """All by which what is served can be asked for."""
        names = {*self._registry.models(), *filter(self._served, self.aliases)}
        return names | {name.removesuffix(":latest") for name in names}

    async def _known(self, model: str) -> bool:
        """Whether anybody serves it, or did: another server may have its nodes."""
        if model in self.aliases or self._registry.is_known(model) or self._served(model):
            return True
        now = time.time()
        if now >= self._known_until:
            self._known_until = now + KNOWN_SECONDS
            self._known_names = set(await self._store.known_models(now - MEMORY_SECONDS))
        return model in self._known_names or f"{model}:latest" in self._known_names

    def _models(self) -> Mapping[str, bool]:
        served = {*self._registry.models(), *filter(self._served, self.aliases)}
        return {
            model: any(
                engine.has_room
                for name in self._names(model)
                for engine in self._registry.candidates(name)
            )
            for model in served
        }
