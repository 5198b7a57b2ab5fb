"""Responses of the API port: JSON, errors in one format, and an ``x-request-id`` on each.

aiohttp answers some requests before or after any handler runs (bytes that are not HTTP, an
expectation it can't meet); ``HttpConnection`` gives those the same format, and aborts slow readers.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import LineTooLong

from fabric_server.admin.parameters import MAX_BODY, ClientTimeouts
from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.net.addresses import NO_ADDRESS, peer_of
from fabric_server.net.connection_budget import Peer
from runtime.asyncio_protocol import AsyncioProtocol
from runtime.errors import BackendError, RecordError

log = logging.getLogger("fabric.api")

KEY = web.RequestKey("key", object)
"""The management key of a request, once it is authenticated."""

_encode = msgspec.json.Encoder().encode
_HEADERS = {
    "Cache-Control": "no-store",
    "Server": "fabric",  # neither the libraries nor their versions
    "X-Content-Type-Options": "nosniff",
}


def new_request_id() -> str:
    """Make an id whose prefix is not the public port's: these requests are in no ledger."""
    return f"api_{int(time.time() * 1000):011x}{secrets.token_hex(6)}"


def json_response(value: Any, status: int = 200) -> web.Response:
    """Encode ``value`` as JSON."""
    return web.Response(status=status, body=_encode(value), content_type="application/json")


def text_response(body: bytes, content_type: str) -> web.Response:
    """Respond with 200 and bytes that are encoded already."""
    return web.Response(body=body, headers={"Content-Type": content_type})


def error_response(error: ApiError) -> web.Response:
    """Respond with an error, in OpenAI's format."""
    headers = {}
    if error.allow is not None:
        headers["Allow"] = error.allow
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="fabric"'
    response = web.Response(
        status=error.status,
        body=error.body(),
        content_type="application/json",
        headers=headers,
    )
    if error.close:
        response.force_close()
    return response


def add_headers(response: web.StreamResponse, request_id: str) -> web.StreamResponse:
    """Add the headers that every response has."""
    response.headers.update(_HEADERS)
    response.headers["X-Request-Id"] = request_id
    return response


@web.middleware
async def handle_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Turn every exception of a handler into an error response."""
    request_id = new_request_id()
    response: web.StreamResponse
    try:
        _check_host(request)
        response = await handler(request)
    except ApiError as error:
        response = error_response(error)
    except web.HTTPException as error:
        response = error_response(_translate(error, request))
    except RecordError as error:
        response = error_response(
            ApiError(400, "invalid_value", f"A value can't be stored: {error}.")
        )
    except BackendError as error:
        log.warning("request refused", extra={"request": request_id, "reason": str(error)})
        response = error_response(_store_unavailable(error if KEY in request else None))
    except Exception:
        log.exception("request failed", extra={"request": request_id, "path": request.path})
        response = error_response(_internal_error())
    return add_headers(response, request_id)


def _check_host(request: web.Request) -> None:
    """Raise ``ApiError`` for what RFC 9112, 3.2 forbids: another number of hosts than one."""
    hosts = len(request.headers.getall("Host", ()))
    if hosts > 1 or (not hosts and request.version >= HttpVersion11):
        raise errors.bad_request(
            "The request has more than one Host header."
            if hosts
            else "The request has no Host header."
        )


def client_address(request: web.BaseRequest) -> str:
    """Return the client's IP address, behind trusted proxies, as ``edge.request`` does."""
    connection = request.protocol
    if isinstance(connection, HttpConnection):
        hops = ",".join(request.headers.getall("X-Forwarded-For", ())).encode("ascii", "replace")
        return connection.peer.client_address(hops or None)
    return str(peer_of(request.transport) or NO_ADDRESS)


def recognise(request: web.BaseRequest) -> None:
    """Keep the connection of ``request`` when strangers' are shed: its key is valid."""
    if isinstance(request.protocol, HttpConnection):
        request.protocol.peer.recognise()


class ApiClient:
    """The sender of a request, for the throttle of wrong keys."""

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request

    @property
    def client_address(self) -> str:
        return client_address(self._request)

    def suspect(self) -> None:
        """Report the connection as unwelcome, if nobody known comes from its address."""
        if isinstance(self._request.protocol, HttpConnection):
            self._request.protocol.peer.suspect()

    async def pause(self, seconds: float) -> None:
        """Wait so long, or until the client has hung up or the server stops: handlers go on after
        that."""
        connection = self._request.protocol
        if isinstance(connection, HttpConnection):
            await asyncio.wait([connection.ending], timeout=seconds)


class HttpConnection(web.RequestHandler):
    """One connection of the API port."""

    __slots__ = ("_reader_seconds", "ending", "peer")

    def __init__(self, server: web.Server, timeouts: ClientTimeouts, peer: Peer) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=cast(logging.Logger, None),
            keepalive_timeout=timeouts.idle,
            lingering_time=timeouts.linger,
            auto_decompress=False,  # a small body must not become a large one
        )
        self._reader_seconds = timeouts.reader
        self.peer = peer
        self.ending: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the connection is closed, or the server stops."""

    def connection_lost(self, exc: BaseException | None) -> None:
        self.peer.release()
        self.end_pauses()
        super().connection_lost(exc)

    def end_pauses(self) -> None:
        """Hold no answer back any more."""
        if not self.ending.done():
            self.ending.set_result(None)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Respond to a request that reached no handler."""
        request_id = new_request_id()
        if isinstance(exc, LineTooLong):
            error = errors.headers_too_large("A line of the request's head is too long.")
        elif status < 500:
            reason = (message or "it can't be parsed").strip().splitlines()[0].rstrip(":.")
            error = errors.bad_request(f"The request is not valid HTTP/1.1: {reason}.")
        else:
            extra = {"request": request_id, "peer": client_address(request)}
            log.error("request failed", exc_info=exc, extra=extra)
            error = _internal_error()
        if request.writer.output_size > 0:
            raise ConnectionError("a part of the response is sent: the connection must end")
        response = add_headers(error_response(error), request_id)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPException):  # an expectation that can't be met
            resp = add_headers(error_response(_translate(resp, request)), new_request_id())
        try:
            async with asyncio.timeout(self._reader_seconds):
                return await super().finish_response(request, resp, start_time)
        except TimeoutError:
            if self.transport is not None:
                self.transport.abort()
            return resp, True


def connection_factory(
    server: web.Server, timeouts: ClientTimeouts | None = None
) -> Callable[[Peer], AsyncioProtocol]:
    """Make the factory of a listener's protocols; ``server`` is that of an ``AppRunner``."""
    limits = timeouts or ClientTimeouts()
    return lambda peer: HttpConnection(server, limits, peer)


def _translate(error: web.HTTPException, request: web.BaseRequest) -> ApiError:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return errors.wrong_method(request.method, request.path, allowed)
    if error.status == 404:
        return errors.unknown_path(request.path)
    if error.status == 413:
        return errors.body_too_large(MAX_BODY)
    return ApiError(error.status, "bad_request", f"{error.reason}.")


def _store_unavailable(error: BackendError | None) -> ApiError:
    """Make a 503; ``error`` has the cause, for authenticated operators only."""
    text = "The store is not available at the moment. Retry in a few seconds."
    return ApiError(
        503,
        "store_unavailable",
        text if error is None else f"{error}.",
        type="server_error",
        retry_after=5.0,
    )


def _internal_error() -> ApiError:
    text = "The server failed: see its log, by the x-request-id of this response."
    return ApiError(500, "internal_error", text, type="server_error")
