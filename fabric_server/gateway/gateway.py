"""A request's story: whose it is, what it asks for, which node takes it, and what came of it."""

from __future__ import annotations

import asyncio
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from fabric_server.auth.keys import Accounts, Key
from fabric_server.auth.rate_limits import Limits
from fabric_server.dialects import errors
from fabric_server.dialects.body import EarlyBody, ParsedBody, parse_body
from fabric_server.dialects.endpoints import ENDPOINTS, SHOW, Endpoint
from fabric_server.dialects.errors import ApiError
from fabric_server.edge.request import Body, Request
from fabric_server.edge.router import Router
from fabric_server.gateway.authenticate import authenticate
from fabric_server.gateway.options import RequestOptions, read_options
from fabric_server.gateway.sse_keepalive import SseKeepalive
from fabric_server.net.deadlines import Deadlines
from fabric_server.nodes.registry import Registry
from fabric_server.proxy.attempt import Timeouts
from fabric_server.proxy.hedging import Hedging
from fabric_server.proxy.metrics import Metrics
from fabric_server.proxy.outcomes import OutcomeReporter
from fabric_server.proxy.request_record import RequestRecord
from fabric_server.proxy.retries import RetryLoop
from fabric_server.proxy.retry_budget import RetryBudget
from fabric_server.routing.admission import Admission
from fabric_server.routing.aliases import Aliases
from ledger.records import LEDGER, LedgerEntry

WHOLE_BODY = 256 * 1024
"""Bodies up to this size are read whole before anything is done; larger ones may flow through."""


class Bus(Protocol):
    @property
    def full(self) -> bool: ...
    def publish(self, topic: str, record: LedgerEntry) -> None: ...


class Gateway:
    def __init__(
        self,
        *,
        accounts: Accounts,
        registry: Registry,
        admission: Admission,
        deadlines: Deadlines,
        bus: Bus,
        metrics: Metrics,
        timeouts: Timeouts,
        aliases: Aliases | None = None,
        hedging: Hedging | None = None,
    ) -> None:
        self._accounts = accounts
        self.registry = registry
        self.admission = admission
        self.deadlines = deadlines
        self._bus = bus
        self.metrics = metrics
        self.timeouts = timeouts
        self.hedging = hedging or Hedging()
        self.budget = RetryBudget()
        self.aliases = aliases or {}
        self._loop = asyncio.get_running_loop()
        self.outcomes = OutcomeReporter(admission.router.knowledge, registry, self._loop)
        self.limits = Limits(self._loop.time)
        self.active = 0
        """Requests under way."""
        self._drafts: dict[str, set[RequestRecord]] = {}
        """Requests under way by the ids of their keys."""
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Wait until no request is under way."""
        await self._idle.wait()

    def cut(self, key_id: str) -> None:
        """This key is worth nothing from now on: end what runs on it."""
        for draft in tuple(self._drafts.get(key_id, ())):
            draft.end(errors.key_withdrawn())

    def running(self) -> list[RequestRecord]:
        """Requests under way, the oldest first."""
        drafts = [draft for some in self._drafts.values() for draft in some]
        return sorted(drafts, key=lambda draft: draft.request.arrived)

    def cancel(self, request_id: str) -> RequestRecord | None:
        """The operator wants this request ended; None when it is not under way."""
        for draft in self.running():
            if draft.request.id == request_id:
                draft.end(errors.cancelled())
                return draft
        return None

    def add_to(self, public: Router) -> None:
        for path, endpoint in ENDPOINTS.items():
            if endpoint is not SHOW:  # which the catalogue may know itself
                public.add("POST", path, self.complete)

    # ── /v1/chat/completions and its like ─────────────────────────────────────────────────────

    async def complete(self, request: Request) -> None:
        endpoint = request.endpoint = ENDPOINTS[request.path]
        key = await authenticate(self._accounts, request)
        draft = RequestRecord(key, request, asyncio.current_task(self._loop))
        self._begin(draft)
        try:
            if self._bus.full:
                raise errors.ledger_full()
            if key.limited:
                request.response_headers += self.limits.take(key)
            ask = await self._read_ask(request, endpoint, draft.key)
            draft.model, draft.stream = ask.model, ask.stream
            if not draft.key.allows(ask.model):
                raise errors.model_not_allowed(ask.model)
            terms = read_options(request.headers)
            with self._comments(request, endpoint, ask):
                await self._relay(request, endpoint, ask, terms, draft)
        except ApiError as refusal:
            if draft.outcome == "failed" and not draft.error:
                draft.outcome = "refused"
            draft.error = draft.error or refusal.code
            if not request.response.comments_sent:  # otherwise it is told within a stream
                request.response.status = refusal.status
            raise
        except asyncio.CancelledError:
            draft.outcome = "cancelled"
            if draft.cut is None or draft.task is None:  # the user has hung up
                request.response.status = request.response.status or 499
                raise
            draft.task.uncancel()
            draft.error, request.response.status = draft.cut.code, draft.cut.status
            raise draft.cut from None
        except Exception:
            draft.outcome, draft.error = "failed", "internal_error"
            request.response.status = request.response.status or 500
            raise
        finally:
            self._end(draft)
            self.record(draft)

    def _comments(
        self, request: Request, endpoint: Endpoint, ask: ParsedBody
    ) -> AbstractContextManager[None]:
        if not ask.stream or not endpoint.allows_comments:
            return nullcontext()
        return SseKeepalive(request, self.deadlines, self.admission.position, self._loop.time())

    def _begin(self, draft: RequestRecord) -> None:
        self.active += 1
        self._idle.clear()
        key_id = draft.key.id
        if key_id in self._drafts:
            self._drafts[key_id].add(draft)
        else:
            self._drafts[key_id] = {draft}

    def _end(self, draft: RequestRecord) -> None:
        self.active -= 1
        if not self.active:
            self._idle.set()
        drafts = self._drafts[draft.key.id]
        drafts.discard(draft)
        if not drafts:
            del self._drafts[draft.key.id]

    async def _read_ask(self, request: Request, endpoint: Endpoint, key: Key) -> ParsedBody:
        """What is asked.  As much of the body as had to be read to know it is in ``kept``."""
        body = request.body
        pieces = [body.take()]
        size = len(pieces[0])
        # What is further on could name another model, so that a key for some is read to its end.
        most = math.inf if endpoint.whole or key.models is not None else WHOLE_BODY
        while not body.complete and size < most:
            await body.more()
            pieces.append(body.take())
            size += len(pieces[-1])
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if body.complete:
            ask = parse_body(data, endpoint, request.headers.get(b"content-type", b""))
        else:
            ask, data = await self._read_early(body, endpoint, data)
        if ask.patch is not None:
            start, stop, text = ask.patch
            data = data[:start] + text + data[stop:]
        body.replay_buffer = data
        return ask

    async def _read_early(
        self, body: Body, endpoint: Endpoint, data: bytes
    ) -> tuple[ParsedBody, bytes]:
        early = EarlyBody(endpoint)
        ask = early.feed(data)
        while ask is None and not body.complete:
            await body.more()
            ask = early.feed(body.take())
        text = early.text
        return ask or parse_body(text, endpoint), text

    async def _relay(
        self,
        request: Request,
        endpoint: Endpoint,
        ask: ParsedBody,
        terms: RequestOptions,
        draft: RequestRecord,
    ) -> None:
        await RetryLoop(self, request, endpoint, ask, terms, draft).run()

    def record(self, draft: RequestRecord) -> None:
        """Into the ledger, once; of an answer before its last byte has left: whatever ends this
        process then, whoever has a whole answer is billed for it."""
        if draft.recorded:
            return
        draft.recorded = True
        entry = draft.entry(self._loop.time())
        self._bus.publish(LEDGER, entry)
        if draft.key.limited:
            tokens = (entry.prompt_tokens or 0) + (entry.completion_tokens or 0)
            self.limits.charge(draft.key, tokens)
        self.metrics.count(entry)
