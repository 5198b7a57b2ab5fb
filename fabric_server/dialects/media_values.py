"""Judges values of the fields of ``dialects.media``: data passes, URLs are fetched or refused."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from fabric_server.dialects.errors import ApiError
from fabric_server.dialects.media import Rule
from fabric_server.dialects.media_types import base64_head, data_url_head, leads_elsewhere, sniff

MAX_SHOWN = 100
MAX_PATH = 4096
"""Longest path of a file on Linux, in bytes: longer text is none."""

_WEB = re.compile(r"https?://", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_\r\n-]*={0,2}\s*")
_FOREIGN = re.compile(
    r"[a-z][a-z0-9+.-]*:/"  # a URL, anywhere
    r"|\A\s*(?:[/~\\]|\.\.?[/\\]|[a-z]:[/\\]|(?:file|data|ftp|gopher|jar|blob|javascript):)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules for media, by the setting ``media``; ``ollama``: for a path of Ollama's."""

    media: Literal["fetch", "data", "off"] = "fetch"
    ollama: bool = False
    max_urls: int = 8

    @property
    def off(self) -> bool:
        return self.media == "off"

    def is_data(self, param: str, text: str | None, rule: Rule, *, long: bool = False) -> bool:
        """Return True for data, False for a URL that is to be fetched.

        ``rule`` is that of the field; ``long``: ``text`` is only the beginning.  Raises
        ``ApiError`` for everything else.
        """
        if text == "":
            return True
        if self.off:
            raise refused(param, text, OFF)
        if text is None:
            raise refused(param, text, "it can't be decoded")
        if text.startswith("data:"):
            head = data_url_head(text)
            if head is None:
                raise refused(param, text, "it is no data: URL as in RFC 2397")
            if leads_elsewhere(head):
                raise refused(param, text, "playlists, which lead to other URLs, are not taken")
            return True
        if rule is not Rule.REFERENCE and _is_base64(text, long=long):
            return True
        if _WEB.match(text) is None:
            raise refused(param, text, _OTHER[rule])
        if rule is Rule.BASE64 or (rule is Rule.INLINE and self.ollama):
            raise refused(param, text, "this field takes base64 or a data: URL, no other URL")
        if long:
            raise refused(param, text, "the URL is too long")
        return False

    def check_url(self, param: str, url: str) -> None:
        """Refuse a URL, unless it is to be fetched.  Raises ``ApiError``."""
        if self.media != "fetch":
            raise refused(param, url, "this server fetches no URLs; send a data: URL")

    def check_text(self, param: str, text: str | None) -> None:
        """Refuse text that looks like a URL or a path.  Raises ``ApiError``."""
        if text is None or is_foreign(text):
            raise refused(param, text, "no URL and no path may stand here")


def is_foreign(text: str) -> bool:
    """Return whether text looks like a URL, wherever it begins, or like a path."""
    return _FOREIGN.search(text) is not None


OFF = "this server takes no images, sounds, videos and files"
_OTHER = {
    Rule.REFERENCE: "it must be a URL that begins with data:, https:// or http://",
    Rule.INLINE: "it must be base64 or a URL that begins with data:, https:// or http://",
    Rule.BASE64: "it must be base64 or begin with data:",
}


def _is_base64(text: str, *, long: bool) -> bool:
    """Return whether text is base64, and can't be a path, whose letters are among base64's."""
    if _BASE64.fullmatch(text) is None:
        return False
    if long or len(text) > MAX_PATH:
        return True
    head = base64_head(text)
    if leads_elsewhere(head):
        return False
    return sniff(head) is not None or ("/" not in text and len("".join(text.split())) % 4 == 0)


def refused(param: str, text: str | None, rule: str) -> ApiError:
    """Return the error that names the field, its value in short, and the rule."""
    shown = "" if text is None else f" {shorten(text)}"
    return ApiError(400, "media_refused", f"'{param}'{shown} is refused: {rule}.", param=param)


def shorten(text: str) -> str:
    """Return a user's text, quoted, in printable ASCII and at most ``MAX_SHOWN`` characters."""
    cut = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
    return '"' + ascii(cut)[1:-1].replace("\\u2026", "...").replace('"', '\\"') + '"'
