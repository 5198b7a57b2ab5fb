"""HTTP/1.1 with the standard library: a connection per concurrent request, kept alive."""

from __future__ import annotations

import http.client
import random
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import msgspec

from fabric_client.sdk.closable import Closable
from fabric_client.sdk.errors import FabricError, Refused, Unreachable

_MAX_IDLE = 8
_READ_SIZE = 64 * 1024
_MAX_PAUSE = 60.0
"""Seconds; an error with a longer ``retry-after`` is raised instead of retried."""
_RETRYABLE = frozenset({408, 429, 500, 502, 503, 504})


class Response(Closable):
    """A response with a status below 300, of which the head is read.  Close it, or read it all."""

    def __init__(self, http: Http, connection: _Connection, response: Any) -> None:
        self.request_id: str = response.headers.get("x-request-id", "")
        self._http = http
        self._connection = connection
        self._response = response

    def json(self) -> Any:
        """Read the body as a JSON object.

        Raises ``Unreachable`` if it breaks off, and ``FabricError`` if it is something else.
        """
        with self:
            body = self.read()
        try:
            document = msgspec.json.decode(body)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError included
            raise self._no_server() from error
        if not isinstance(document, dict):
            raise self._no_server()
        return document

    def _no_server(self) -> FabricError:
        return FabricError(f"What answers at {self._http.host} is no Fabric server.")

    def read(self) -> bytes:
        try:
            return bytes(self._response.read())
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"The answer broke off: {error or type(error).__name__}.") from error

    def body(self) -> Iterator[bytes]:
        """Yield the body as it arrives.  Raises ``Unreachable`` if it breaks off."""
        try:
            while data := self._response.read1(_READ_SIZE):
                yield data
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"The answer broke off: {error or type(error).__name__}.") from error

    def close(self) -> None:
        """Release the connection; if the body is not read to its end, the engine stops."""
        self._http.give_back(self._connection, bool(self._response.isclosed()))


_Connection = http.client.HTTPConnection


def _context(ca: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:  # also for files that are no certificate; neither error names the file
        raise ValueError(f"{ca!r} can't be used as CA file: {error.strerror or error}") from error


class Http:
    """Sends requests to one server, with retries.  Thread-safe."""

    def __init__(
        self, base_url: str, key: str, *, ca: str | None, timeout: float, retries: int
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{base_url!r} is not a URL like https://fabric.example:18080")
        self.host = parts.hostname
        self._port = parts.port
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._context = None
        if parts.scheme == "https":
            self._context = _context(ca)
            self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        self._timeout = timeout
        self._retries = retries
        self._idle: list[_Connection] = []
        self._lock = threading.Lock()

    def request(
        self,
        method: str,
        path: str,
        document: object = None,
        headers: dict[str, str] | None = None,
    ) -> Response:
        """Send a request and return the response; retry as long as no head has arrived.

        Raises ``Unreachable`` or ``Refused``.
        """
        body = None if document is None else msgspec.json.encode(document)
        for left in range(self._retries, -1, -1):
            try:
                return self._request_once(method, path, body, headers or {})
            except _Retry as retry:
                if not left or retry.seconds > _MAX_PAUSE:
                    raise retry.error from retry.__cause__
                tries = self._retries - left
                time.sleep(retry.seconds or min(8.0, 0.5 * 2**tries) * random.uniform(0.5, 1.0))  # noqa: S311
        raise AssertionError("unreachable")

    def _request_once(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> Response:
        while True:
            connection, used = self._take()
            try:
                connection.request(method, self._prefix + path, body, self._headers | headers)
                response = connection.getresponse()
                break
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if used:
                    continue  # the server closed an idle connection; try a new one
                message = f"{self.host} can't be reached: {error or type(error).__name__}."
                raise _Retry(Unreachable(message), 0.0) from error
        answer = Response(self, connection, response)
        if response.status < 300:
            return answer
        with answer:
            refused = _refused(response.status, answer.read(), answer.request_id)
        retryable = response.headers.get("x-should-retry")
        if retryable == "true" or (retryable is None and response.status in _RETRYABLE):
            raise _Retry(refused, _seconds(response.headers.get("retry-after", "")))
        raise refused

    def _take(self) -> tuple[_Connection, bool]:
        with self._lock:
            if self._idle:
                return self._idle.pop(), True
        if self._context is None:
            return _Connection(self.host, self._port, timeout=self._timeout), False
        connection = http.client.HTTPSConnection(
            self.host, self._port, timeout=self._timeout, context=self._context
        )
        return connection, False

    def give_back(self, connection: _Connection, whole: bool) -> None:
        with self._lock:
            if whole and connection.sock is not None and len(self._idle) < _MAX_IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


class _Retry(Exception):
    """An error after which the same request may succeed."""

    def __init__(self, error: FabricError, seconds: float) -> None:
        self.error = error
        self.seconds = seconds


def _refused(status: int, body: bytes, request_id: str) -> Refused:
    try:
        document = msgspec.json.decode(body)
        error = document["error"]
        return Refused(status, str(error.get("code") or ""), str(error["message"]), request_id)
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
        return Refused(status, "", f"The server answered {status}.", request_id)


def _seconds(text: str) -> float:
    try:
        return max(0.0, float(text))
    except ValueError:  # a date: the default pauses apply
        return 0.0
