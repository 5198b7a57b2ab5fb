"""The incoming half of a client's connection: bytes of HTTP/1.1 in, requests out.

Ambiguous requests, which another parser might read differently (request smuggling), are rejected.
llhttp (behind httptools) rejects most of them: two lengths, a length beside a coding, folded
headers, lone CR or LF, blanks before a colon.  This module rejects codings other than ``chunked``,
other protocols, and requests without exactly one valid Host.

An ``Upgrade`` is ignored, as RFC 9110, 7.8 allows: some clients offer HTTP/2 that way (``h2c``) in
every first request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import httptools

from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.edge.known_head import KnownHead
from fabric_server.edge.request import Request

MAX_TARGET = 4096
_HOST = re.compile(rb"(?:[!$&'()*+\-.0-9;=A-Z_a-z~%]*|\[[0-9A-Fa-f:.v%]+\])(?::[0-9]*)?")
"""RFC 3986, 3.2.2 and 3.2.3; it may be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one client's connection: sizes in bytes, times in seconds; see ``Config``."""

    body: int
    headers: int
    header_count: int
    header_seconds: float
    body_rate: float
    keepalive_seconds: float
    larger: Mapping[str, int] = field(default_factory=dict)
    """Larger limits of ``body`` by path, for bodies that are stored as they come."""


class Owner(Protocol):
    """The receiver of the requests, in the order in which they come."""

    def new_request(self) -> Request: ...

    def on_head_begun(self, request: Request) -> None: ...

    def on_request(self, request: Request) -> ApiError | None:
        """Take a request whose head is complete and whose body comes in ``request.body``.

        Returns the error when it is not taken.
        """

    def on_body_complete(self, request: Request) -> None: ...

    def on_whole_request(self, request: Request) -> ApiError | None:
        """Take a request whose body is there, as ``on_request`` and ``on_body_complete`` do."""


class RequestParser:
    """An incremental parser: ``feed`` it the bytes as they come, in pieces of any size."""

    __deletable__ = ("_owner", "_parser")  # which mypyc wants to know

    def __init__(self, owner: Owner, limits: Limits) -> None:
        self.request: Request | None = None
        """The request whose head or body is coming in."""
        self.in_head = False
        """The head is coming in; the owner has not been given the request yet."""
        self.error: ApiError | None = None
        """Why the rest of the connection can't be parsed."""
        self._owner = owner
        self.limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._count = 0
        self._size = 0
        self._max_overhead = limits.headers + 2 * MAX_TARGET  # with the request's first line
        self._body_head = b""
        """A head that announces the same body as one with an upgrade, whose body is to be read."""
        self._overhead = 0
        """Bytes since the last complete head or piece of a body: endless headers, trailers, blank
        lines."""
        self._known: KnownHead | None = None
        """The head of the last request whose head came in one piece."""
        self._fresh = b""
        """Bytes that begin with a head, while it is parsed."""
        self._rest = 0
        """Bytes that are still to come of the body of a request with a known head."""

    def feed(self, data: bytes) -> ApiError | None:
        """Parse ``data``; return ``error``: once it is set, nothing more is parsed."""
        before = self.error
        if before is not None:
            return before
        if self._rest:
            data = self._feed_rest(data)
        if self.request is None and not self._overhead and data:
            known = self._known
            if known is not None and (found := known.match(data)) is not None:
                data = self._begin_known(known, *found, data)
            else:
                self._fresh = data
        refused = self.error
        if not data or refused is not None:
            return refused
        try:
            while data := self._feed(data):
                pass
        except httptools.HttpParserCallbackError as error:
            if self.error is None:  # not an error of ours, but a defect
                raise error.__context__ or error from None
        except httptools.HttpParserError as error:
            self.error = errors.bad_request(f"Invalid HTTP/1.1 request: {error}.")
        else:
            if self._overhead > self._max_overhead:
                self.error = self._too_large()
        self._fresh = b""
        return self.error

    def _begin_known(self, known: KnownHead, length: int, start: int, data: bytes) -> bytes:
        """Begin a request by its known head; return what is not of it."""
        if length > self.limits.body:  # perhaps too much
            return data
        request = self._owner.new_request()
        request.use_head(known)
        body = request.body
        body.length = length
        if len(data) - start >= length:
            rest = data[start + length :]
            if length:
                body.add(data[start : start + length])
            body.end()
            error = self._owner.on_whole_request(request)
        else:
            self.request, self._rest, rest = request, length, b""
            error = self._owner.on_request(request)
            if error is None and start < len(data):
                self._feed_rest(data[start:])
        if error is not None:
            self.request, self.in_head, self.error = request, True, error
        return rest

    def _feed_rest(self, data: bytes) -> bytes:
        """Add to the body of a request with a known head; return what is not of it."""
        rest, request = self._rest, self.request
        assert request is not None
        piece = data if len(data) <= rest else data[:rest]
        self._rest = rest - len(piece)
        request.body.add(piece)
        if not self._rest:
            self._end_body()
        return data[len(piece) :]

    def _feed(self, data: bytes) -> bytes:
        """Parse ``data``; return what llhttp left, which stops behind a head with an upgrade."""
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
            self._overhead -= len(rest)
            if self._body_head:
                self._parse_body_anew()
            return rest
        return b""

    def _parse_body_anew(self) -> None:
        """Have a new parser read the body that llhttp skips when there is an upgrade."""
        head, self._parser = self._body_head, httptools.HttpRequestParser(self)
        self._parser.feed_data(head)
        self._body_head = b""

    def close(self) -> None:
        """Break the reference cycles with the parser: the connection is gone."""
        self.error = self.error or errors.bad_request("The connection is closed.")
        self.request = None
        del self._parser, self._owner

    # ── the parser calls these ────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        if self._body_head:
            return  # it is our own
        self._target = b""
        self._count = self._size = 0
        self.in_head = True
        self.request = self._owner.new_request()
        self._owner.on_head_begun(self.request)

    def on_url(self, url: bytes) -> None:
        if self._body_head:
            return
        self._target += url
        if len(self._target) > MAX_TARGET:
            self._reject(errors.headers_too_large("The request URL is too long."))

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.in_head:
            return  # a trailer field: ignored
        self._count += 1
        self._size += len(name) + len(value) + 4
        limits = self.limits
        if self._count > limits.header_count:
            text = f"The request has more than {limits.header_count} headers."
            self._reject(errors.headers_too_large(text))
        if self._size > limits.headers:
            self._reject(self._too_large())
        assert self.request is not None
        headers, name = self.request.headers, name.lower()
        if name not in headers:
            headers[name] = value
        elif name == b"x-forwarded-for":  # each proxy may have added a line of its own
            headers[name] += b"," + value
        elif name == b"host":
            self._reject(errors.bad_request("The request has more than one Host header."))

    def on_headers_complete(self) -> None:
        if self._body_head:
            return
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
            self._reject(errors.bad_request("Only HTTP/1.1 is supported."))
        if request.method == "CONNECT":
            self._reject(errors.bad_request("CONNECT is not supported: this is no proxy."))
        host = headers.get(b"host")
        if host is None:
            if request.version == "1.1":
                self._reject(errors.bad_request("The request has no Host header."))
        elif not _HOST.fullmatch(host):
            self._reject(errors.bad_request("The Host header is not valid."))
        coding = headers.get(b"transfer-encoding")
        if coding is not None and (
            coding.strip().lower() != b"chunked" or request.version == "1.0"
        ):
            text = "The only supported Transfer-Encoding is 'chunked', in HTTP/1.1."
            self._reject(errors.bad_request(text))
        length = headers.get(b"content-length")
        if length is not None:
            request.body.length = int(length)
            if request.body.length > self._max_body(request):
                self._reject(errors.body_too_large(self._max_body(request)))
        if request.version == "1.1":
            request.expects = headers.get(b"expect", b"").strip().lower() == b"100-continue"
        error = self._owner.on_request(request)
        if error is not None:
            self._reject(error)
        if parser.should_upgrade():
            self._ignore_upgrade(request, chunked=coding is not None)
        elif self._fresh and length is not None and request.keep_alive and not request.expects:
            self._known = request.learn_head(self._fresh)
        self._fresh = b""  # another head in the same bytes has another beginning
        self.in_head = False
        self._overhead = 0

    def on_body(self, data: bytes) -> None:
        assert self.request is not None
        body = self.request.body
        if body.received + len(data) > self.limits.body:
            limit = self._max_body(self.request)
            if body.received + len(data) > limit:
                self._reject(errors.body_too_large(limit))
        self._overhead = 0
        body.add(data)

    def on_message_complete(self) -> None:
        if not self._body_head:  # llhttp takes a request with an upgrade for one without a body
            self._end_body()

    # ── small parts ───────────────────────────────────────────────────────────────────────────

    def _end_body(self) -> None:
        request, self.request = self.request, None
        assert request is not None
        request.body.end()
        self._owner.on_body_complete(request)

    def _reject(self, error: ApiError) -> None:
        """Record the error and stop the parser; call it only inside a parser's callback."""
        self.error = error
        raise error

    def _ignore_upgrade(self, request: Request, *, chunked: bool) -> None:
        if chunked:
            self._body_head = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
        elif request.body.length:
            head = b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n"
            self._body_head = head % request.body.length

    def _max_body(self, request: Request) -> int:
        limits = self.limits
        return limits.larger.get(request.path.rstrip("/"), limits.body)

    def _too_large(self) -> ApiError:
        return errors.headers_too_large(
            f"The request headers are larger than {self.limits.headers} bytes."
        )


def _relative(target: str) -> str:
    """Strip scheme and host off the absolute form that proxies get; keep other forms."""
    _, mark, rest = target.partition("://")
    if not mark:
        return target
    authority, query, parameters = rest.partition("?")
    return "/" + authority.partition("/")[2] + query + parameters
