"""Answers of the API port: JSON always, errors in one shape, an ``x-request-id`` on each.

aiohttp says some things before or after any handler runs (bytes that are not HTTP, an expectation
it can't meet); ``Conversation`` puts those in the same shape, and gives up on slow readers.
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
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from fabric_server.admin.parameters import MAX_BODY, Timeouts
from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from runtime.errors import BackendError, RecordError

log = logging.getLogger("fabric.api")

KEY = web.RequestKey("key", object)
"""Who asks, once that is known."""

_encode = msgspec.json.Encoder().encode
_HEADERS = {
    "Cache-Control": "no-store",
    "Server": "fabric",  # not which versions of what it is made of
    "X-Content-Type-Options": "nosniff",
}


def new_id() -> str:
    """Another prefix than that of the public port: such a request is in no ledger."""
    return f"api_{int(time.time() * 1000):011x}{secrets.token_hex(6)}"


def say(answer: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=_encode(answer), content_type="application/json")


def say_text(body: bytes, content_type: str) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": content_type})


def refuse(refusal: ApiError) -> web.Response:
    headers = {}
    if refusal.allow is not None:
        headers["Allow"] = refusal.allow
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(refusal.retry_after)))
    if refusal.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="fabric"'
    response = web.Response(
        status=refusal.status,
        body=refusal.body(),
        content_type="application/json",
        headers=headers,
    )
    if refusal.close:
        response.force_close()
    return response


def sign(response: web.StreamResponse, request_id: str) -> web.StreamResponse:
    """What every answer has."""
    response.headers.update(_HEADERS)
    response.headers["X-Request-Id"] = request_id
    return response


@web.middleware
async def answer(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Whatever a handler does, the client gets an answer that it can read."""
    request_id = new_id()
    response: web.StreamResponse
    try:
        response = await handler(request)
    except ApiError as refusal:
        response = refuse(refusal)
    except web.HTTPException as error:
        response = refuse(_translate(error, request))
    except RecordError as error:
        response = refuse(ApiError(400, "invalid_value", f"This can't be stored: {error}."))
    except BackendError as error:
        log.warning("request refused", extra={"request": request_id, "reason": str(error)})
        response = refuse(_store_is_away(error if KEY in request else None))
    except Exception:
        log.exception("request failed", extra={"request": request_id, "path": request.path})
        response = refuse(_defect())
    return sign(response, request_id)


class Conversation(web.RequestHandler):
    """One connection; see ``protocol``."""

    __slots__ = ("_reader_seconds",)

    def __init__(self, server: web.Server, timeouts: Timeouts) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=cast(logging.Logger, None),
            keepalive_timeout=timeouts.idle,
            lingering_time=timeouts.linger,
            auto_decompress=False,  # a small body must not become a large one
        )
        self._reader_seconds = timeouts.reader

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """For what never reached a handler."""
        if isinstance(exc, LineTooLong):
            refusal = errors.headers_too_large("A line of the request's head is too long.")
        elif status < 500:
            words = (message or "it can't be read").strip().splitlines()[0].rstrip(":.")
            refusal = errors.bad_request(f"This is not HTTP/1.1: {words}.")
        else:
            log.error("request failed", exc_info=exc, extra={"peer": request.remote})
            refusal = _defect()
        if request.writer.output_size > 0:
            raise ConnectionError("half an answer is sent: the connection must end")
        response = sign(refuse(refusal), new_id())
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPException):  # an expectation that can't be met
            resp = sign(refuse(_translate(resp, request)), new_id())
        try:
            async with asyncio.timeout(self._reader_seconds):
                return await super().finish_response(request, resp, start_time)
        except TimeoutError:
            if self.transport is not None:
                self.transport.abort()
            return resp, True


def protocol(
    server: web.Server, timeouts: Timeouts | None = None
) -> Callable[[], asyncio.BaseProtocol]:
    """Makes what speaks on each connection; ``server`` is that of an ``AppRunner``."""
    limits = timeouts or Timeouts()
    return lambda: Conversation(server, limits)


def _translate(error: web.HTTPException, request: web.BaseRequest) -> ApiError:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return errors.wrong_method(request.method, request.path, allowed)
    if error.status == 404:
        return errors.unknown_path(request.path)
    if error.status == 413:
        return errors.body_too_large(MAX_BODY)
    return ApiError(error.status, "bad_request", f"{error.reason}.")


def _store_is_away(error: BackendError | None) -> ApiError:
    """What is wrong with it is for operators only."""
    words = "The store can't be used at the moment. Try again shortly."
    return ApiError(
        503,
        "store_unavailable",
        words if error is None else f"{error}.",
        type="server_error",
        retry_after=5.0,
    )


def _defect() -> ApiError:
    return ApiError(500, "internal_error", "The server failed.", type="server_error")
