"""One row per thing that can be asked.  What a handler takes and gives is read from its signature,
by which requests are parsed and from which the OpenAPI document is made: neither can drift.

    query   its type is a Struct, filled from the query string
    body    its type is a Struct, filled from the JSON body
    by      the management key of whoever asks
    others  parts of the path

It returns a Struct, ``Text``, or a status and a Struct: ``tuple[Literal[200, 503], Health]``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol, get_args, get_origin, get_type_hints

from aiohttp import web

from fabric_server.admin.middleware import KEY, say, say_text
from fabric_server.admin.parameters import Accounts, Timeouts, authenticate, read_body, read_query
from fabric_server.auth.keys import Key

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Row(Protocol):
    """What is served and described."""

    method: str
    path: str
    name: str
    """Unique."""
    description: str
    """Its first line is a summary."""
    public: bool
    """Whether it is answered without a management key."""
    parts: Sequence[str]
    query: type[Any] | None
    body: type[Any] | None
    statuses: Sequence[int]
    """Of answers that are no refusals."""
    gives: Any
    media: str
    """The type of such an answer."""

    async def run(
        self, request: web.Request, accounts: Accounts, timeouts: Timeouts
    ) -> web.StreamResponse:
        """Answers, or raises ``ApiError``."""


class Text(NamedTuple):
    body: bytes
    content_type: str


class Route:
    """A ``Row``; ``handler``'s docstring becomes the description."""

    def __init__(
        self,
        method: str,
        path: str,
        handler: Callable[..., Awaitable[Any]],
        *,
        status: int = 200,
        public: bool = False,
    ) -> None:
        self.method = method
        self.path = path
        self.handler = handler
        self.name = handler.__name__
        self.description = inspect.getdoc(handler) or ""
        self.public = public
        hints = get_type_hints(handler)
        gives = hints.pop("return")
        self.statuses: Sequence[int] = (status,)
        if get_origin(gives) is tuple:
            statuses, gives = get_args(gives)
            self.statuses = get_args(statuses)
        self.gives: Any = gives
        self.media = "text/plain" if gives is Text else "application/json"
        self.query: type[Any] | None = hints.pop("query", None)
        self.body: type[Any] | None = hints.pop("body", None)
        self.parts: Sequence[str] = re.findall(r"{(\w+)}", path)
        self._tells_who = hints.pop("by", None) is Key
        if set(hints) != set(self.parts) or (self._tells_who and public):
            raise TypeError(f"{handler.__qualname__} does not fit {method} {path}")

    def __repr__(self) -> str:
        return f"<Route {self.method} {self.path}{' public' if self.public else ''}>"

    async def run(
        self, request: web.Request, accounts: Accounts, timeouts: Timeouts
    ) -> web.StreamResponse:
        """The story of nearly every request here."""
        arguments: dict[str, Any] = {part: request.match_info[part] for part in self.parts}
        if not self.public:
            key = request[KEY] = await authenticate(request, accounts)
            if self._tells_who:
                arguments["by"] = key
        if self.query is not None:
            arguments["query"] = read_query(request, self.query)
        if self.body is not None:
            arguments["body"] = await read_body(request, self.body, timeouts.body)
        given = await self.handler(**arguments)
        if isinstance(given, Text):
            return say_text(given.body, given.content_type)
        status, given = given if isinstance(given, tuple) else (self.statuses[0], given)
        return say(given, status)


def mount(
    application: web.Application, rows: Sequence[Row], accounts: Accounts, timeouts: Timeouts
) -> None:
    for row in rows:
        handler = _handler(row, accounts, timeouts)
        # aiohttp's own parts hold no braces, but an account's name may; "/" is quoted there.
        path = row.path.replace("}", ":[^/]+}")
        for method in ("GET", "HEAD") if row.method == "GET" else (row.method,):
            application.router.add_route(method, path, handler)


def _handler(row: Row, accounts: Accounts, timeouts: Timeouts) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await row.run(request, accounts, timeouts)

    return handler
