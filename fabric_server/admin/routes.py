"""Routes of the API port.  Requests are parsed by the signature of their handler, and the OpenAPI
document is generated from it, so that the two can't differ.

    query   a Struct, filled from the query string
    body    a Struct, filled from the JSON body
    by      the management key of the request
    others  parts of the path

A handler returns a Struct, ``Text``, or a status and a Struct: ``tuple[Literal[200, 503], Ready]``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol, get_args, get_origin, get_type_hints

from aiohttp import web

from fabric_server.admin.middleware import (
    KEY,
    ApiClient,
    json_response,
    recognise,
    text_response,
)
from fabric_server.admin.parameters import (
    Authenticator,
    ClientTimeouts,
    authenticate,
    read_body,
    read_query,
)
from fabric_server.auth.keys import Key
from fabric_server.dialects.errors import ApiError
from fabric_server.net.failure_throttle import FailureThrottle
from fabric_server.storage.rows import Scope

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Operation(Protocol):
    """A method and path that is served, and described in the OpenAPI document."""

    method: str
    path: str
    name: str
    """The unique ``operationId``."""
    description: str
    """The first line is the summary."""
    public: bool
    """True if requests need no management key."""
    scope: Scope | None
    """A management key with this scope may use it; None: only keys that may do everything."""
    parts: Sequence[str]
    query: type[Any] | None
    body: type[Any] | None
    statuses: Sequence[int]
    """Statuses of responses that are no errors."""
    result: Any
    """The type of the body of such responses."""
    media: str
    """The content type of such responses."""

    async def run(
        self, request: web.Request, authenticator: Authenticator, timeouts: ClientTimeouts
    ) -> web.StreamResponse:
        """Respond to the request.  Raises ``ApiError``."""


class Text(NamedTuple):
    """A response that is not JSON."""

    body: bytes
    content_type: str


class Route:
    """An ``Operation`` that its handler's signature and docstring describe."""

    def __init__(
        self,
        method: str,
        path: str,
        handler: Callable[..., Awaitable[Any]],
        *,
        status: int = 200,
        public: bool = False,
        scope: Scope | None = None,
    ) -> None:
        self.method = method
        self.path = path
        self.handler = handler
        self.name = handler.__name__
        self.description = inspect.getdoc(handler) or ""
        self.public = public
        self.scope = scope
        hints = get_type_hints(handler)
        result = hints.pop("return")
        self.statuses: Sequence[int] = (status,)
        if get_origin(result) is tuple:
            statuses, result = get_args(result)
            self.statuses = get_args(statuses)
        self.result: Any = result
        self.media = "text/plain" if result is Text else "application/json"
        self.query: type[Any] | None = hints.pop("query", None)
        self.body: type[Any] | None = hints.pop("body", None)
        self.parts: Sequence[str] = re.findall(r"{(\w+)}", path)
        self._takes_key = hints.pop("by", None) is Key
        if set(hints) != set(self.parts) or (self._takes_key and public):
            raise TypeError(f"{handler.__qualname__} does not fit {method} {path}")

    def __repr__(self) -> str:
        return f"<Route {self.method} {self.path}{' public' if self.public else ''}>"

    async def run(
        self, request: web.Request, authenticator: Authenticator, timeouts: ClientTimeouts
    ) -> web.StreamResponse:
        """Authenticate, parse the request, call the handler, and encode what it returns."""
        arguments: dict[str, Any] = {part: request.match_info[part] for part in self.parts}
        if not self.public:
            key = request[KEY] = await authenticate(request, authenticator, self.scope)
            recognise(request)
            if self._takes_key:
                arguments["by"] = key
        if self.query is not None:
            arguments["query"] = read_query(request, self.query)
        if self.body is not None:
            arguments["body"] = await read_body(request, self.body, timeouts.body)
        result = await self.handler(**arguments)
        if isinstance(result, Text):
            return text_response(result.body, result.content_type)
        status, result = result if isinstance(result, tuple) else (self.statuses[0], result)
        return json_response(result, status)


def mount(
    application: web.Application,
    operations: Sequence[Operation],
    authenticator: Authenticator,
    timeouts: ClientTimeouts,
    throttle: FailureThrottle,
) -> None:
    """Add the operations to the application's router; each GET answers HEAD, too."""
    for operation in operations:
        handler = _handler(operation, authenticator, timeouts, throttle)
        # aiohttp's default pattern excludes braces, which an account's name may have; "/" in a
        # name arrives quoted.
        path = operation.path.replace("}", ":[^/]+}")
        for method in ("GET", "HEAD") if operation.method == "GET" else (operation.method,):
            application.router.add_route(method, path, handler)


def _handler(
    operation: Operation,
    authenticator: Authenticator,
    timeouts: ClientTimeouts,
    throttle: FailureThrottle,
) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        try:
            return await operation.run(request, authenticator, timeouts)
        except ApiError as error:
            if error.status == 401:
                await throttle.hold("management_key", error.code, ApiClient(request))
            raise

    return handler
