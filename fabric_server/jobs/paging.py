"""Lists of OpenAI's API: what a query asks for, and the page that it gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fabric_server.dialects import errors

Query = Mapping[str, list[str]]
Order = Literal["asc", "desc"]


def page(data: Sequence[dict[str, Any]], more: bool) -> dict[str, Any]:
    """Return OpenAI's list object."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": more,
    }


def read_limit(query: Query, most: int, default: int = 100) -> int:
    """Return ``limit`` from the query.  Raises ``ApiError``: 400."""
    text = query.get("limit", [str(min(most, default))])[0]
    if not text.isascii() or not text.isdigit() or len(text) > 6 or not 1 <= int(text) <= most:
        raise errors.bad_field("limit", f"'limit' must be a number from 1 to {most}.")
    return int(text)


def is_descending(query: Query, default: Order) -> bool:
    """Return whether ``order`` of the query is ``desc``.  Raises ``ApiError``: 400."""
    order = query.get("order", [default])[0]
    if order not in ("asc", "desc"):
        raise errors.bad_field("order", "'order' must be 'asc' or 'desc'.")
    return order == "desc"


def page_of(items: Sequence[dict[str, Any]], query: Query, default: Order) -> dict[str, Any]:
    """Return the page of ``items``, which are in ascending order, for a query that has 20 unless
    it says otherwise.  Raises ``ApiError``: 400."""
    limit = read_limit(query, 100, default=20)
    found = list(reversed(items)) if is_descending(query, default) else list(items)
    if after := query.get("after", [""])[0]:
        places = [at for at, item in enumerate(found) if item["id"] == after]
        if not places:
            raise errors.bad_field("after", "'after' must be the id of an item of this list.")
        found = found[places[0] + 1 :]
    return page(found[:limit], len(found) > limit)
