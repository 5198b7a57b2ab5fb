"""Tells at once that a body has no media, as most have none, so that only the others are scanned.

First a body is decoded as the plainest of questions, which costs half a microsecond.  If it is more
than that, its bytes are searched for the names of ``dialects.media``.  Hostile values are strings:
under such a name, directly or in an array, or anywhere inside an object under the name of a medium.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

import msgspec
from msgspec import Struct

from fabric_server.dialects.media import MEDIA, MEDIA_TYPES, OTHERS, Rule

_Scalar = str | float | bool | None


class _Text(Struct, forbid_unknown_fields=True, gc=False):
    type: Literal["text"]
    text: str
    cache_control: dict[str, str] | None = None


class _Message(Struct, forbid_unknown_fields=True, gc=False):
    content: str | list[_Text] | None = None
    role: str | None = None
    name: str | None = None


class _Plain(Struct, forbid_unknown_fields=True, gc=False):
    """A question without media, tools and options of engines, in any dialect.

    No field here is one of ``dialects.media``, whatever it holds.
    """

    model: _Scalar = None
    messages: list[_Message] | None = None
    prompt: str | list[str] | None = None
    input: str | list[str] | None = None
    system: str | list[_Text] | None = None
    instructions: str | None = None
    stream: _Scalar = None
    stream_options: dict[str, _Scalar] | None = None
    options: dict[str, float | bool | None] | None = None
    temperature: _Scalar = None
    top_p: _Scalar = None
    top_k: _Scalar = None
    max_tokens: _Scalar = None
    max_completion_tokens: _Scalar = None
    max_output_tokens: _Scalar = None
    presence_penalty: _Scalar = None
    frequency_penalty: _Scalar = None
    seed: _Scalar = None
    n: _Scalar = None
    stop: str | list[str] | None = None
    user: _Scalar = None
    encoding_format: _Scalar = None
    dimensions: _Scalar = None
    format: Literal["", "json"] | None = None
    think: _Scalar = None
    raw: _Scalar = None
    keep_alive: _Scalar = None


_decode_plain = msgspec.json.Decoder(_Plain).decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def _any_of(names: Iterable[str]) -> str:
    """Return a regular expression for names, which begins with their first letters: a quote in a
    body is then compared with one or two of them instead of with all."""
    rest: dict[str, list[str]] = {}
    for name in names:
        rest.setdefault(name[:1], []).append(name[1:])
    ends = rest.pop("", None) is not None
    options = [re.escape(letter) + _any_of(rest[letter]) for letter in sorted(rest)]
    if not options:
        return ""
    if len(options) == 1 and not ends:
        return options[0]
    return f"(?:{'|'.join(options)}){'?' if ends else ''}"


def _named(*rules: Rule) -> list[str]:
    return [name for name, rule in OTHERS.items() if rule in rules]


def _begin_of_any(names: Iterable[str]) -> str:
    """Return a regular expression that looks ahead at three letters: most strings of a body begin
    with others, which halves the time of a search."""
    letters = list(zip(*names, strict=False))[:3]
    return "(?=" + "".join(f"[{''.join(sorted({*some}))}]" for some in letters) + ")"


_ANYTHING_NAMES = [*MEDIA, *_named(Rule.REFUSED, Rule.OPTIONS, Rule.TEMPLATE)]
_STRING_NAMES = _named(Rule.LINK)
_WEAK_NAMES = _named(Rule.WEAK_LINK, Rule.SOURCE)
_ANYTHING, _STRINGS, _WEAK = map(_any_of, (_ANYTHING_NAMES, _STRING_NAMES, _WEAK_NAMES))
_STRONG = rf'{_ANYTHING}"\s*:(?!\s*(?:null|true|false|-?\d))|{_STRINGS}"\s*:\s*["\[]'
_BEGIN = _begin_of_any([*_ANYTHING_NAMES, *_STRING_NAMES, *_WEAK_NAMES])
_GUARD = re.compile(rf'"{_BEGIN}(?:{_STRONG}|(?P<weak>{_WEAK}"\s*:\s*["\[]))'.encode())
_STRONG_GUARD = re.compile(rf'"{_BEGIN}(?:{_STRONG})'.encode())
_MEDIA_TYPE = re.compile(rf'"type"\s*:\s*"{_any_of(MEDIA_TYPES)}"'.encode())
_OTHER_URL = re.compile(rb'_ur[il]s?"\s*:')
_REFERS = re.compile(rb'\$(?:dynamic|recursive)?ref\\*"\s*:\s*\\*"(?!#)')
_ESCAPED_LETTER = re.compile(rb"\\u(?:00[2-7]|017f|212a)")


def may_have_media(body: bytes) -> bool:
    """Return False if a body, which is JSON, certainly has none of the fields.

    Objects called ``source`` are not noticed if they only have data.
    """
    try:
        _decode_plain(body)
    except _UNREADABLE:
        return _may_have_names(body.lower())
    return False


def _may_have_names(body: bytes) -> bool:
    """Search a body in lower case for names of the table before values that matter."""
    found = _GUARD.search(body)
    if found is not None:
        if found["weak"] is None or _STRONG_GUARD.search(body, found.end()) is not None:
            return True
        if _MEDIA_TYPE.search(body) is not None:
            return True
    if _OTHER_URL.search(body) is not None:
        return True
    if b"\\" in body and _ESCAPED_LETTER.search(body) is not None:
        return True  # a name may be spelt with it
    # What ``media.fold`` takes for s and k.
    if not body.isascii() and (b"\xc5\xbf" in body or b"\xe2\x84\xaa" in body):
        return True
    return b"$" in body and _REFERS.search(body) is not None
