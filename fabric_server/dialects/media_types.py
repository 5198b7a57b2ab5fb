"""Media are known by their first bytes: they must be what their server says, and no playlist.

A playlist or the like is text that makes a decoder open further URLs and files.
"""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from fabric_server.dialects.media import Kind

HEAD = 4096
"""Bytes that ``sniff`` and ``leads_elsewhere`` look at, at most."""

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"ID3", "audio/mpeg"),
    (b"fLaC", "audio/flac"),
    (b"OggS", "audio/ogg"),
    (b"#!AMR", "audio/amr"),
    (b"\xff\xf1", "audio/aac"),
    (b"\xff\xf9", "audio/aac"),
    (b"\xff\xfb", "audio/mpeg"),
    (b"\xff\xfa", "audio/mpeg"),
    (b"\xff\xf3", "audio/mpeg"),
    (b"\xff\xf2", "audio/mpeg"),
    (b"\x1aE\xdf\xa3", "video/webm"),
    (b"\0\0\1\xba", "video/mpeg"),
    (b"%PDF-", "application/pdf"),
)
_RIFF = {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "image/avif"),
    **dict.fromkeys((b"heic", b"heix", b"mif1", b"msf1"), "image/heic"),
    **dict.fromkeys((b"M4A ", b"M4B "), "audio/mp4"),
    b"qt  ": "video/quicktime",
}
_TEXTS = frozenset({"text/plain", "text/markdown", "text/csv"})
_BOTH = frozenset({"audio/ogg", "video/webm", "audio/mp4"})
"""Containers of sound as well as of pictures."""
_UNSAID = frozenset({"", "application/octet-stream", "binary/octet-stream"})
"""What stores of objects say when nobody told them the type."""

_ELSEWHERE = re.compile(
    rb"\A(?:\xef\xbb\xbf)?\s*(?:#EXTM3U|ffconcat|\[playlist\]|\[Reference\])"
    rb"|<(?:MPD|smil|asx)\b|^c=IN IP",
    re.IGNORECASE | re.MULTILINE,
)


def sniff(head: bytes) -> str | None:
    """Return the media type of data by its beginning; None if it is no medium that is known."""
    if head.startswith(b"RIFF"):
        return _RIFF.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "video/mp4")
    if head.startswith(b"FORM") and head[8:11] == b"AIF":
        return "audio/aiff"
    return next((found for magic, found in _MAGIC if head.startswith(magic)), None)


def media_type(kind: Kind, said: str, data: bytes) -> str | None:
    """Return the type of data that a server sent as type ``said``; None if it is not of the kind.

    Both what the server says and the first bytes must be of the kind.
    """
    said = said.partition(";")[0].strip().lower()
    if said in _TEXTS and kind is Kind.FILE:
        return said if _is_text(data) else None
    found = sniff(data[:HEAD])
    if found is None or not (said in _UNSAID or _is_of(kind, said)) or not _is_of(kind, found):
        return None
    if found in _BOTH and kind in (Kind.AUDIO, Kind.VIDEO):
        return f"{kind.value}/{found.partition('/')[2]}"
    return found


def _is_of(kind: Kind, type: str) -> bool:
    if kind is Kind.FILE:
        return type == "application/pdf" or type.startswith("image/")
    if type in _BOTH and kind in (Kind.AUDIO, Kind.VIDEO):
        return True
    return type.startswith(f"{kind.value}/") and type != "image/svg+xml"


def _is_text(data: bytes) -> bool:
    try:
        return "\0" not in data.decode()
    except UnicodeDecodeError:
        return False


def leads_elsewhere(head: bytes) -> bool:
    """Return whether data is text that makes a decoder open other URLs or files."""
    return _ELSEWHERE.search(head[:HEAD]) is not None


def base64_head(text: str) -> bytes:
    """Return the first bytes that base64 stands for, as far as it can be decoded."""
    plain = "".join(text[:HEAD].split()).rstrip("=").translate({0x2D: "+", 0x5F: "/"})
    try:
        return base64.b64decode(plain[: len(plain) // 4 * 4], validate=True)
    except binascii.Error:
        return b""


def data_url_head(url: str) -> bytes | None:
    """Return the first bytes of a ``data:`` URL (RFC 2397); None if it is none."""
    described, comma, data = url[:HEAD].removeprefix("data:").partition(",")
    if not comma or not described.isascii() or not described.isprintable() or " " in described:
        return None
    if described.lower().endswith(";base64"):
        return base64_head(data)
    return unquote_to_bytes(data)
