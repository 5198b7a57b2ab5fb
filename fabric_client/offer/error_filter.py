"""The filter of an engine's errors: the user's dialect, and nothing that is the owner's own."""

from __future__ import annotations

from fabric_client.offer.private_text import PrivateText
from fabric_client.translation import Headers
from fabric_client.translation.engine_errors import read_error
from fabric_client.translation.local_reply import error_reply
from runtime.engine_errors import MAX_MESSAGE, MODEL_NOT_FOUND, PROMPT_FIELDS

MAX_ERROR = 256 * 1024
"""Bytes of an error; a longer one is not shown."""


class ErrorFilter:
    """``fabric_client.translation.ResponseFilter`` of an answer whose status is an error.

    It takes the place of the filter that the answer would have had.
    """

    def __init__(self, private: PrivateText, path: str) -> None:
        """``path`` is that of the user's request, whose dialect the error gets."""
        self.decided: tuple[int, Headers] | None = None
        self._private = private
        self._path = path
        self._status = 500
        self._kept: Headers = []
        self._body = bytearray()

    def head(self, status: int, headers: Headers) -> None:
        """Return None: what the engine says decides about the status."""
        self._status = status
        self._kept = [one for one in headers if one[0].lower() == "retry-after"]

    @property
    def shows_change(self) -> bool:
        """Return whether it says, as far as it has come, that the engine is not as it was: it has
        no such model any more, or wants another key."""
        if self._status not in (400, 404):
            return self._status in (401, 403)
        error = read_error(self._status, bytes(self._body[:MAX_ERROR]))
        return (error.code, error.param) == (MODEL_NOT_FOUND, "model")

    def feed(self, data: bytes) -> bytes:
        if len(self._body) <= MAX_ERROR:
            self._body += data[: MAX_ERROR + 1]
        return b""

    def end(self) -> bytes:
        body = bytes(self._body)
        if len(body) > MAX_ERROR:
            body = b"The engine's error is too long to be shown."
        error = read_error(self._status, body).about_prompt(PROMPT_FIELDS.get(self._path))
        message = self._private.hide(error.message)[:MAX_MESSAGE]
        param = error.param or ""
        reply = error_reply(self._path, error.status, message, param, error.code)
        self.decided = reply.status, [*reply.headers, *self._kept]
        return reply.body
