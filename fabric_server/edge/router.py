"""The routes of the public port: which handler answers which method and path."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Awaitable, Callable

from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.edge.request import Request
from fabric_server.net.failure_throttle import FailureThrottle

_READABLE = (b"", b"identity")
Handler = Callable[[Request], Awaitable[None]]


class Router:
    """Routes by method and path: ``add`` registers, ``handle`` is the edge's handler."""

    def __init__(self, refused: Counter[str], throttle: FailureThrottle | None = None) -> None:
        """``refused`` counts requests that were answered with an error, by its code; ``throttle``
        holds answers to wrong keys back."""
        self._refused = refused
        self._throttle = throttle or FailureThrottle()
        self._paths: dict[str, dict[str, Handler]] = {}
        self._prefixes: dict[str, dict[str, Handler]] = {}

    def add(self, method: str, path: str, handler: Handler) -> None:
        """Register a handler; ``path`` may end in ``/*``, for all paths below without their own.

        A handler for GET also answers HEAD: the edge leaves the body out.
        """
        table, name = (self._prefixes, path[:-1]) if path.endswith("/*") else (self._paths, path)
        methods = table.setdefault(name, {})
        assert method not in methods, f"{method} {path} has two handlers"
        methods[method] = handler

    def replace(self, method: str, path: str, handler: Handler) -> Handler:
        """Register another handler for ``path``, and return the one that it had."""
        methods = self._paths[path]
        before, methods[method] = methods[method], handler
        return before

    def find(self, method: str, path: str) -> Handler:
        """Return the handler of ``path`` itself for ``method``, which it must have."""
        return self._paths[path][method]

    def has(self, method: str, path: str) -> bool:
        """Return whether ``path`` itself has a handler for ``method``."""
        return method in self._paths.get(path, {})

    async def handle(self, request: Request) -> None:
        """Answer one request; raises ``ApiError`` when it can't be."""
        try:
            await self._find(request)(request)
        except ApiError as error:
            self._refused[error.code] += 1
            if error.status == 401 and request.key is None:
                await self._throttle.hold("api_key", error.code, request)
            raise

    def _find(self, request: Request) -> Handler:
        path, method = request.path, request.method
        coding = request.headers.get(b"content-encoding", b"").strip().lower()
        if coding not in _READABLE:
            raise errors.unreadable_encoding(coding.decode("latin-1"))
        if len(path) > 1 and path.endswith("/"):
            path = request.path = path.rstrip("/") or "/"
        methods = self._paths.get(path) or self._find_below(path)
        if methods is None:
            methods = self._find_respelled(request)
        handler = methods.get("GET" if method == "HEAD" else method)
        if handler is None:
            raise errors.wrong_method(method, path, ", ".join(methods))
        return handler

    def _find_respelled(self, request: Request) -> dict[str, Handler]:
        """Return the handlers of a path without ``/v1``, or with Azure's ``/openai`` for it or
        in front; the request then has the path that is meant.  Raises ``ApiError``."""
        path = request.path
        below = path.removeprefix("/openai")
        meant = below if below.startswith("/v1/") else f"/v1{below}"
        methods = self._paths.get(meant) or self._find_below(meant)
        if methods is None or path.startswith("/v1/"):
            raise errors.unknown_path(path, self._suggestion(path))
        request.path = meant
        return methods

    def _suggestion(self, path: str) -> str | None:
        """Return the known path for a base URL with one ``/v1`` or slash too many or too few."""
        plain = re.sub("/{2,}", "/", path)
        for guess in (plain, f"/v1{plain}", plain.removeprefix("/v1")):
            if guess in self._paths:
                return guess
        return None

    def _find_below(self, path: str) -> dict[str, Handler] | None:
        at = path.rfind("/")
        while at >= 0:
            if methods := self._prefixes.get(path[: at + 1]):
                return methods
            at = path.rfind("/", 0, at)
        return None
