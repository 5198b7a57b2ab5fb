"""The gateway: a request's way from its key to an engine's answer and the ledger."""

from __future__ import annotations

import asyncio
from typing import Protocol

from msgspec.structs import replace

from fabric_server.auth.authenticator import KeyAuthenticator
from fabric_server.auth.keys import Key
from fabric_server.auth.leases import Leases
from fabric_server.auth.rate_limits import AT_ONCE_RETRY
from fabric_server.dialects import errors
from fabric_server.dialects.body import STORE
from fabric_server.dialects.endpoints import ENDPOINTS, SHOW, Endpoint, named
from fabric_server.edge.request import Request
from fabric_server.edge.router import Router
from fabric_server.gateway.active_requests import ActiveRequests
from fabric_server.gateway.authenticate import authenticate
from fabric_server.gateway.body_reader import read_body, rename_model
from fabric_server.gateway.deployments import Deployments
from fabric_server.gateway.media import Media
from fabric_server.gateway.options import PRIORITY, read_options
from fabric_server.gateway.requirements import build_requirements
from fabric_server.gateway.stream_keepalive import StreamKeepalive
from fabric_server.proxy.request_options import RequestOptions
from fabric_server.proxy.request_record import RequestRecord
from fabric_server.proxy.retries import RetryLoop
from fabric_server.proxy.upstream import UpstreamContext
from fabric_server.routing.aliases import Aliases


class Keeper(Protocol):
    """Has answers stored whose requests ask for it."""

    async def keep(self, record: RequestRecord) -> None:
        """Let the request have another response and endpoint, if its answer is to be stored: its
        body is read, and no engine is asked yet.  Raises ``ApiError`` to refuse the request."""


class Gateway:
    """Answers the requests that go to engines."""

    def __init__(
        self,
        authenticator: KeyAuthenticator,
        upstream: UpstreamContext,
        aliases: Aliases | None = None,
        media: Media | None = None,
    ) -> None:
        """URLs of media are refused if ``media`` is not given."""
        self._authenticator = authenticator
        self.upstream = upstream
        self.aliases = aliases or {}
        self.limits = upstream.ledger.limits
        self.media = media or Media(None, "data")
        self.active = ActiveRequests()
        self.keeper: Keeper | None = None
        """Keeps answers for requests whose endpoint ``stores``."""
        self._ledger = upstream.ledger
        self._loop = asyncio.get_running_loop()

    def add_to(self, router: Router) -> None:
        for path, endpoint in ENDPOINTS.items():
            if endpoint is not SHOW:  # the model catalog may answer that itself
                router.add("POST", path, self.complete)
        Deployments(router).add_to(router)

    async def must_wait(self, key: Key) -> float:
        """Return the seconds for which the key's limits refuse its requests; 0 when they don't."""
        if isinstance(self.limits, Leases):
            return await self.limits.must_wait(key) if key.limited else 0.0
        seconds = self.limits.must_wait(key)
        return max(seconds, AT_ONCE_RETRY) if self.active.at_limit(key) else seconds

    async def complete(self, request: Request) -> None:
        """Answer a request for an engine, and write it to the ledger.

        Its endpoint is that of its path, unless the caller has set one that changes the answer.
        Raises ApiError when there is no answer, and nothing of one has reached the client.
        """
        endpoint = request.endpoint = request.endpoint or ENDPOINTS[request.path]
        key = await authenticate(self._authenticator, request)
        record = RequestRecord(key, request, asyncio.current_task(self._loop))
        self.active.add(record)
        leases = None
        try:
            if self._ledger.bus.full:
                raise errors.ledger_full()
            request.admit()
            if key.limited:
                limits = self.limits
                if isinstance(limits, Leases):
                    told = await limits.admit(key)
                    request.response.headers += told
                    leases = limits
                else:
                    self.active.check(key)
                    request.response.headers += limits.take(key)
            if request.body.preparations:
                for prepare in request.body.preparations:
                    await prepare(key)
                endpoint = request.endpoint
            # The end may name another model, which a key for some models must not get.
            to_end = endpoint.buffers_body or key.models is not None
            parsed, large = await read_body(request, self.media, to_end=to_end)
            record.parsed = parsed
            if not key.allows(parsed.model):
                raise errors.model_not_allowed(parsed.model)
            options = read_options(request.headers, key.priority)
            if PRIORITY in request.headers:
                request.response.headers.append((PRIORITY, options.priority.label))
            body = request.body
            if large is None:
                concerns = self.media.concerns(body.replay_buffer, endpoint)
            else:
                large.check()
                concerns = large.has_references
            if endpoint.stores and body.flowing is None and STORE in body.replay_buffer:
                assert self.keeper is not None
                await self.keeper.keep(record)
                endpoint = request.endpoint
            if concerns:
                await self.media.replace(body, endpoint)
                record.parsed = replace(parsed, place=None)
            if not parsed.stream or endpoint.streams is None:
                await self._forward(record, endpoint, options)
            else:
                with self._keepalive(record, endpoint):
                    await self._forward(record, endpoint, options)
        except (Exception, asyncio.CancelledError) as error:
            raise record.fail(error) from None
        finally:
            self.active.remove(record)
            if leases is not None:
                leases.leave(key)
            self._ledger.write(record)

    def _keepalive(self, record: RequestRecord, endpoint: Endpoint) -> StreamKeepalive:
        """Keep a stream alive while nothing comes of its answer."""
        upstream = self.upstream
        return StreamKeepalive(
            record,
            endpoint,
            upstream.deadlines,
            upstream.admission.position,
            self._loop.time(),
        )

    async def _forward(
        self, record: RequestRecord, endpoint: Endpoint, options: RequestOptions
    ) -> None:
        """Ask engines that meet the requirements, one after the other, until one has answered."""
        requirements, size = build_requirements(
            record, endpoint, options, self.upstream.registry, self.aliases
        )
        if requirements.model != record.parsed.model:
            asked = record.parsed.model
            growth = await rename_model(record.request, record.parsed, requirements.model)
            record.request.endpoint = named(endpoint, requirements.model, asked)
            size = None if size is None else size + growth
        await RetryLoop(self.upstream, record, requirements, options, size).run()
