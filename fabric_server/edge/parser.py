"""The incoming half of a user's connection: bytes of HTTP/1.1 to requests, and nothing else.

What two readers could take for two different requests is refused, never guessed at.  Most of it by
llhttp (behind httptools): two lengths, a length beside a coding, folded headers, lone CR or LF,
blanks before a colon; here: codings other than ``chunked``, other protocols, changes of protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import httptools

from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.edge.request import Request

MAX_TARGET = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a user's connection may cost: sizes in bytes, times in seconds; see ``Config``."""

    body: int
    headers: int
    header_count: int
    header_seconds: float
    body_rate: float
    keepalive_seconds: float
    larger: Mapping[str, int] = field(default_factory=dict)
    """Paths whose bodies may be larger than ``body``: those that are stored as they come."""


class Owner(Protocol):
    """Whom the requests go to, in the order in which they come."""

    def new_request(self) -> Request: ...

    def on_head_begun(self, request: Request) -> None: ...

    def on_request(self, request: Request) -> ApiError | None:
        """The head is complete, and the body comes in ``request.body``; or why it is not taken."""

    def on_body_complete(self, request: Request) -> None: ...


class RequestParser:
    """Feed it with what comes, in pieces of any size."""

    def __init__(self, owner: Owner, limits: Limits) -> None:
        self.request: Request | None = None
        """The one whose head or body is coming in."""
        self.in_head = False
        """It is the head, which the owner has not been given yet."""
        self.refusal: ApiError | None = None
        """Why what comes can't be read on."""
        self._owner = owner
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._count = 0
        self._size = 0
        self._most_fruitless = limits.headers + 2 * MAX_TARGET  # with the request's first line
        self._fruitless = 0
        """Bytes since a head was complete or a piece of a body came: headers that do not end,
        trailers, blank lines."""

    def feed(self, data: bytes) -> None:
        """Look at ``refusal`` afterwards: once it is there, nothing more is read."""
        if self.refusal is not None:
            return
        self._fruitless += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            if self.refusal is None:  # not a refusal of ours, but a defect
                raise error.__context__ or error from None
        except httptools.HttpParserError as error:
            self.refusal = errors.bad_request(f"This is not HTTP/1.1: {error}.")
        else:
            if self._fruitless > self._most_fruitless:
                self.refusal = self._too_large()

    def close(self) -> None:
        """The connection is gone: let go of what goes round in circles."""
        self.refusal = self.refusal or errors.bad_request("The connection is closed.")
        self.request = None
        del self._parser, self._owner

    # ── the parser calls these ────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        self._target = b""
        self._count = self._size = 0
        self.in_head = True
        self.request = self._owner.new_request()
        self._owner.on_head_begun(self.request)

    def on_url(self, url: bytes) -> None:
        self._target += url
        if len(self._target) > MAX_TARGET:
            self._refuse(errors.headers_too_large("The request's URL is too long."))

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.in_head:
            return  # a trailer: nobody has asked for one
        self._count += 1
        self._size += len(name) + len(value) + 4
        limits = self._limits
        if self._count > limits.header_count:
            words = f"The request has more than {limits.header_count} headers."
            self._refuse(errors.headers_too_large(words))
        if self._size > limits.headers:
            self._refuse(self._too_large())
        assert self.request is not None
        self.request.headers.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        request, parser = self.request, self._parser
        assert request is not None
        headers = request.headers
        request.method = parser.get_method().decode()
        request.version = parser.get_http_version()
        request.keep_alive = parser.should_keep_alive()
        target = self._target.decode("ascii", "replace")
        if not target.startswith("/"):
            target = _relative(target)
        request.path, _, request.query = target.partition("?")
        if request.version not in ("1.1", "1.0"):
            self._refuse(errors.bad_request("Only HTTP/1.1 is spoken here."))
        if parser.should_upgrade():
            self._refuse(errors.bad_request("Connection upgrades are not possible here."))
        coding = headers.get(b"transfer-encoding")
        if coding is not None and (
            coding.strip().lower() != b"chunked" or request.version == "1.0"
        ):
            words = "The body's transfer-encoding can't be read here; 'chunked' can, in HTTP/1.1."
            self._refuse(errors.bad_request(words))
        length = headers.get(b"content-length")
        if length is not None:
            request.body.length = int(length)
            if request.body.length > self._most_body(request):
                self._refuse(errors.body_too_large(self._most_body(request)))
        if request.version == "1.1":
            request.expects = headers.get(b"expect", b"").strip().lower() == b"100-continue"
        refusal = self._owner.on_request(request)
        if refusal is not None:
            self._refuse(refusal)
        self.in_head = False
        self._fruitless = 0

    def on_body(self, data: bytes) -> None:
        assert self.request is not None
        body = self.request.body
        if body.received + len(data) > self._limits.body:
            most = self._most_body(self.request)
            if body.received + len(data) > most:
                self._refuse(errors.body_too_large(most))
        self._fruitless = 0
        body.add(data)

    def on_message_complete(self) -> None:
        request, self.request = self.request, None
        assert request is not None
        request.body.end()
        self._owner.on_body_complete(request)

    # ── small parts ───────────────────────────────────────────────────────────────────────────

    def _refuse(self, refusal: ApiError) -> None:
        """Only inside a parser's callback: stops it."""
        self.refusal = refusal
        raise refusal

    def _most_body(self, request: Request) -> int:
        limits = self._limits
        return limits.larger.get(request.path.rstrip("/"), limits.body)

    def _too_large(self) -> ApiError:
        return errors.headers_too_large(
            f"The request's headers are larger than {self._limits.headers} bytes."
        )


def _relative(target: str) -> str:
    """The absolute form, as proxies get it, without scheme and host; other forms as they are."""
    _, mark, rest = target.partition("://")
    return "/" + rest.partition("/")[2] if mark else target
