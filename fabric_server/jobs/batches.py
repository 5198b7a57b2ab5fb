"""``/v1/batches``: files of requests that run when there is capacity, as in OpenAI's API."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, unquote

import msgspec
from msgspec import Meta, Struct

from fabric_server.auth.keys import Key
from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.edge.request import Request
from fabric_server.gateway.options import read_variant, refuse_regions
from fabric_server.jobs.files import MAX_EXPIRY, MIN_EXPIRY
from fabric_server.jobs.metadata import Metadata
from fabric_server.jobs.paging import page, read_limit
from fabric_server.jobs.routes import JobRoutes
from fabric_server.jobs.submission import Webhook, parse, read_body
from fabric_server.jobs.webhooks import Webhooks
from fabric_server.routing.variants import WantedVariant
from fabric_server.storage.batches import BatchRow, BatchStore
from fabric_server.storage.files import FileStore

ENDPOINTS = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"}
)
DAY = 86_400.0
MAX_BODY = 64 * 1024
MAX_UNFINISHED = 20
"""Unfinished batches of one account."""
_json = msgspec.json.Encoder().encode


class ExpiresAfter(Struct, frozen=True, kw_only=True):
    """The field ``output_expires_after``: when the output files are deleted."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=MIN_EXPIRY, le=MAX_EXPIRY)]


class NewBatch(Struct, frozen=True, kw_only=True):
    """The fields of OpenAI's that are used; others are ignored."""

    input_file_id: Annotated[str, Meta(max_length=128)]
    endpoint: Annotated[str, Meta(max_length=128)]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    webhook: Webhook | None = None
    output_expires_after: ExpiresAfter | None = None


class Batches:
    """Handlers of ``/v1/batches…``."""

    def __init__(
        self,
        store: BatchStore,
        files: FileStore,
        webhooks: Webhooks,
        *,
        endpoints: Collection[str],
        wake: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``endpoints`` are the paths that lines may use; ``wake`` is called when there is work."""
        self._store = store
        self._files = files
        self._webhooks = webhooks
        self._endpoints = sorted(endpoints)
        self._wake = wake
        self._clock = clock

    def add_to(self, routes: JobRoutes) -> None:
        """Add the handlers to the public port."""
        routes.add("POST", "/v1/batches", self.create)
        routes.add("GET", "/v1/batches", self.list_batches)
        routes.add("GET", "/v1/batches/*", self.show)
        routes.add("POST", "/v1/batches/*", self.cancel)

    async def create(self, request: Request, key: Key) -> None:
        """Create a batch; its input file is checked later."""
        refuse_regions(request.headers)
        variant = read_variant(request.headers) or WantedVariant()
        new = parse(await read_body(request.body, MAX_BODY), NewBatch)
        if new.endpoint not in self._endpoints:
            text = f"'endpoint' must be one of {', '.join(self._endpoints)}."
            raise errors.bad_field("endpoint", text)
        file = await self._files.file(key.account, new.input_file_id)
        if file is None or file.purpose != "batch":
            text = f"There is no file '{new.input_file_id}' with the purpose 'batch'."
            raise ApiError(404, "file_not_found", text, param="input_file_id")
        webhook, secret = "", ""
        if new.webhook is not None:
            webhook, secret = await self._webhooks.register(key.account, new.webhook)
        now, expires = self._clock(), new.output_expires_after
        batch = BatchRow(
            id=f"batch_{int(now * 1000):011x}{secrets.token_hex(6)}",
            account=key.account,
            key_id=key.id,
            endpoint=new.endpoint,
            input_file=file.id,
            metadata=_json(new.metadata).decode(),
            webhook=webhook,
            created_at=now,
            expires_at=now + DAY,
            variant_quantization=variant.quantization,
            variant_digest=variant.digest,
            output_seconds=0 if expires is None else expires.seconds,
        )
        if not await self._store.add(batch, max_unfinished=MAX_UNFINISHED):
            text = f"This account has {MAX_UNFINISHED} unfinished batches already."
            raise ApiError(429, "too_many_batches", text, type="rate_limit_error", retry_after=60.0)
        self._wake()
        created = view(batch)
        if secret:
            created["webhook"] = {"secret": secret}
        request.respond(200, _json(created))

    async def list_batches(self, request: Request, key: Key) -> None:
        """List the account's batches, newest first."""
        query = parse_qs(request.query)
        limit = read_limit(query, 100)
        after = None
        if "after" in query:
            after = await self._find(key.account, query["after"][0], "after")
        found = await self._store.batches(key.account, after=after, limit=limit + 1)
        request.respond(200, _json(page(list(map(view, found[:limit])), len(found) > limit)))

    async def show(self, request: Request, key: Key) -> None:
        """Show one batch."""
        id = unquote(request.path.removeprefix("/v1/batches/"))
        request.respond(200, _json(view(await self._find(key.account, id, "id"))))

    async def cancel(self, request: Request, key: Key) -> None:
        """Cancel a batch: its running lines finish, the others are not run."""
        path = unquote(request.path.removeprefix("/v1/batches/"))
        id = path.removesuffix("/cancel")
        batch = await self._find(key.account, id, "id")
        if id == path:
            raise errors.wrong_method("POST", request.path, "GET")
        if batch.finished_at is not None:
            text = f"The batch '{id}' has ended already: it is {batch.state}."
            raise ApiError(409, "batch_ended", text)
        batch = await self._store.cancel(key.account, id, self._clock()) or batch
        self._wake()
        request.respond(200, _json(view(batch)))

    async def _find(self, account: str, id: str, param: str) -> BatchRow:
        batch = await self._store.batch(account, id)
        if batch is None:
            raise ApiError(404, "batch_not_found", f"There is no batch '{id}'.", param=param)
        return batch


def view(batch: BatchRow) -> dict[str, Any]:
    """Return OpenAI's batch object."""
    errors = msgspec.json.decode(batch.errors)
    ended = None if batch.finished_at is None else int(batch.finished_at)
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": batch.input_file,
        "completion_window": "24h",
        "status": batch.state,
        "output_file_id": batch.output_file or None,
        "error_file_id": batch.error_file or None,
        "created_at": int(batch.created_at),
        "expires_at": int(batch.expires_at),
        "in_progress_at": _second(batch.in_progress_at),
        "cancelling_at": _second(batch.cancelling_at),
        "finalizing_at": _second(batch.finalizing_at),
        **{
            f"{state}_at": ended if batch.state == state else None
            for state in ("completed", "failed", "expired", "cancelled")
        },
        "request_counts": {
            "total": batch.total,
            "completed": batch.completed,
            "failed": batch.failed,
        },
        "usage": msgspec.json.decode(batch.usage),
        "metadata": msgspec.json.decode(batch.metadata),
    }


def _second(at: float | None) -> int | None:
    return None if at is None else int(at)
