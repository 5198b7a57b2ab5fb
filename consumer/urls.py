"""Back ends' URLs as they may be shown."""

from __future__ import annotations


def shown(url: str) -> str:
    """Without user, password and query, all of which may hold secrets."""
    scheme, mark, rest = url.partition("://")
    _, at, tail = rest.rpartition("@")
    return f"{scheme}{mark}{'***@' if at else ''}{tail.partition('?')[0]}"
