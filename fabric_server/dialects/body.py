"""Parses the few fields of a request's body that the fabric needs: ``model``, ``stream``, usage.

Bodies pass verbatim, with one change: ``"stream_options":{"include_usage":true}`` is inserted as
text into a streamed request, so that the engine reports usage and the user's text stays as written.

    parse_body    reads a whole body of moderate size
    LargeBody     (``large_body``) reads one that is still arriving
"""

from __future__ import annotations

import re

import msgspec
from msgspec import UNSET, Raw
from msgspec.structs import replace

from fabric_server.dialects import errors
from fabric_server.dialects.endpoints import CHAT, Endpoint
from fabric_server.dialects.errors import ApiError
from fabric_server.dialects.fields import (
    Fields,
    ParsedBody,
    decode_body,
    decode_input,
    decode_keys,
    decode_options,
    decode_raw_options,
    decode_stateful,
)
from fabric_server.dialects.forms import Field, FormScanner, quote_names, read_field

MAX_MODEL = 256
DECIDING = ("model", "stream", "stream_options")
"""Fields that decide who may ask, who answers and what is billed."""
FORM_FIELDS = frozenset({"model", "stream", "priority"})
STORE = b'"store"'
"""The key by which a request asks for its answer to be stored; within a text quotes are escaped."""
WITH_USAGE = b'"stream_options":{"include_usage":true}'
_MAX_ESCAPES = 20_000
_OPEN_BRACE = re.compile(rb"[ \t\r\n]*\{")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


_UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


_NUMBERS = re.compile(rb"\[\s*(?:\[\s*)?-?\d")
_NONE = (b"null", b"false")
STATEFUL = {
    "previous_response_id": "Send the whole input.",
    "conversation": "Send the whole input.",
    "background": "Use 'stream', or hand in an asynchronous job at /inference or a batch.",
}
"""Fields that rely on what a server keeps, and what to do instead."""


def parse_body(body: bytes, endpoint: Endpoint = CHAT, content_type: bytes = b"") -> ParsedBody:
    """Parse a complete body.  Raises ``ApiError`` that names the wrong field or position.

    Where a value stands that has to be replaced is left to ``places_in`` (``ParsedBody.options``).
    """
    if endpoint.form:
        scanner = FormScanner(content_type, FORM_FIELDS)
        scanner.feed(body)
        parsed = describe_form(scanner.end())
        if scanner.bare:
            quoted = quote_names(body, scanner.bare)
            parsed = replace(parsed, patch=(0, len(body), quoted))
        return parsed
    fields = _read_fields(body)
    parsed = _describe(fields, endpoint)
    if fields.priority is not UNSET:
        refuse_priority(bytes(fields.priority))
    _refuse_other_spellings(body)
    if endpoint.rejects_state:
        _refuse_state(body)
    if endpoint.injects_usage:
        if parsed.stream and fields.stream_options is UNSET:
            return ParsedBody(parsed.model, True, False, _put_in_front(body))
    elif endpoint.buffers_body and _is_numbers(body):
        return ParsedBody(parsed.model, parsed.stream, True, None, token_ids=True)
    return parsed


def describe(texts: dict[str, bytes], endpoint: Endpoint) -> ParsedBody:
    """Return what the texts of the deciding fields say.  Raises ``ApiError``."""
    members = [b'"%b":%b' % (name.encode(), texts[name]) for name in DECIDING if name in texts]
    return _describe(_read_fields(b"{%b}" % b",".join(members)), endpoint)


def _describe(fields: Fields, endpoint: Endpoint) -> ParsedBody:
    model = _model(fields)
    if not endpoint.injects_usage:
        streams = endpoint.streams is not None
        unasked = streams and endpoint.streams_by_default
        stream = streams and (unasked if fields.stream is None else fields.stream)
        return ParsedBody(model, stream, True, None)
    if not fields.stream:
        return ParsedBody(model, False, False, None)
    if fields.stream_options is UNSET:
        return ParsedBody(model, True, False, None)
    options = bytes(fields.stream_options)
    asked, clearly = _requests_usage(options)
    return ParsedBody(model, True, asked, None, options=None if clearly else _with_usage(options))


def describe_form(fields: dict[str, Field]) -> ParsedBody:
    """Return what the fields of a form say.  Raises ``ApiError``."""
    model = read_field(fields, "model")
    stream = read_field(fields, "stream")
    if "priority" in fields:
        refuse_priority()
    name = _model(Fields(UNSET if model is None else model))
    streams = stream is not None and stream.strip().lower() in ("true", "1")
    place = fields["model"].start, fields["model"].stop
    return ParsedBody(name, streams, True, None, place=place)


def _refuse_state(body: bytes) -> None:
    given = decode_stateful(readable(body))
    for name in STATEFUL:
        value = getattr(given, name)
        if value is not UNSET:
            refuse_state(name, bytes(value))


def refuse_state(name: str, value: bytes) -> None:
    """Refuse references to earlier answers, and background mode, where they are not available."""
    if value not in _NONE:
        raise errors.bad_field(name, f"'{name}' is not supported here. {STATEFUL[name]}")


def refuse_priority(value: bytes = b"") -> None:
    """Refuse the field by which users of vLLM or SGLang pass others inside the engine.

    The operator gives priority, and ``x-fabric-priority`` asks for it.
    """
    if value != b"null":
        words = "'priority' is not supported in the body. Send the header x-fabric-priority."
        raise errors.bad_field("priority", words)


def read_store(value: bytes) -> bool:
    """Return whether ``store`` asks for the answer to be stored.  Raises ``ApiError``: 400."""
    if value not in (b"true", b"false", b"null"):
        raise errors.bad_field("store", "'store' must be true or false.")
    return value == b"true"


def are_numbers(value: bytes) -> bool:
    """Return whether the input to embed, or its beginning, consists of token ids."""
    return _NUMBERS.match(value) is not None


def _is_numbers(body: bytes) -> bool:
    given = decode_input(readable(body)).input
    return isinstance(given, Raw) and are_numbers(bytes(given))


def _read_fields(body: bytes) -> Fields:
    try:
        return decode_body(body)
    except msgspec.ValidationError as error:
        raise _explain(error) from None
    except _UNREADABLE as error:
        text = readable(body)
        if text != body:
            return _read_fields(text)
        words = str(error)
        if "truncated" in words:
            words = f"it ends too early, at byte {len(body)}"
        elif isinstance(error, RecursionError):
            words = "it is nested too deeply"
        raise errors.bad_json(words) from None


def readable(body: bytes) -> bytes:
    """Replace lone surrogates, which msgspec rejects and most engines accept; offsets stay."""
    if body.count(rb"\u") > _MAX_ESCAPES:
        return body
    return _SURROGATE.sub(rb"\\u003f", body)


def _model(fields: Fields) -> str:
    model = fields.model
    if not isinstance(model, str):
        raise errors.bad_field("model", "'model' is missing; it must be the name of a model.")
    if not 0 < len(model) <= MAX_MODEL or not model.isprintable():
        raise bad_model()
    return model


def bad_model() -> ApiError:
    return errors.bad_field("model", "'model' must have 1 to 256 printable characters.")


def _explain(error: msgspec.ValidationError) -> ApiError:
    words = str(error)
    field = re.search(r"at `\$\.(\w+)", words)
    if field is None:
        return errors.not_an_object()
    expected = words.split(" - at ")[0].replace("`", "'")
    return errors.bad_field(field[1], f"'{field[1]}' has the wrong type: {expected}.")


# ── other spellings of "model" ────────────────────────────────────────────────────────────────
#
# Engines written in Go, such as Ollama, take "Model" for "model", and the last one counts.  A
# request must not be authorised for one model and served by another, which the key may not use.


def refuse_twice(name: str) -> ApiError:
    """Return the error for a deciding field that engines could read in two ways."""
    return errors.bad_field(name, f"'{name}' must be given once, in lower case.")


def _refuse_other_spellings(body: bytes) -> None:
    keys = _keys_of(body)
    letters = "".join(keys)
    if letters.isascii() and letters.islower():  # as nearly always
        return
    for key in keys:
        name = key.casefold()
        if name != key and name in DECIDING:
            raise refuse_twice(name)


def _keys_of(body: bytes) -> dict[str, Raw]:
    """Return the fields of a body that ``Fields`` was read from, which asks less of their names."""
    try:
        return decode_keys(body)
    except _UNREADABLE:
        body = readable(body).decode(errors="replace").encode()
    try:
        return decode_keys(body)
    except _UNREADABLE as error:
        raise errors.bad_json(str(error)) from None


# ── stream_options ────────────────────────────────────────────────────────────────────────────


def _requests_usage(options: bytes) -> tuple[bool, bool]:
    """Return whether the client asks for usage, and whether every engine would see it so."""
    try:
        wanted = decode_options(options)
        keys = decode_raw_options(options) or {}
    except msgspec.ValidationError:
        words = "'stream_options' must be an object whose 'include_usage' is true or false."
        raise errors.bad_field("stream_options", words) from None
    except _UNREADABLE as error:
        raise errors.bad_json(f"{error}, within 'stream_options'") from None
    asked = wanted is not None and wanted.include_usage is True
    return asked, asked and sum(key.casefold() == "include_usage" for key in keys) == 1


def _put_in_front(text: bytes) -> tuple[int, int, bytes] | None:
    brace = _OPEN_BRACE.match(text)
    return (brace.end(), brace.end(), WITH_USAGE + b",") if brace else None


def _with_usage(options: bytes) -> bytes:
    """Return the value of ``stream_options`` that asks for usage, and for what it asked before."""
    others = (decode_raw_options(options) or {}).items()
    kept = {key: value for key, value in others if key.casefold() != "include_usage"}
    return msgspec.json.encode(kept | {"include_usage": Raw(b"true")})
