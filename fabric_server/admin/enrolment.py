"""The enrolment routes; ``fabric_server.pki.enrolment`` has their handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from aiohttp import web

from fabric_server.admin.parameters import Authenticator, ClientTimeouts
from fabric_server.admin.routes import Handler
from fabric_server.dialects import errors
from fabric_server.storage.rows import Scope
from protocol import join


class Description(NamedTuple):
    """Properties that the handler's signature does not have."""

    text: str
    body: type[Any] | None
    result: type[Any] | None
    media: str


_DESCRIPTIONS = {
    join.CA_PATH: Description(
        "Return the certificate (PEM) of the fabric's CA. The hash in a join token proves it.",
        None,
        None,
        "application/x-pem-file",
    ),
    join.ENROL_PATH: Description(
        "Enrol this machine as a node, with the secret of a join token, which works once.",
        join.Enrol,
        join.Enrolled,
        "application/json",
    ),
}


class EnrolmentRoute:
    """An ``Operation`` (``routes``) whose handler reads requests and writes responses itself."""

    public = True
    scope: Scope | None = None
    statuses: Sequence[int] = (200,)
    parts: Sequence[str] = ()
    query: type[Any] | None = None

    def __init__(self, definition: web.RouteDef) -> None:
        self.method = definition.method
        self.path = definition.path
        self._handler = cast(Handler, definition.handler)
        self.name = self._handler.__name__
        self.description, self.body, self.result, self.media = _DESCRIPTIONS[self.path]

    async def run(
        self, request: web.Request, authenticator: Authenticator, timeouts: ClientTimeouts
    ) -> web.StreamResponse:
        """Respond within ``timeouts.enrol``.  Raises ``ApiError``."""
        try:
            async with asyncio.timeout(timeouts.enrol):
                return await self._handler(request)
        except TimeoutError:
            raise errors.too_slow("body") from None
