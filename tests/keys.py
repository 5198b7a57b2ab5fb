"""API keys for tests."""

from __future__ import annotations

from typing import Any

from fabric_server.auth.keys import KeyPolicy, NewKey, mint


def mint_with(name: str, *, now: float, **properties: Any) -> NewKey:
    """Mint a key; ``properties`` are ``mint``'s arguments and the fields of a ``KeyPolicy``."""
    policy = {one: properties.pop(one) for one in KeyPolicy.__struct_fields__ if one in properties}
    return mint(name, now=now, policy=KeyPolicy(**policy), **properties)
