"""A server as far as joining goes: the API port with nothing but enrolment, and a control port."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web

from fabric_server.dialects.errors import ApiError
from fabric_server.net.listener import Listener, Port
from fabric_server.pki.ca import DAY
from fabric_server.pki.certificates import Certificates
from fabric_server.pki.enrolment import Enrolment, routes
from fabric_server.pki.tls_contexts import TlsContexts
from fabric_server.storage.connect import open_store
from protocol.names import CONTROL_ALPN


class Clock:
    """Goes on only when told."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class Door:
    """``clock`` is the enrolment's; the certificates are as old as it."""

    def __init__(self, directory: Path, *, host: str = "127.0.0.1") -> None:
        self.directory = directory
        self.host = host
        self.clock = Clock()
        self.certificates = Certificates.open(directory / "certs", now=self.clock.now)
        self.contexts = TlsContexts(self.certificates)
        self.lifetime = 30 * DAY
        self.asked: list[str] = []
        """The paths asked for on the API port."""
        self.refused: list[str] = []
        """The codes of the machines' refusals."""
        self.before_answer: Callable[[web.Request, web.StreamResponse], None] = lambda *_: None
        """May change an answer, or prevent it."""

    async def __aenter__(self) -> Self:
        self.store = await open_store("sqlite://")
        self.enrolment = Enrolment(
            self.store,
            self.certificates,
            host=self.host,
            port=lambda name: (
                {"api": self.api, "control": self.control, "proxy": self.control}[name].port
            ),
            lifetime=self.lifetime,
            clock=self.clock,
        )
        application = web.Application()
        application.add_routes(routes(self.enrolment, self._refusing))
        application.on_response_prepare.append(self._answering)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        self.api = Listener(
            Port("api", ["127.0.0.1"], 0, lambda peer: server(), self.contexts.public, "loopback")
        )
        self.control = Listener(
            Port(
                "control",
                ["127.0.0.1"],
                0,
                lambda peer: asyncio.Protocol(),
                self.contexts.control,
                alpn=CONTROL_ALPN,
            )
        )
        self.api.open()
        self.control.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.api.close()
        await self.control.close()
        await self._runner.cleanup()
        await self.store.close()

    async def _refusing(self, request: web.Request, error: ApiError) -> None:
        self.refused.append(error.code)

    async def _answering(self, request: web.Request, answer: web.StreamResponse) -> None:
        self.asked.append(request.path)
        self.before_answer(request, answer)

    async def token(self, valid_for: float = 3600.0) -> str:
        return (await self.enrolment.invite(None, valid_for)).token
