"""Requests as clients of Azure OpenAI send them: the path names the model, as a deployment.

``/openai/deployments/{name}/chat/completions?api-version=…`` is ``/v1/chat/completions`` for the
model ``name``, whether the body names one or not.
"""

from __future__ import annotations

import asyncio
from urllib.parse import unquote

import msgspec

from fabric_server.auth.authenticator import KeyAuthenticator
from fabric_server.dialects import errors
from fabric_server.dialects.endpoints import ENDPOINTS
from fabric_server.dialects.forms import put_field
from fabric_server.edge.request import Request
from fabric_server.edge.router import Handler, Router
from fabric_server.gateway.authenticate import authenticate

PATHS = "/openai/deployments/"
_MAX_INLINE = 1024 * 1024
"""Bytes of a body that is changed on the event loop; a longer one is changed in a thread."""


class Deployments:
    """Handles the paths of deployments."""

    def __init__(self, authenticator: KeyAuthenticator, complete: Handler) -> None:
        """``complete`` has an engine answer a request."""
        self._authenticator = authenticator
        self._complete = complete

    def add_to(self, router: Router) -> None:
        router.add("POST", f"{PATHS}*", self.handle)

    async def handle(self, request: Request) -> None:
        name, _, rest = request.path.removeprefix(PATHS).partition("/")
        endpoint = ENDPOINTS.get(f"/v1/{rest}")
        if endpoint is None or not name:
            raise errors.unknown_path(request.path)
        request.path = endpoint.path
        await authenticate(self._authenticator, request)  # before anything is held for it
        body, model = request.body, unquote(name)
        data = bytearray(body.take())
        while not body.complete:
            await body.more()
            data += body.take()
        kind = request.headers.get(b"content-type", b"") if endpoint.form else None
        if len(data) <= _MAX_INLINE:
            changed = _put_model(bytes(data), model, kind)
        else:
            changed = await asyncio.to_thread(_put_model, bytes(data), model, kind)
        body.put_back(changed)
        await self._complete(request)


def _put_model(body: bytes, model: str, form_type: bytes | None) -> bytes:
    """Return the body with the model's name; one that can't be read as it is, to be refused."""
    if form_type is not None:
        return put_field(body, form_type, "model", model)
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return body
    return msgspec.json.encode({**fields, "model": model})
