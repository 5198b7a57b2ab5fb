"""Reads a large body while it arrives, and decides what of it may go on to an engine.

    LargeBody    JSON: what it asks for, and what is replaced in it
    LargeForm    a multipart form, which is read to its end
    PlaceFinder  finds where values stand in a body that has been parsed

No engine may be asked for one model while another is billed.  So a body that flows through is read
to its end, in one pass, and fields that engines could read in two ways are refused: ``model``,
``stream`` and ``stream_options`` come once, in their usual spelling.  No engine can begin before
that is known, because the body's last bracket is held back until its end.  A ``stream_options``
that has to be replaced is held back until it is whole.  Nothing else is: what a body that flows
takes of memory does not grow with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from msgspec.structs import replace

from fabric_server.dialects import errors
from fabric_server.dialects.body import (
    DECIDING,
    FORM_FIELDS,
    STATEFUL,
    WITH_USAGE,
    are_numbers,
    bad_model,
    describe,
    describe_form,
    read_store,
    refuse_priority,
    refuse_state,
    refuse_twice,
)
from fabric_server.dialects.edited_text import EditedText
from fabric_server.dialects.endpoints import Endpoint
from fabric_server.dialects.errors import ApiError
from fabric_server.dialects.fields import ParsedBody
from fabric_server.dialects.forms import FormScanner, quote_names
from fabric_server.dialects.json_scanner import Fields, NotJson, Scanner, Value
from fabric_server.dialects.media_scanner import MediaScanner
from fabric_server.dialects.media_values import refused

_KEPT: Mapping[str, int] = {"model": 4096, "stream": 64, "stream_options": 64 * 1024}
_KEPT_STATE = dict.fromkeys(STATEFUL, 8)
_KEPT_INPUT = {"input": 64}
_KEPT_PRIORITY = {"priority": 8}
_KEPT_STORE = {"store": 8}
_PLACES = Fields(dict.fromkeys(DECIDING, 0))
_AT_END = b"," + WITH_USAGE


@lru_cache(maxsize=8)
def _fields(with_state: bool, with_input: bool, with_store: bool) -> Fields:
    state, given = _KEPT_STATE if with_state else {}, _KEPT_INPUT if with_input else {}
    store = _KEPT_STORE if with_store else {}
    return Fields({**_KEPT, **_KEPT_PRIORITY, **state, **given, **store})


class LargeBody:
    """One JSON body: ``feed`` it the pieces, and take out what may go on.

    ``parsed`` is known once ``model`` and ``stream`` have come.  Then the body may flow: after
    ``begin_flow``, ``take`` returns what can go on by now, and after ``end`` the rest.  A body that
    is kept whole is taken once, after ``end``.  Nearly all raise ``ApiError``: 400.
    """

    def __init__(self, endpoint: Endpoint, media: MediaScanner | None = None) -> None:
        """``media`` is fed the same pieces; it refuses what may not reach an engine."""
        self.parsed: ParsedBody | None = None
        self._endpoint = endpoint
        self._media = media
        fields = _fields(endpoint.rejects_state, endpoint.buffers_body, endpoint.stores)
        self._scanner = Scanner(fields, self._on_value)
        self._values: dict[str, Value] = {}
        self._twice = ""
        """A deciding field that has come twice."""
        self._token_ids = False
        self.stores = False
        """The request asks for its answer to be stored, where that can be: so far."""
        self._begins_with = b""
        self._text = EditedText()
        self.flows = False
        self.growth = 0
        """Bytes that a body that flows will be longer than was announced."""
        self._announced = False
        self._tail: bytes | None = None
        """Comes behind the text; None before the body's end."""

    @property
    def can_flow(self) -> bool:
        return self.parsed is not None and self._scanner.closed_at is None

    @property
    def held(self) -> int:
        """Bytes that were fed and not taken."""
        return self._text.size - self._text.taken

    @property
    def has_references(self) -> bool:
        """Return whether there are URLs that the server has to fetch."""
        return self._media is not None and bool(self._media.references)

    def feed(self, data: bytes) -> None:
        """Read the next piece: of ``SLICE`` bytes at most, so that it does not take long."""
        text = self._text
        text.add(data)
        if not self._begins_with:
            self._begins_with = data.lstrip(b" \t\r\n")[:1]
        try:
            self._scanner.feed(data)
        except NotJson as error:
            raise errors.bad_json(str(error)) from None
        if self._options_from(text.size) < text.size - _KEPT["stream_options"]:
            raise _too_long("stream_options")
        if self._media is not None:
            self._media.feed(data)
            if self.flows:
                self._refuse_references(self._media)
        if self.parsed is None and "model" in self._values and "stream" in self._values:
            self._decide()

    def drop(self) -> None:
        """Let go of the text; nothing is fed or taken any more."""
        self._text = EditedText()

    def begin_flow(self, *, announced: bool) -> ParsedBody:
        """Let parts of the body be taken, and return what it asks for.

        Of an ``announced`` length ``growth`` bytes more are sent on: what is not needed is space.
        """
        self.check()
        self._replace_options()
        assert self.parsed is not None
        self.flows, self._announced = True, announced
        self.growth = self._text.grown + (len(_AT_END) if self._inserts_usage else 0)
        return self.parsed

    def check(self) -> None:
        """Refuse a body in which a deciding field has come twice: ``parsed`` has the last one."""
        if self._twice:
            raise refuse_twice(self._twice)

    def end(self) -> ParsedBody:
        """Return what the body asks for, now that all of it has been fed."""
        try:
            self._scanner.end()
        except NotJson as error:
            raise errors.bad_json(str(error)) from None
        if self._begins_with != b"{":
            raise errors.not_an_object()
        if self._media is not None:
            self._media.feed(b"", last=True)
            if self.flows:
                self._refuse_references(self._media)
        if not self.flows:
            self._decide()
            self._replace_options()
        parsed, closed_at = self.parsed, self._scanner.closed_at
        assert parsed is not None
        assert closed_at is not None
        end, text = _AT_END if self._inserts_usage else b"", self._text
        if closed_at < text.taken:
            self._tail = end + b"}"
            grown = text.grown + len(self._tail)
        else:
            text.replace(closed_at, closed_at, end)
            self._tail, grown = b"", text.grown
        if self._announced:
            self._tail += b" " * (self.growth - grown)
        return parsed

    def take(self) -> bytes:
        """Return what can go on by now, with what was replaced in it."""
        text, closed_at = self._text, self._scanner.closed_at
        if self._tail is not None:
            return text.take(text.size, self._tail)
        if closed_at is not None and closed_at >= text.taken:
            text.replace(closed_at, closed_at + 1, b"")  # space behind it goes on before it
        return text.take(self._options_from(text.size))

    # ── small parts ───────────────────────────────────────────────────────────────────────────

    def _on_value(self, value: Value) -> None:
        name = value.name
        if name in _KEPT:
            if name in self._values:
                self._twice = name
            if not value.exact:
                raise refuse_twice(name)
            if self.flows:
                self.check()
            if not value.whole:
                raise bad_model() if name == "model" else _too_long(name)
            self._values[name] = value
            if self.parsed is not None:
                self._decide()
            if self.flows:
                self._replace_options()
        elif name == "priority":
            refuse_priority(value.text)
        elif name == "input":
            self._token_ids = are_numbers(value.text)
        elif name == "store":
            self.stores = value.exact and read_store(value.text)
        else:
            refuse_state(name, value.text)

    def _decide(self) -> None:
        texts = {name: value.text for name, value in self._values.items()}
        model = self._values.get("model")
        place = None if model is None else (model.start, model.stop)
        parsed = describe(texts, self._endpoint)
        self.parsed = replace(parsed, token_ids=self._token_ids, place=place)

    def _replace_options(self) -> None:
        """Replace the value of ``stream_options``, once, if it does not ask for usage."""
        parsed, options = self.parsed, self._values.get("stream_options")
        if parsed is None or parsed.options is None or options is None:
            return
        growth = len(parsed.options) - (options.stop - options.start)
        self._text.replace(options.start, options.stop, parsed.options)
        if parsed.place is not None and options.start < parsed.place[0]:
            start, stop = parsed.place
            parsed = replace(parsed, place=(start + growth, stop + growth))
        self.parsed = replace(parsed, options=None)

    @property
    def _inserts_usage(self) -> bool:
        if not self._endpoint.injects_usage or "stream_options" in self._values:
            return False
        return self.parsed is not None and self.parsed.stream

    def _options_from(self, other: int) -> int:
        """Return where ``stream_options`` begin that have come in part; ``other`` if none have."""
        pending = self._scanner.pending
        return pending[1] if pending is not None and pending[0] == "stream_options" else other

    @staticmethod
    def _refuse_references(media: MediaScanner) -> None:
        for one in media.references:
            rule = (
                "behind 256 KiB without media it is only fetched if 'model' or 'stream' comes"
                " behind it; send a data: URL"
            )
            raise refused(one.param, one.url, rule)


class LargeForm:
    """One multipart form: ``feed`` it the pieces; it is taken whole, after ``end``."""

    def __init__(self, content_type: bytes) -> None:
        self._scanner = FormScanner(content_type, FORM_FIELDS)
        self._text = EditedText()

    def feed(self, data: bytes) -> None:
        self._text.add(data)
        self._scanner.feed(data)

    def drop(self) -> None:
        """Let go of the text; nothing is fed or taken any more."""
        self._text = EditedText()

    def end(self) -> ParsedBody:
        return describe_form(self._scanner.end())

    def take(self) -> bytes:
        whole, bare = self._text.take(self._text.size), self._scanner.bare
        return quote_names(whole, bare) if bare else whole


class PlaceFinder:
    """Finds the values of deciding fields in a body that is JSON: the last one of each counts."""

    def __init__(self) -> None:
        self.places: dict[str, tuple[int, int]] = {}
        self._scanner = Scanner(_PLACES, self._on_value)

    def feed(self, data: bytes) -> None:
        try:
            self._scanner.feed(data)
        except NotJson as error:
            raise errors.bad_json(str(error)) from None

    def _on_value(self, value: Value) -> None:
        if value.exact:
            self.places[value.name] = value.start, value.stop


def _too_long(name: str) -> ApiError:
    return errors.bad_field(name, f"'{name}' is too long.")
