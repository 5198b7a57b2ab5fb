"""Errors of the SDK: the server's, the network's, and answers that break off."""

from __future__ import annotations


class FabricError(Exception):
    """Base of all errors; ``str()`` is a sentence for people."""


class Unreachable(FabricError):
    """No response: the server can't be reached, or broke off before the response's head."""


class Refused(FabricError):
    """The server answered with an error."""

    def __init__(self, status: int, code: str, message: str, request_id: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        """The error's code as in OpenAI's API, such as ``model_not_found``; may be empty."""
        self.request_id = request_id
        """The id by which the server's operator finds the request."""


class Broken(FabricError):
    """An answer began but did not end; ``text`` is what arrived."""

    def __init__(self, message: str, text: str, request_id: str) -> None:
        super().__init__(message)
        self.text = text
        self.request_id = request_id
