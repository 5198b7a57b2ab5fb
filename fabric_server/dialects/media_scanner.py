"""Finds the fields of ``dialects.media`` in a body of JSON, with their places in its bytes.

The scanner takes the body in pieces and keeps no more of it than one short string, so that it can
follow a body that passes.  Parsers disagree about which of two fields of one name counts: here each
is looked at.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

import msgspec

from fabric_server.dialects.json_scanner import possessive
from fabric_server.dialects.media import (
    CITING_TYPES,
    INSIDE_INLINE,
    INSIDE_REFERENCE,
    MEDIA,
    MEDIA_TYPES,
    NAMES,
    OTHERS,
    REFERS_OUTSIDE,
    TOOL_INPUT,
    URL_ENDINGS,
    Kind,
    Rule,
    fold,
)
from fabric_server.dialects.media_values import OFF, Policy, refused

MAX_KEPT = 9000
"""Bytes of a string that are looked at: URLs and paths are shorter."""
MAX_DEPTH = 1000
MAX_SHOWN_NAMES = 12

_MARK = re.compile(rb'["{}\[\]]')
_STRING = re.compile(possessive(rb'[^"\\]++|\\.'), re.DOTALL)
_COLON = re.compile(rb"[ \t\r\n]*+(:?)")
_decode_string = msgspec.json.Decoder(str).decode

_OF_MEDIA = (Rule.REFERENCE, Rule.INLINE, Rule.BASE64)
_DEEP = (Rule.TEXT, Rule.SCHEMA, Rule.OPTIONS, Rule.REFUSED)
"""Rules for all that is inside an object."""
_UNNOTICED = frozenset(name for name, rule in OTHERS.items() if rule in (Rule.TEXT, Rule.OPTIONS))
_NOTICED = (MEDIA.keys() | OTHERS.keys() | {"type"}) - _UNNOTICED
"""Names of fields whose strings are judged wherever they stand."""


class Span(NamedTuple):
    start: int
    stop: int


class Reference(NamedTuple):
    """A URL that is to be fetched."""

    url: str
    param: str
    """Where it stands, as ``messages[0].content[1].image_url.url``."""
    kind: Kind
    value: Span
    """The string with its quotes, or Anthropic's ``source`` object."""
    source: bool = False
    """``value`` is Anthropic's ``source``."""
    name: Span | None = None
    """The field's name, with its quotes, if another field is to hold the data."""


class _String(NamedTuple):
    raw: bytes
    """What is between the quotes, or its beginning."""
    span: Span
    long: bool
    """There is more than ``raw``."""

    @property
    def text(self) -> str | None:
        """The text, None if it can't be decoded."""
        return _decode(self.raw, cut=self.long)


class _Frame:
    """An object or array that is open."""

    __slots__ = ("array", "count", "field", "field_span", "kind", "links", "mode", "name", "shown",
                 "start", "types")  # fmt: skip

    def __init__(self, array: bool, name: str, mode: Rule | None, kind: Kind, start: int) -> None:
        self.array = array
        self.name = name
        """The name of the field whose value it is, folded."""
        self.mode = mode
        """How what is inside is judged; None: by name."""
        self.kind = kind
        self.start = start
        self.field = name
        """The name of the field that comes, folded; in an array that of the array."""
        self.shown = name
        """The same as written."""
        self.field_span = Span(0, 0)
        self.count = 0
        """Strings, objects and arrays so far."""
        self.types: list[str] | None = None
        self.links: list[tuple[Rule, _String, str]] | None = None
        """Strings that can be judged when all types of the object are known, and their places."""


class MediaScanner:
    """Scans one body.  ``feed`` its pieces, the last with ``last``; then ``references`` is whole.

    Raises ``ApiError`` that names the field and the rule, for what may not reach an engine.  What
    is no JSON may end the scan early; engines refuse that.
    """

    def __init__(self, policy: Policy, *, mode: Rule | None = None, at: str = "") -> None:
        """``mode`` is how the whole is judged, ``at`` where it stands in another body."""
        self.references: list[Reference] = []
        self._policy = policy
        self._mode = mode
        self._at = at
        self._frames: list[_Frame] = []
        self._text = b""
        self._before = 0
        """Bytes of the body before ``_text``."""
        self._long: tuple[int, bytes] | None = None
        """Where a long string began, and its beginning."""

    def feed(self, data: bytes, *, last: bool = False) -> None:
        text = self._text + data if self._text else data
        at, end = 0, len(text)
        if self._long is not None:
            at = self._skip(text, 0)
        while at < end and self._long is None:
            found = _MARK.search(text, at)
            if found is None:
                at = end
                break
            start = found.start()
            mark = text[start]
            if mark != 0x22:  # "
                at = start + 1
                if mark == 0x7B or mark == 0x5B:  # { [
                    self._open(mark == 0x5B, self._before + start)
                else:
                    self._close(self._before + at)
                continue
            stop, whole = _end_of_string(text, start + 1)
            colon = _COLON.match(text, stop + 1) if whole else None
            if colon is not None and (colon[1] or colon.end() < end or last):
                self._on_string(text, start, stop, bool(colon[1]))
                at = colon.end()
            elif end - start > MAX_KEPT:
                self._long = (self._before + start, text[start + 1 : start + 1 + MAX_KEPT])
                at = self._skip(text, start + 1)
            else:
                at = start  # the rest of the string, or what is behind it, has not come yet
                break
        self._before += at
        self._text = text[at:]

    def _skip(self, text: bytes, at: int) -> int:
        """Go on in a long string; return where the rest begins."""
        stop, whole = _end_of_string(text, at)
        if not whole:
            return stop
        assert self._long is not None
        start, beginning = self._long
        self._long = None
        if self._frames:
            self._on_value(_String(beginning, Span(start, self._before + stop + 1), True))
        return stop + 1

    # ── the parts of a body ───────────────────────────────────────────────────────────────────

    def _on_string(self, text: bytes, start: int, stop: int, named: bool) -> None:
        if not self._frames:
            return
        frame = self._frames[-1]
        if named and not frame.array:
            frame.shown, frame.field = _name(text[start + 1 : min(stop, start + 1 + MAX_KEPT)])
            frame.field_span = Span(self._before + start, self._before + stop + 1)
            return
        frame.count += 1
        mode = frame.mode
        if mode is Rule.TEXT:
            return
        if mode is None and not (frame.field in _NOTICED or frame.field.endswith(URL_ENDINGS)):
            return
        raw = text[start + 1 : min(stop, start + 1 + MAX_KEPT)]
        span = Span(self._before + start, self._before + stop + 1)
        self._judge(_String(raw, span, stop - start > MAX_KEPT))

    def _on_value(self, value: _String) -> None:
        frame = self._frames[-1]
        frame.count += 1
        if frame.mode is not Rule.TEXT:
            self._judge(value)

    def _open(self, array: bool, start: int) -> None:
        frames = self._frames
        if len(frames) >= MAX_DEPTH:
            raise refused("body", None, f"it is nested deeper than {MAX_DEPTH} levels")
        if not frames:
            frames.append(_Frame(array, "", self._mode, Kind.FILE, start))
            return
        parent = frames[-1]
        parent.count += 1
        mode, kind = (parent.mode, parent.kind) if parent.array else self._inside(parent)
        frames.append(_Frame(array, parent.field, mode, kind, start))

    def _inside(self, parent: _Frame) -> tuple[Rule | None, Kind]:
        """Return how an object or array is judged that is the value of a field."""
        name = parent.field
        if parent.mode in _DEEP:
            return parent.mode, parent.kind
        if name in MEDIA:
            return MEDIA[name]
        if parent.mode in _OF_MEDIA:
            return parent.mode, parent.kind
        if name == TOOL_INPUT and len(self._frames) > 1:
            return Rule.TEXT, Kind.FILE
        rule = OTHERS.get(name)
        return (rule if rule in _DEEP or rule is Rule.SOURCE else None), Kind.FILE

    def _close(self, stop: int) -> None:
        if not self._frames:
            return
        frame = self._frames[-1]
        if frame.links is not None:
            self._judge_links(frame, frame.links, stop)
        self._frames.pop()

    # ── judging ───────────────────────────────────────────────────────────────────────────────

    def _judge(self, value: _String) -> None:
        """Judge a string that is the value of a field, or in an array that is."""
        frame = self._frames[-1]
        mode, name = frame.mode, frame.field
        if mode is Rule.SCHEMA:
            self._judge_schema(name, value)
        elif mode is Rule.OPTIONS:
            self._policy.check_text(self._param(), value.text)
        elif mode is Rule.REFUSED:
            self._refuse(value)
        elif name == "type" and not frame.array:
            frame.types = [*(frame.types or ()), fold(value.text or "")]
        elif name in MEDIA:
            self._judge_medium(*MEDIA[name], value)
        elif mode in _OF_MEDIA:
            self._judge_inside(mode, name, value)
        elif mode is Rule.SOURCE and name == "data":
            self._postpone(Rule.TEXT, value)
        else:
            self._judge_other(name, value)

    def _judge_other(self, name: str, value: _String) -> None:
        rule = OTHERS.get(name)
        if rule is Rule.REFUSED:
            self._refuse(value)
        elif rule in (Rule.LINK, Rule.WEAK_LINK, Rule.SOURCE):
            self._postpone(rule, value)
        elif rule is Rule.TEMPLATE:
            if b"{" not in value.raw:
                self._policy.check_text(self._param(), value.text)
        elif rule is Rule.SCHEMA:
            self._judge_schema(name, value)
        elif name.endswith(URL_ENDINGS):
            self._judge_medium(Rule.BASE64, Kind.FILE, value)

    def _judge_inside(self, mode: Rule | None, name: str, value: _String) -> None:
        """Judge a string inside the object of a medium."""
        kind = self._frames[-1].kind
        if name in INSIDE_REFERENCE:
            strict = Rule.BASE64 if mode is Rule.BASE64 else Rule.REFERENCE
            self._judge_medium(strict, kind, value)
        elif name in INSIDE_INLINE or name.endswith(URL_ENDINGS):
            self._judge_medium(Rule.BASE64, kind, value)
        elif name not in NAMES:
            self._policy.check_text(self._param(), value.text)

    def _judge_medium(self, rule: Rule, kind: Kind, value: _String) -> None:
        """Judge a string that is a medium, or says where it is."""
        param, text = self._param(), value.text
        if not self._policy.is_data(param, text, rule, long=value.long):
            assert text is not None
            frame = self._frames[-1]
            renamed = frame.field == "file_url" and not frame.array
            name = frame.field_span if renamed else None
            self._add(Reference(text, param, kind, value.span, name=name))

    def _postpone(self, rule: Rule, value: _String) -> None:
        """Judge a string when its object ends, and all its types are known."""
        frame = self._frames[-1]
        if frame.links is None:
            frame.links = []
        elif len(frame.links) >= 4 * self._policy.max_urls:
            raise refused(self._param(), value.text, "there are too many URLs")
        frame.links.append((rule, value, self._param()))

    def _judge_links(
        self, frame: _Frame, links: list[tuple[Rule, _String, str]], stop: int
    ) -> None:
        types = frame.types or []
        kinds = [MEDIA_TYPES[one] for one in types if one in MEDIA_TYPES]
        cites = bool(types) and CITING_TYPES.issuperset(types)
        policy = self._policy
        for rule, value, param in links:
            text = value.text
            if rule is Rule.TEXT:  # the data of a source
                if policy.off and types != ["text"]:
                    raise refused(param, None, OFF)
            elif frame.mode is Rule.SOURCE and rule is Rule.LINK:
                if not policy.is_data(param, text, Rule.REFERENCE, long=value.long):
                    if sum(one[0] is Rule.LINK for one in links) > 1:
                        raise refused(param, text, "a source must have one URL")
                    span = Span(frame.start, stop)
                    self._add(Reference(text or "", param, Kind.FILE, span, source=True))
            elif kinds:
                strict = Rule.BASE64 if rule is Rule.SOURCE else Rule.REFERENCE
                if not policy.is_data(param, text, strict, long=value.long):
                    self._add(Reference(text or "", param, kinds[0], value.span))
            elif rule is Rule.LINK and not cites:
                policy.is_data(param, text, Rule.BASE64, long=value.long)

    def _judge_schema(self, name: str, value: _String) -> None:
        """Judge a string in a JSON schema; it may be a schema itself, as text."""
        if name in REFERS_OUTSIDE:
            if not value.raw.startswith(b"#"):
                rule = "a schema may only refer to its own parts, by #"
                raise refused(self._param(), value.text, rule)
        elif self._mode is None and (b"ref" in value.raw.lower() or b"\\u" in value.raw):
            text = value.text
            if text is not None and text.lstrip()[:1] in ("{", "["):
                if value.long:
                    raise refused(self._param(), None, "a schema as text must be shorter")
                inner = MediaScanner(self._policy, mode=Rule.SCHEMA, at=self._param())
                inner.feed(text.encode(errors="replace"), last=True)

    def _refuse(self, value: _String) -> None:
        if value.raw:
            raise refused(self._param(), value.text, "engines load or call what it names")

    def _add(self, reference: Reference) -> None:
        policy = self._policy
        policy.check_url(reference.param, reference.url)
        self.references.append(reference)
        if len(self.references) > policy.max_urls:
            rule = f"a request may have {policy.max_urls} URLs that are to be fetched"
            raise refused(reference.param, reference.url, rule)

    def _param(self) -> str:
        """Return where the field stands that is being read."""
        parts = [self._at]
        for frame in self._frames[:MAX_SHOWN_NAMES]:
            if frame.array:
                parts.append(f"[{max(0, frame.count - 1)}]")
            else:
                parts.append(f".{ascii(frame.shown[:64])[1:-1]}")
        return "".join(parts).removeprefix(".")


def _end_of_string(text: bytes, at: int) -> tuple[int, bool]:
    """Return where the string ends that ``at`` is in, and True; or where to go on, and False."""
    found = _STRING.match(text, at)
    assert found is not None  # the pattern matches the empty string, too
    stop = found.end()
    return stop, text[stop : stop + 1] == b'"'


def _decode(raw: bytes, *, cut: bool = False) -> str | None:
    """Decode what is between a string's quotes; None if that is impossible.

    ``cut``: it is the beginning only, and may end within a letter.
    """
    if cut:
        escape = raw.find(b"\\", len(raw) - 12)
        if escape >= 0:
            raw = raw[:escape].rstrip(b"\\")
        raw = raw.decode(errors="ignore").encode()
    try:
        return _decode_string(b'"%b"' % raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _name(raw: bytes) -> tuple[str, str]:
    """Return a field's name as written, and folded."""
    return _short_name(raw) if len(raw) <= 64 else _new_name(raw)


def _new_name(raw: bytes) -> tuple[str, str]:
    shown = _decode(raw)
    if shown is None:  # parsers would not agree on it: no engine knows it
        shown = raw.decode(errors="replace")
    return shown, fold(shown)


_short_name = lru_cache(maxsize=2048)(_new_name)
