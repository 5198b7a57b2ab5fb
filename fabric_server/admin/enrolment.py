"""Describes the enrolment paths, which ``fabric_server.pki.enrolment`` answers, for this port."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from aiohttp import web

from fabric_server.admin.parameters import Accounts, Timeouts
from fabric_server.admin.routes import Handler
from fabric_server.dialects import errors
from protocol import join


class Description(NamedTuple):
    text: str
    body: type[Any] | None
    gives: type[Any] | None
    media: str


_DESCRIPTIONS = {
    join.CA_PATH: Description(
        "The certificate (PEM) of the fabric's CA: a joining machine compares it with its token.",
        None,
        None,
        "application/x-pem-file",
    ),
    join.ENROL_PATH: Description(
        "Become a node, once, with the secret of a join token.",
        join.Enrol,
        join.Enrolled,
        "application/json",
    ),
}


class Joining:
    """A row of the table (``routes.Row``) whose handler reads and writes by itself."""

    public = True
    statuses: Sequence[int] = (200,)
    parts: Sequence[str] = ()
    query: type[Any] | None = None

    def __init__(self, definition: web.RouteDef) -> None:
        self.method = definition.method
        self.path = definition.path
        self._handler = cast(Handler, definition.handler)
        self.name = self._handler.__name__
        self.description, self.body, self.gives, self.media = _DESCRIPTIONS[self.path]

    async def run(
        self, request: web.Request, accounts: Accounts, timeouts: Timeouts
    ) -> web.StreamResponse:
        try:
            async with asyncio.timeout(timeouts.enrol):
                return await self._handler(request)
        except TimeoutError:
            raise errors.too_slow("body") from None
