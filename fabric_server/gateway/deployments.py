"""Requests as clients of Azure OpenAI send them: the path names the model, as a deployment.

``/openai/deployments/{name}/chat/completions?api-version=…`` is ``/v1/chat/completions`` for the
model ``name``, whether the body names one or not.
"""

from __future__ import annotations

import asyncio
from functools import partial
from urllib.parse import unquote

import msgspec

from fabric_server.auth.keys import Key
from fabric_server.dialects import errors
from fabric_server.dialects.endpoints import ENDPOINTS
from fabric_server.dialects.forms import put_field
from fabric_server.edge.request import Request
from fabric_server.edge.router import Router

PATHS = "/openai/deployments/"
_MAX_INLINE = 1024 * 1024
"""Bytes of a body that is changed on the event loop; a longer one is changed in a thread."""


class Deployments:
    """Handles the paths of deployments."""

    def __init__(self, router: Router) -> None:
        """``router`` has the handlers of the paths without a deployment."""
        self._router = router

    def add_to(self, router: Router) -> None:
        router.add("POST", f"{PATHS}*", self.handle)

    async def handle(self, request: Request) -> None:
        """Answer as the endpoint's own path does, for the model that the path names."""
        name, _, rest = request.path.removeprefix(PATHS).partition("/")
        endpoint = ENDPOINTS.get(f"/v1/{rest}")
        if endpoint is None or not name:
            raise errors.unknown_path(request.path)
        request.path = endpoint.path
        request.body.preparations += (partial(_name_model, request, unquote(name), endpoint.form),)
        await self._router.find("POST", endpoint.path)(request)


async def _name_model(request: Request, model: str, form: bool, key: Key) -> None:
    """Put the model's name into the request's body."""
    kind = request.headers.get(b"content-type", b"") if form else None
    data = await request.body.take_all()
    if len(data) <= _MAX_INLINE:
        data = _put_model(data, model, kind)
    else:
        data = await asyncio.to_thread(_put_model, data, model, kind)
    request.body.put_back(data)


def _put_model(body: bytes, model: str, form_type: bytes | None) -> bytes:
    """Return the body with the model's name; one that can't be read as it is, to be refused."""
    if form_type is not None:
        return put_field(body, form_type, "model", model)
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return body
    return msgspec.json.encode({**fields, "model": model})
