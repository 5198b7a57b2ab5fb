"""The parts of jobs, files, batches, webhooks and stored answers, built and run together."""

from __future__ import annotations

import time
from collections.abc import Mapping
from random import Random

from fabric_server.config import Config
from fabric_server.jobs.batch_input import BatchInput
from fabric_server.jobs.batch_leases import BatchLeases
from fabric_server.jobs.batch_lines import BatchLines
from fabric_server.jobs.batch_output import BatchOutput
from fabric_server.jobs.batch_runner import BatchRunner
from fabric_server.jobs.batches import ENDPOINTS, Batches
from fabric_server.jobs.chats import Chats
from fabric_server.jobs.context import JobsContext
from fabric_server.jobs.executor import JobExecutor
from fabric_server.jobs.files import Files
from fabric_server.jobs.finisher import JobFinisher
from fabric_server.jobs.inference import Inference
from fabric_server.jobs.internal_request import InternalClient
from fabric_server.jobs.job_views import JobViews
from fabric_server.jobs.metrics import Backlog
from fabric_server.jobs.models import ServedModels
from fabric_server.jobs.responses import Responses
from fabric_server.jobs.retention import Retention
from fabric_server.jobs.routes import JobRoutes
from fabric_server.jobs.runner import Runner
from fabric_server.jobs.scheduler import Scheduler
from fabric_server.jobs.stored_answers import StoredAnswers, StoredLimits
from fabric_server.jobs.webhooks import Webhooks
from fabric_server.routing.aliases import Aliases
from fabric_server.storage.answers import AnswerStore
from fabric_server.storage.batches import BatchStore
from fabric_server.storage.files import FileStore
from fabric_server.storage.jobs import JobStore
from fabric_server.storage.webhooks import WebhookStore
from runtime.background import Work


class Jobs:
    """Jobs, files, batches, webhooks and stored answers of one server.

    Build it when the public port has all its other routes: batch lines may use those, and no
    others.
    """

    def __init__(
        self, config: Config, context: JobsContext, aliases: Aliases, *, rng: Random
    ) -> None:
        database = context.store.database
        jobs, files, batches = JobStore(database), FileStore(database), BatchStore(database)
        deliveries = WebhookStore(database)
        self.backlog = Backlog(jobs, deliveries, time.monotonic)
        self._models = ServedModels(context.registry, context.store, aliases)
        self._webhooks = Webhooks(
            deliveries,
            allow_http=config.webhook_http,
            allow_private=config.webhook_private,
            outage=context.outage,
        )
        client = InternalClient(context.router.handle, context.new_request_id, context.memory)
        self._finisher = JobFinisher(jobs, self._webhooks)
        self._runner = Runner(
            jobs,
            JobExecutor(context.store, client, context.admission, context.gateway.must_wait),
            self._finisher,
            Scheduler(max_jobs=config.jobs_at_once, max_lines=config.batch_at_once, rng=rng),
            self._models,
            outage=context.outage,
        )
        file_routes = Files(
            files,
            max_bytes=config.file_limit,
            max_account_bytes=config.files_per_account,
            days=config.files_days,
        )
        self._batch_runner = BatchRunner(
            BatchLeases(batches, self._webhooks, self._runner.owner, self._runner.lease_clock.now),
            BatchLines(jobs, max_response_bytes=config.files_per_account),
            BatchInput(files, self._models.is_known, self._models.check_variant),
            BatchOutput(jobs, files, file_routes),
            Retention(
                jobs,
                batches,
                files,
                result_seconds=config.results_hours * 3600.0,
                max_result_bytes=config.files_per_account,
            ),
            outage=context.outage,
        )
        self._runner.on_line_end = self._batch_runner.wake
        self._batch_runner.on_lines_added = self._runner.wake
        inference = Inference(
            jobs,
            self._runner,
            self._webhooks,
            self._models,
            JobViews(self._runner.running, context.admission),
            max_unfinished=config.jobs_per_account,
        )
        batch_routes = Batches(
            batches,
            files,
            self._webhooks,
            endpoints=[path for path in ENDPOINTS if context.router.has("POST", path)],
            wake=self._batch_runner.wake,
        )
        routes = JobRoutes(context.router, context.authenticator)
        for part in (inference, file_routes, batch_routes):
            part.add_to(routes)
        if config.stored_days:
            stored = StoredAnswers(
                AnswerStore(database),
                context.memory,
                StoredLimits(account_bytes=config.stored_per_account, days=config.stored_days),
            )
            Responses(stored, max_body=config.body_limit).add_to(routes)
            chats = context.gateway.keeper = Chats(stored)
            chats.add_to(routes, context.router)

    def parts(self) -> Mapping[str, Work]:
        """Return the work to be done in the background; jobs that run when it is cancelled go back
        into the queue."""
        return {
            "jobs": self._runner.run,
            "batches": self._batch_runner.run,
            "webhooks": self._webhooks.run,
        }

    def set_aliases(self, aliases: Aliases) -> None:
        """Replace the public names of models."""
        self._models.aliases = aliases

    def drain(self) -> None:
        """Begin nothing new; jobs that have a slot may finish."""
        self._runner.drain()
        self._batch_runner.drain()

    @property
    def under_way(self) -> Mapping[str, int]:
        """Jobs and batch lines that this server runs, by kind: ``job`` or ``line``."""
        return self._runner.under_way

    @property
    def ended(self) -> Mapping[tuple[str, str], int]:
        """Jobs and batch lines ended by this server since its start, by kind and state."""
        return self._finisher.ended

    @property
    def deliveries(self) -> Mapping[str, int]:
        """Webhook attempts of this server since its start, by result."""
        return self._webhooks.results
