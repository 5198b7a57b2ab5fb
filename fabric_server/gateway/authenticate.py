"""Authentication of a request by the API key that it carries."""

from __future__ import annotations

from fabric_server.auth.authenticator import KeyAuthenticator, digest_of
from fabric_server.auth.keys import Key
from fabric_server.dialects import errors
from fabric_server.edge.request import Request
from fabric_server.net.memory_budget import UNCOUNTED


async def authenticate(authenticator: KeyAuthenticator, request: Request) -> Key:
    """Return the API key of a request, from its bearer token or, as Anthropic's and Azure's clients
    send it, from ``x-api-key`` or ``api-key``.

    Raises ApiError when there is none that may be used here.
    """
    if request.key is not None:  # made by the server itself, for a key it has authenticated before
        request.body.owned_by(request.key.id)
        return request.key
    head = request.head
    if head is not None and head.key_digest and (key := authenticator.find(head.key_digest)):
        return _accept(key, request)
    scheme, _, token = request.headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer" or not token:
        token = request.headers.get(b"x-api-key") or request.headers.get(b"api-key", b"")
        if not token:
            raise errors.no_key()
    text = token.strip().decode("latin-1")
    digest = digest_of(text)
    key = authenticator.find(digest)
    if key is None:
        body = request.body
        if body.buffered > UNCOUNTED:
            body.hold(0)
        key = await authenticator.authenticate(text)
    if head is not None:
        head.key_digest = digest
    return _accept(key, request)


def _accept(key: Key, request: Request) -> Key:
    if key.management:
        raise errors.wrong_kind_of_key("an API key (sk-fab-…)")
    request.body.owned_by(key.id)
    request.recognise()
    return key
