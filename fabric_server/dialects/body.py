"""What the fabric must know of a request's body: its ``model``, and whether it streams.

Bodies pass verbatim.  One change is ever made: a streamed request is asked to report its usage,
by ``"stream_options":{"include_usage":true}`` put in as text, so that what the user wrote stays as
it was written.
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
    usage_asked: bool
    """The user wants the usage chunk of a stream; otherwise it is ours alone."""
    patch: tuple[int, int, bytes] | None
    """Replace the body's bytes from the first offset up to the second by these."""
    token_ids: bool = False
    """What is to be embedded is given as numbers, which not every kind of engine takes."""


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
    """Read a complete body.  Raises Refusal naming the field or the position that is wrong."""
    if endpoint.form:
        return _read_form(body, content_type)
    fields = _read_fields(body)
    model = _model(fields)
    # Almost never true, so that it has to cost little.
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
    asked, clearly = _usage_asked(options)
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
    """Answers are not kept here: nothing can go on from one, or be fetched later."""
    given = _decode_stateful(_readable(body))
    for name in ("previous_response_id", "conversation", "background"):
        value = getattr(given, name)
        if value is not UNSET and bytes(value) not in _NONE:
            words = f"'{name}' is not possible here: answers are not kept. Send the whole input."
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
            words = f"the JSON ends too early, at byte {len(body)}"
        elif isinstance(error, RecursionError):
            words = "the JSON is nested too deeply"
        raise errors.bad_json(words) from None


def _readable(body: bytes) -> bytes:
    """Without half emojis, which msgspec minds and most engines don't; no offset changes."""
    if body.count(rb"\u") > _MAX_ESCAPES:
        return body
    return _SURROGATE.sub(rb"\\u003f", body)


def _model(fields: _Body) -> str:
    model = fields.model
    if not isinstance(model, str):
        raise errors.bad_field("model", "'model' is missing: it must name a model, as a string.")
    if not 0 < len(model) <= MAX_MODEL or not model.isprintable():
        raise errors.bad_field("model", "'model' must be a name of 1 to 256 characters.")
    return model


def _explain(error: msgspec.ValidationError) -> ApiError:
    words = str(error)
    field = re.search(r"at `\$\.(\w+)", words)
    if field is None:
        return errors.bad_field("body", "The request body must be a JSON object.")
    expected = words.split(" - at ")[0].replace("`", "'")
    return errors.bad_field(field[1], f"'{field[1]}' is of the wrong type: {expected}.")


# ── other spellings of "model" ────────────────────────────────────────────────────────────────
#
# Engines written in Go, such as Ollama, take "Model" for "model", and the last one counts.  Nobody
# must be let in for one model and get another, which a key or a node's owner keeps from them.

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
        raise errors.bad_field("model", "'model' must be there once, in small letters.")


# ── stream_options ────────────────────────────────────────────────────────────────────────────


def _usage_asked(options: bytes) -> tuple[bool, bool]:
    """Whether the user asks for usage, and whether no engine could take it otherwise."""
    try:
        wanted = _decode_options(options)
        keys = _decode_raw_options(options) or {}
    except msgspec.ValidationError:
        words = "'stream_options' must be an object, its 'include_usage' true or false."
        raise errors.bad_field("stream_options", words) from None
    except _UNREADABLE as error:
        raise errors.bad_json(f"{error}, within 'stream_options'") from None
    asked = wanted is not None and wanted.include_usage is True
    return asked, asked and sum(key.casefold() == "include_usage" for key in keys) == 1


def _put_in_front(text: bytes) -> tuple[int, int, bytes] | None:
    brace = _OPEN_BRACE.match(text)
    return (brace.end(), brace.end(), _WITH_USAGE + b",") if brace else None


def _usage_patch(body: bytes, options: bytes) -> tuple[int, int, bytes] | None:
    """Exchanges the value of ``stream_options``; None when it can't be told where that stands."""
    others = (_decode_raw_options(options) or {}).items()
    kept = {key: value for key, value in others if key.casefold() != "include_usage"}
    new = msgspec.json.encode(kept | {"include_usage": Raw(b"true")})
    # Inside a string its quotes would be escaped; but it may be a key further inside as well.
    places = re.finditer(rb'"stream_options"\s*:\s*(%b)' % re.escape(options), body)
    for place in reversed(list(islice(places, _MAX_PLACES))):
        start, stop = place.span(1)
        there = _read_fields(body[:start] + new + body[stop:]).stream_options
        if isinstance(there, Raw) and bytes(there) == new:
            return start, stop, new
    return None


# ── bodies too large to be read whole ─────────────────────────────────────────────────────────


class EarlyBody:
    """Tries to answer ``ParsedBody`` before a large body is complete.

    It can when ``model`` and ``stream`` have both come, and with ``stream`` true and no
    ``stream_options`` so far it puts its own in front: should the user's come later, that one wins,
    and only the usage figures of this request are lost.
    """

    def __init__(self, endpoint: Endpoint = CHAT) -> None:
        self._endpoint = endpoint
        self._scanner = Scanner(frozenset({b"model", b"stream", b"stream_options"}))

    @property
    def text(self) -> bytes:
        """All that was fed."""
        return self._scanner.text

    def feed(self, data: bytes) -> ParsedBody | None:
        """None: not yet.  Raises Refusal naming the field that is wrong."""
        self._scanner.feed(data)
        spans = self._scanner.spans
        if b"model" not in spans or b"stream" not in spans:
            return None
        text = self._scanner.text
        fields = [b'"%b":%b' % (key, text[slice(*span)]) for key, span in spans.items()]
        try:
            ask = parse_body(b"{%b}" % b",".join(fields), self._endpoint)
        except ApiError as refusal:
            if refusal.code == "invalid_json":
                return None  # read whole, it can be told where
            raise
        if ask.patch is None:
            return ask
        span = spans.get(b"stream_options")
        patch = (*span, ask.patch[2]) if span else _put_in_front(text)
        return ParsedBody(ask.model, ask.stream, ask.usage_asked, patch) if patch else None
