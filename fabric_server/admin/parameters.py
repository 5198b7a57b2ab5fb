"""Checks of a request on the API port: its management key, its query and its body."""

from __future__ import annotations

import asyncio
import re
import types
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, NoReturn, Protocol, TypeVar, Union, get_args, get_origin

import msgspec
from aiohttp import web
from msgspec import NODEFAULT, Struct

from fabric_server.auth.keys import Key
from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.storage.rows import Scope

MAX_BODY = 64 * 1024

_AT = re.compile(r" - at `\$\.?([^`]*)`$")
_FIELD = re.compile(r"(?:unknown|required) field `([^`]+)`")

T = TypeVar("T", bound=Struct)


@dataclass(frozen=True, slots=True)
class ClientTimeouts:
    """Timeouts for clients of the API port, in seconds."""

    body: float = 10.0
    """Receiving a request's body."""
    enrol: float = 20.0
    """Enrolment, from the request to the response."""
    reader: float = 30.0
    """The client's reading of a response."""
    idle: float = 75.0
    """Receiving the next request's head."""
    linger: float = 2.0
    """Reading and discarding the rest of a refused body."""


class Authenticator(Protocol):
    def cached(self, token: str) -> Key | None: ...
    async def authenticate(self, token: str) -> Key: ...


async def authenticate(
    request: web.Request, authenticator: Authenticator, scope: Scope | None
) -> Key:
    """Return the management key of the request.  Raises ``ApiError``: 401, 403 or 503.

    ``scope`` is that of the operation; without one, only keys that may do everything may use it.
    """
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise ApiError(
            401,
            "invalid_api_key",
            "The request has no management key. Send one as 'Authorization: Bearer mk-fab-…'.",
            type="authentication_error",
        )
    key = authenticator.cached(token) or await authenticator.authenticate(token)
    if not key.management:
        raise errors.wrong_kind_of_key("a management key (mk-fab-…)")
    if not key.may(scope):
        raise errors.out_of_scope(sorted(key.scopes or ()))
    return key


def read_query(request: web.Request, kind: type[T]) -> T:
    """Parse the query as ``kind``; commas separate items of lists.  Raises ``ApiError``: 400."""
    lists = {field.name for field in msgspec.structs.fields(kind) if is_list(field.type)}
    values: dict[str, Any] = {}
    for name, value in request.query.items():
        if name in values:
            raise errors.bad_field(name, f"{name} is given twice; give it once.")
        values[name] = value if name not in lists else value.split(",") if value else []
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        _explain(error, kind)


async def read_body(request: web.Request, kind: type[T], seconds: float) -> T:
    """Parse the JSON body as ``kind``; an empty body is an empty object.  Raises ``ApiError``."""
    if (request.content_length or 0) > MAX_BODY:
        raise errors.body_too_large(MAX_BODY)
    try:
        async with asyncio.timeout(seconds):
            body = await request.read()
    except TimeoutError:
        raise errors.too_slow("body") from None
    except web.RequestPayloadError as error:
        raise errors.bad_request(f"The request body can't be read: {error}.") from None
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.ValidationError as error:
        _explain(error, kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.bad_json(str(error)) from None


def not_found(what: str, id: str, *, param: str = "id", where: str = "") -> ApiError:
    """Make a 404 for a ``what`` that does not exist, or is not where it is looked for."""
    text = f"No {what} '{id}' is {where}." if where else f"There is no {what} '{id}'."
    return ApiError(404, f"{what}_not_found", text, param=param)


def invalid_value(error: ValueError) -> ApiError:
    """Make a 400 from an error whose text is a sentence without its full stop."""
    text = str(error)
    return ApiError(400, "invalid_value", f"{text[:1].upper()}{text[1:]}.")


def is_list(kind: Any) -> bool:
    """Return whether a type is a list, or a list or None."""
    if get_origin(kind) is Annotated:
        return is_list(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return any(map(is_list, get_args(kind)))
    return kind is list or get_origin(kind) is list


def is_required(field: msgspec.structs.FieldInfo) -> bool:
    """Return whether a field has no default."""
    return field.default is NODEFAULT and field.default_factory is NODEFAULT


def _explain(error: msgspec.ValidationError, kind: type[Struct]) -> NoReturn:
    """Raise a 400 that names the field, and the names or values that are possible."""
    text = str(error)
    where = _AT.search(text) or _FIELD.search(text)
    text = _AT.sub("", text).replace("Object", "The request")
    param = where.group(1) if where else None
    if "unknown field" in text:
        known = ", ".join(kind.__struct_fields__)
        text = f"There is no field '{param}'. Known fields: {known}"
    elif "Invalid enum value" in text and param:
        field = next(
            field for field in msgspec.structs.fields(kind) if param.startswith(field.name)
        )
        choices = ", ".join(_choices(msgspec.json.schema(field.type)))
        text = f"{param}: {text}. Possible values: {choices}"
    elif param and param not in text:
        text = f"{param}: {text}"
    raise ApiError(400, "invalid_value", f"{text}.", param=param) from None


def _choices(schema: Any) -> list[str]:
    if isinstance(schema, dict):
        return [*schema.get("enum", ()), *chain(*map(_choices, schema.values()))]
    return [*chain(*map(_choices, schema))] if isinstance(schema, list) else []
