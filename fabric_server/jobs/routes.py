"""Routes of the public port whose handlers use the store: authenticated, with their own errors."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from fabric_server.auth.authenticator import KeyAuthenticator
from fabric_server.auth.keys import Key
from fabric_server.dialects.errors import ApiError
from fabric_server.edge.request import Request
from fabric_server.edge.router import Handler, Router
from fabric_server.gateway.authenticate import authenticate
from runtime.errors import BackendError, RecordError

log = logging.getLogger("fabric.jobs")

KeyHandler = Callable[[Request, Key], Awaitable[None]]
"""A handler of a request and of the key that it carries."""


class JobRoutes:
    """Adds handlers to the public port; they get authenticated requests, and may raise
    ``BackendError`` and ``RecordError``."""

    def __init__(self, router: Router, authenticator: KeyAuthenticator) -> None:
        self._router = router
        self._authenticator = authenticator

    def add(self, method: str, path: str, handler: KeyHandler) -> None:
        """Add a route; see ``Router.add``."""
        self._router.add(method, path, self._authenticated(handler))

    def replace(self, method: str, path: str, handler: KeyHandler) -> Handler:
        """Replace a route's handler, and return the one before; see ``Router.replace``."""
        return self._router.replace(method, path, self._authenticated(handler))

    def _authenticated(self, handler: KeyHandler) -> Handler:
        """Return a handler of the router, which calls this one with the request's key."""

        async def handle(request: Request) -> None:
            with store_errors(request):
                await handler(request, await authenticate(self._authenticator, request))

        return handle


@contextmanager
def store_errors(request: Request) -> Iterator[None]:
    """Raise ``ApiError`` for the store's errors, and log that it is away."""
    try:
        yield
    except RecordError:
        text = "The request has a value that can't be stored."
        raise ApiError(400, "invalid_value", text) from None
    except BackendError as error:
        log.warning("request refused", extra={"request": request.id, "reason": str(error)})
        raise _store_unavailable() from None


def _store_unavailable() -> ApiError:
    return ApiError(
        503,
        "store_unavailable",
        "What is stored here is not available at the moment. Retry in a few seconds.",
        type="server_error",
        retry_after=5.0,
    )
