"""Whose request it is: the key that it carries."""

from __future__ import annotations

from fabric_server.auth.keys import Accounts, Key
from fabric_server.dialects import errors
from fabric_server.edge.request import Request


async def authenticate(accounts: Accounts, request: Request) -> Key:
    """The API key of a request; raises Refusal when there is none that may be used here.

    It comes as a bearer token, or as Anthropic's clients send it, in ``x-api-key``.
    """
    if request.key is not None:  # the server's own doing, for a user it has authenticated before
        return request.key
    scheme, _, token = request.headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer" or not token:
        token = request.headers.get(b"x-api-key", b"")
        if not token:
            raise errors.no_key()
    text = token.strip().decode("latin-1")
    key = accounts.known(text) or await accounts.authenticate(text)
    if key.management:
        raise errors.wrong_kind_of_key("an API key (sk-fab-…)")
    return key
