"""What the fabric must know of a request's body: its ``model``, and whether it streams.

Bodies pass verbatim.  One change is ever made: a streamed request is asked to report its usage,
by ``"stream_options":{"include_usage":true}`` put in as text, so that what the user wrote stays as
it was written.
"""

from __future__ import annotations

import re

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from fabric_server import refusals

WITH_USAGE = b'"stream_options":{"include_usage":true}'
MOST_MODEL = 256
MOST_MARKS = 100_000
"""Brackets, commas and strings that are looked at before a body is complete: some 50 ms of work."""
_OPEN_BRACE = re.compile(rb"[ \t\r\n]*\{")


class Ask(Struct, frozen=True, gc=False):
    model: str
    stream: bool
    usage_asked: bool
    """The user wants the usage chunk of a stream; otherwise it is ours alone."""
    patch: tuple[int, int, bytes] | None
    """Replace the body's bytes from the first offset up to the second by these."""


class _StreamOptions(Struct, gc=False):
    include_usage: bool | None = None


class _Body(Struct, gc=False):
    model: str | UnsetType = UNSET
    stream: bool | None = None
    stream_options: _StreamOptions | UnsetType | None = UNSET


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_options = msgspec.json.Decoder(dict[str, Raw] | None).decode


def read_ask(body: bytes) -> Ask:
    """Read a complete body.  Raises Refusal naming the field or the position that is wrong."""
    fields = _read_fields(body)
    if not fields.stream:
        return Ask(_model(fields), False, False, None)
    options = fields.stream_options
    if options and options.include_usage:
        return Ask(_model(fields), True, True, None)
    span = None if options is UNSET else _value_span(body, b"stream_options")
    return Ask(_model(fields), True, False, _usage_patch(body, span))


def _read_fields(body: bytes) -> _Body:
    try:
        return _decode_body(body)
    except msgspec.ValidationError as error:
        raise _explain(error) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        words = str(error)
        if "truncated" in words:
            words = f"the JSON ends too early, at byte {len(body)}"
        raise refusals.bad_json(words) from None


def _model(fields: _Body) -> str:
    model = fields.model
    if not isinstance(model, str):
        raise refusals.bad_field("model", "'model' is missing: it must name a model, as a string.")
    if not 0 < len(model) <= MOST_MODEL or not model.isprintable():
        raise refusals.bad_field("model", "'model' must be a name of 1 to 256 characters.")
    return model


def _usage_patch(text: bytes, span: tuple[int, int] | None) -> tuple[int, int, bytes]:
    """``span`` is where the value of ``stream_options`` stands; None when there is none."""
    if span is None:
        brace = _OPEN_BRACE.match(text)
        if brace is None:
            raise refusals.bad_field("body", "The request body must be a JSON object.")
        return brace.end(), brace.end(), WITH_USAGE + b","
    options = _decode_options(text[slice(*span)]) or {}
    options["include_usage"] = Raw(b"true")
    return *span, msgspec.json.encode(options)


def _explain(error: msgspec.ValidationError) -> refusals.Refusal:
    words = str(error)
    field = re.search(r"at `\$\.(\w+)", words)
    if field is None:
        return refusals.bad_field("body", "The request body must be a JSON object.")
    expected = words.split(" - at ")[0].replace("`", "'")
    return refusals.bad_field(field[1], f"'{field[1]}' is of the wrong type: {expected}.")


# ── top-level keys of a JSON object that need not be complete ─────────────────────────────────

_MARK = re.compile(rb'["{}\[\],:]')
_DEEP_MARK = re.compile(rb'["{}\[\]]')
_STRING_END = re.compile(rb'["\\]')


class Scanner:
    """Finds top-level values of a JSON object while it arrives, without parsing what is inside.

    ``feed`` takes the pieces in order.  ``spans`` maps each of the wanted keys met so far to the
    (start, stop) of its complete value.  It trusts the text to be JSON: on other text it finds
    nothing or something wrong, and the engine will say so; it never raises.  On a body of very many
    parts it gives up, and finds nothing more.
    """

    def __init__(self, wanted: frozenset[bytes]) -> None:
        self.spans: dict[bytes, tuple[int, int]] = {}
        self._wanted = wanted
        self._text = bytearray()
        self._at = 0
        self._marks = 0
        self._depth = 0
        self._string_from = -1
        self._last_string: bytes = b""
        self._key: bytes | None = None
        self._value_from = -1

    @property
    def text(self) -> bytes:
        return bytes(self._text)

    def feed(self, data: bytes) -> None:
        text = self._text
        text += data
        at, end = self._at, len(text)
        while at < end and self._marks < MOST_MARKS:
            if self._string_from >= 0:
                found = _STRING_END.search(text, at)
                if found is None:
                    at = end
                    break
                if found[0] == b"\\":
                    if found.end() == end:
                        at = found.start()  # what is escaped has not come yet
                        break
                    at = found.end() + 1
                    continue
                at = found.end()
                if self._depth == 1 and self._key is None:
                    self._last_string = bytes(text[self._string_from : at - 1])
                self._string_from = -1
                continue
            self._marks += 1
            found = (_MARK if self._depth < 2 else _DEEP_MARK).search(text, at)
            if found is None:
                at = end
                break
            at = found.end()
            self._on_mark(found[0], at)
        self._at = at

    def _on_mark(self, mark: bytes, at: int) -> None:
        if mark == b'"':
            self._string_from = at
        elif mark in b"{[":
            self._depth += 1
        elif mark == b":":
            if self._depth == 1 and self._key is None:
                self._key, self._value_from = self._last_string, at
        elif mark == b",":
            if self._depth == 1:
                self._end_value(at - 1)
        else:
            if self._depth == 1:
                self._end_value(at - 1)
            self._depth -= 1

    def _end_value(self, stop: int) -> None:
        if self._key in self._wanted:
            start = self._value_from
            value = bytes(self._text[start:stop])
            start += len(value) - len(value.lstrip())
            self.spans[self._key] = start, start + len(value.strip())
        self._key = None


_WANTED = frozenset({b"model", b"stream", b"stream_options"})


class EarlyAsk:
    """Tries to answer ``Ask`` before a large body is complete.

    It can when ``model`` and ``stream`` have both come, and with ``stream`` true and no
    ``stream_options`` so far it puts its own in front: should the user's come later, that one wins,
    and only the usage figures of this request are lost.
    """

    def __init__(self) -> None:
        self._scanner = Scanner(_WANTED)

    @property
    def text(self) -> bytes:
        """All that was fed."""
        return self._scanner.text

    def feed(self, data: bytes) -> Ask | None:
        self._scanner.feed(data)
        spans = self._scanner.spans
        if b"model" not in spans or b"stream" not in spans:
            return None
        text = self._scanner.text
        found = {key.decode(): Raw(text[slice(*spans[key])]) for key in spans}
        ask = read_ask(msgspec.json.encode(found))
        if ask.patch is None:
            return ask
        patch = _usage_patch(text, spans.get(b"stream_options"))
        return Ask(ask.model, ask.stream, ask.usage_asked, patch)


def _value_span(body: bytes, key: bytes) -> tuple[int, int] | None:
    scanner = Scanner(frozenset({key}))
    scanner.feed(body)
    return scanner.spans.get(key)
