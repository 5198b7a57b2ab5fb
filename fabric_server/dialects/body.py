"""Parses the few fields of a request's body that the fabric needs: ``model``, ``stream``, usage.

Bodies pass verbatim, with one change: ``"stream_options":{"include_usage":true}`` is inserted as
text into a streamed request, so that the engine reports usage and the user's text stays as written.
"""

from __future__ import annotations

import re
from itertools import islice, product

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from fabric_server.dialects import errors
from fabric_server.dialects.endpoints import CHAT, Endpoint
from fabric_server.dialects.errors import ApiError
from fabric_server.dialects.forms import read_field, read_form
from fabric_server.dialects.json_keys import Scanner

MAX_MODEL = 256
_WITH_USAGE = b'"stream_options":{"include_usage":true}'
_MAX_PLACES = 4
_MAX_ESCAPES = 20_000
_OPEN_BRACE = re.compile(rb"[ \t\r\n]*\{")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


class ParsedBody(Struct, frozen=True, gc=False):
    model: str
    stream: bool
    usage_requested: bool
    """The client wants the usage chunk of a stream; otherwise the meter takes it out."""
    patch: tuple[int, int, bytes] | None
    """Start, stop and text: the replacement of a range of the body's bytes."""
    token_ids: bool = False
    """The input to embed consists of token ids, which not every kind of engine takes."""


class _Body(Struct, gc=False):
    model: str | UnsetType = UNSET
    stream: bool | None = None
    stream_options: Raw | UnsetType = UNSET


class _StreamOptions(Struct, gc=False):
    include_usage: bool | None = None


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_options = msgspec.json.Decoder(_StreamOptions | None).decode
_decode_raw_options = msgspec.json.Decoder(dict[str, Raw] | None).decode
_UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


class _Stateful(Struct, gc=False):
    previous_response_id: Raw | UnsetType = UNSET
    conversation: Raw | UnsetType = UNSET
    background: Raw | UnsetType = UNSET


class _Input(Struct, gc=False):
    input: Raw | UnsetType = UNSET


_decode_stateful = msgspec.json.Decoder(_Stateful).decode
_decode_input = msgspec.json.Decoder(_Input).decode
_NUMBERS = re.compile(rb"\[\s*(?:\[\s*)?-?\d")
_NONE = (b"null", b"false")


def parse_body(body: bytes, endpoint: Endpoint = CHAT, content_type: bytes = b"") -> ParsedBody:
    """Parse a complete body.  Raises ``ApiError`` that names the wrong field or position."""
    if endpoint.form:
        return _read_form(body, content_type)
    fields = _read_fields(body)
    model = _model(fields)
    # A cheap check, because it is almost never true.
    if body.lower().count(b'"model"') != body.count(b'"model"') or rb"\u00" in body:
        _refuse_two_models(body)
    if endpoint.rejects_state:
        _refuse_state(body)
    if not endpoint.injects_usage:
        streams = endpoint.streams is not None
        unasked = streams and endpoint.streams_by_default
        stream = streams and (unasked if fields.stream is None else fields.stream)
        return ParsedBody(
            model, stream, True, None, _is_numbers(body) if endpoint.buffers_body else False
        )
    if not fields.stream:
        return ParsedBody(model, False, False, None)
    if fields.stream_options is UNSET:
        return ParsedBody(model, True, False, _put_in_front(body))
    options = bytes(fields.stream_options)
    asked, clearly = _requests_usage(options)
    return ParsedBody(model, True, asked, None if clearly else _usage_patch(body, options))


def _read_form(body: bytes, content_type: bytes) -> ParsedBody:
    fields = read_form(body, content_type, frozenset({"model", "stream"}))
    model = read_field(body, fields, "model")
    stream = read_field(body, fields, "stream")
    name = _model(_Body(UNSET if model is None else model))
    return ParsedBody(
        name, stream is not None and stream.strip().lower() in ("true", "1"), True, None
    )


def _refuse_state(body: bytes) -> None:
    """Refuse references to earlier answers, and background mode: answers are not stored."""
    given = _decode_stateful(_readable(body))
    for name in ("previous_response_id", "conversation", "background"):
        value = getattr(given, name)
        if value is not UNSET and bytes(value) not in _NONE:
            words = f"'{name}' is not supported: answers are not stored. Send the whole input."
            raise errors.bad_field(name, words)


def _is_numbers(body: bytes) -> bool:
    given = _decode_input(_readable(body)).input
    return isinstance(given, Raw) and _NUMBERS.match(bytes(given)) is not None


def _read_fields(body: bytes) -> _Body:
    try:
        return _decode_body(body)
    except msgspec.ValidationError as error:
        raise _explain(error) from None
    except _UNREADABLE as error:
        readable = _readable(body)
        if readable != body:
            return _read_fields(readable)
        words = str(error)
        if "truncated" in words:
            words = f"it ends too early, at byte {len(body)}"
        elif isinstance(error, RecursionError):
            words = "it is nested too deeply"
        raise errors.bad_json(words) from None


def _readable(body: bytes) -> bytes:
    """Replace lone surrogates, which msgspec rejects and most engines accept; offsets stay."""
    if body.count(rb"\u") > _MAX_ESCAPES:
        return body
    return _SURROGATE.sub(rb"\\u003f", body)


def _model(fields: _Body) -> str:
    model = fields.model
    if not isinstance(model, str):
        raise errors.bad_field("model", "'model' is missing; it must be the name of a model.")
    if not 0 < len(model) <= MAX_MODEL or not model.isprintable():
        raise errors.bad_field("model", "'model' must have 1 to 256 printable characters.")
    return model


def _explain(error: msgspec.ValidationError) -> ApiError:
    words = str(error)
    field = re.search(r"at `\$\.(\w+)", words)
    if field is None:
        return errors.bad_field("body", "The request body must be a JSON object.")
    expected = words.split(" - at ")[0].replace("`", "'")
    return errors.bad_field(field[1], f"'{field[1]}' has the wrong type: {expected}.")


# ── other spellings of "model" ────────────────────────────────────────────────────────────────
#
# Engines written in Go, such as Ollama, take "Model" for "model", and the last one counts.  A
# request must not be authorised for one model and served by another, which the key may not use.

_SPELLINGS = ["".join(letters) for letters in product(*zip("model", "MODEL", strict=True))]
_Spelled = msgspec.defstruct(
    "_Spelled",
    [
        (spelling, Raw | UnsetType, UNSET)  # names that differ by case only
        for spelling in _SPELLINGS
    ],
    gc=False,
)
_decode_spelled = msgspec.json.Decoder(_Spelled).decode


def _refuse_two_models(body: bytes) -> None:
    try:
        fields = _decode_spelled(body)
    except _UNREADABLE:
        fields = _decode_spelled(_readable(body))
    if sum(getattr(fields, spelling) is not UNSET for spelling in _SPELLINGS) > 1:
        raise errors.bad_field("model", "'model' must be given once, in lower case.")


# ── stream_options ────────────────────────────────────────────────────────────────────────────


def _requests_usage(options: bytes) -> tuple[bool, bool]:
    """Return whether the client asks for usage, and whether every engine would see it so."""
    try:
        wanted = _decode_options(options)
        keys = _decode_raw_options(options) or {}
    except msgspec.ValidationError:
        words = "'stream_options' must be an object whose 'include_usage' is true or false."
        raise errors.bad_field("stream_options", words) from None
    except _UNREADABLE as error:
        raise errors.bad_json(f"{error}, within 'stream_options'") from None
    asked = wanted is not None and wanted.include_usage is True
    return asked, asked and sum(key.casefold() == "include_usage" for key in keys) == 1


def _put_in_front(text: bytes) -> tuple[int, int, bytes] | None:
    brace = _OPEN_BRACE.match(text)
    return (brace.end(), brace.end(), _WITH_USAGE + b",") if brace else None


def _usage_patch(body: bytes, options: bytes) -> tuple[int, int, bytes] | None:
    """Return the patch of the value of ``stream_options``; None when its place is unclear."""
    others = (_decode_raw_options(options) or {}).items()
    kept = {key: value for key, value in others if key.casefold() != "include_usage"}
    new = msgspec.json.encode(kept | {"include_usage": Raw(b"true")})
    # Inside a string its quotes would be escaped; but it may be a nested key as well.
    places = re.finditer(rb'"stream_options"\s*:\s*(%b)' % re.escape(options), body)
    for place in reversed(list(islice(places, _MAX_PLACES))):
        start, stop = place.span(1)
        there = _read_fields(body[:start] + new + body[stop:]).stream_options
        if isinstance(there, Raw) and bytes(there) == new:
            return start, stop, new
    return None


# ── bodies too large to be read whole ─────────────────────────────────────────────────────────


class EarlyBody:
    """Parses a large body before it is complete.

    The result is known once ``model`` and ``stream`` have come.  With ``stream`` true and no
    ``stream_options`` so far, the fabric's own are inserted in front: should the client's come
    later, those win, and only the usage figures of this request are lost.
    """

    def __init__(self, endpoint: Endpoint = CHAT) -> None:
        self._endpoint = endpoint
        self._scanner = Scanner(frozenset({b"model", b"stream", b"stream_options"}))

    @property
    def text(self) -> bytes:
        """The bytes that were fed so far."""
        return self._scanner.text

    def feed(self, data: bytes) -> ParsedBody | None:
        """Add bytes; return the result once it is known.  Raises ``ApiError`` naming the field."""
        self._scanner.feed(data)
        spans = self._scanner.spans
        if b"model" not in spans or b"stream" not in spans:
            return None
        text = self._scanner.text
        fields = [b'"%b":%b' % (key, text[slice(*span)]) for key, span in spans.items()]
        try:
            parsed = parse_body(b"{%b}" % b",".join(fields), self._endpoint)
        except ApiError as error:
            if error.code == "invalid_json":
                return None  # once complete, the error can name the position
            raise
        if parsed.patch is None:
            return parsed
        span = spans.get(b"stream_options")
        patch = (*span, parsed.patch[2]) if span else _put_in_front(text)
        return (
            ParsedBody(parsed.model, parsed.stream, parsed.usage_requested, patch)
            if patch
            else None
        )
