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

from fabric_server import refusals
from fabric_server.refusals import Refusal
from fabric_server.scanner import Scanner

MOST_MODEL = 256
_WITH_USAGE = b'"stream_options":{"include_usage":true}'
_MOST_PLACES = 4
_MOST_ESCAPES = 20_000
_OPEN_BRACE = re.compile(rb"[ \t\r\n]*\{")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


class Ask(Struct, frozen=True, gc=False):
    model: str
    stream: bool
    usage_asked: bool
    """The user wants the usage chunk of a stream; otherwise it is ours alone."""
    patch: tuple[int, int, bytes] | None
    """Replace the body's bytes from the first offset up to the second by these."""


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


def read_ask(body: bytes) -> Ask:
    """Read a complete body.  Raises Refusal naming the field or the position that is wrong."""
    fields = _read_fields(body)
    model = _model(fields)
    # Almost never true, so that it has to cost little.
    if body.lower().count(b'"model"') != body.count(b'"model"') or rb"\u00" in body:
        _refuse_two_models(body)
    if not fields.stream:
        return Ask(model, False, False, None)
    if fields.stream_options is UNSET:
        return Ask(model, True, False, _put_in_front(body))
    options = bytes(fields.stream_options)
    asked, clearly = _usage_asked(options)
    return Ask(model, True, asked, None if clearly else _usage_patch(body, options))


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
        raise refusals.bad_json(words) from None


def _readable(body: bytes) -> bytes:
    """Without half emojis, which msgspec minds and most engines don't; no offset changes."""
    if body.count(rb"\u") > _MOST_ESCAPES:
        return body
    return _SURROGATE.sub(rb"\\u003f", body)


def _model(fields: _Body) -> str:
    model = fields.model
    if not isinstance(model, str):
        raise refusals.bad_field("model", "'model' is missing: it must name a model, as a string.")
    if not 0 < len(model) <= MOST_MODEL or not model.isprintable():
        raise refusals.bad_field("model", "'model' must be a name of 1 to 256 characters.")
    return model


def _explain(error: msgspec.ValidationError) -> Refusal:
    words = str(error)
    field = re.search(r"at `\$\.(\w+)", words)
    if field is None:
        return refusals.bad_field("body", "The request body must be a JSON object.")
    expected = words.split(" - at ")[0].replace("`", "'")
    return refusals.bad_field(field[1], f"'{field[1]}' is of the wrong type: {expected}.")


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
        raise refusals.bad_field("model", "'model' must be there once, in small letters.")


# ── stream_options ────────────────────────────────────────────────────────────────────────────


def _usage_asked(options: bytes) -> tuple[bool, bool]:
    """Whether the user asks for usage, and whether no engine could take it otherwise."""
    try:
        wanted = _decode_options(options)
        keys = _decode_raw_options(options) or {}
    except msgspec.ValidationError:
        words = "'stream_options' must be an object, its 'include_usage' true or false."
        raise refusals.bad_field("stream_options", words) from None
    except _UNREADABLE as error:
        raise refusals.bad_json(f"{error}, within 'stream_options'") from None
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
    for place in reversed(list(islice(places, _MOST_PLACES))):
        start, stop = place.span(1)
        there = _read_fields(body[:start] + new + body[stop:]).stream_options
        if isinstance(there, Raw) and bytes(there) == new:
            return start, stop, new
    return None


# ── bodies too large to be read whole ─────────────────────────────────────────────────────────


class EarlyAsk:
    """Tries to answer ``Ask`` before a large body is complete.

    It can when ``model`` and ``stream`` have both come, and with ``stream`` true and no
    ``stream_options`` so far it puts its own in front: should the user's come later, that one wins,
    and only the usage figures of this request are lost.
    """

    def __init__(self) -> None:
        self._scanner = Scanner(frozenset({b"model", b"stream", b"stream_options"}))

    @property
    def text(self) -> bytes:
        """All that was fed."""
        return self._scanner.text

    def feed(self, data: bytes) -> Ask | None:
        """None: not yet.  Raises Refusal naming the field that is wrong."""
        self._scanner.feed(data)
        spans = self._scanner.spans
        if b"model" not in spans or b"stream" not in spans:
            return None
        text = self._scanner.text
        fields = [b'"%b":%b' % (key, text[slice(*span)]) for key, span in spans.items()]
        try:
            ask = read_ask(b"{%b}" % b",".join(fields))
        except Refusal as refusal:
            if refusal.code == "invalid_json":
                return None  # read whole, it can be told where
            raise
        if ask.patch is None:
            return ask
        span = spans.get(b"stream_options")
        patch = (*span, ask.patch[2]) if span else _put_in_front(text)
        return Ask(ask.model, ask.stream, ask.usage_asked, patch) if patch else None
