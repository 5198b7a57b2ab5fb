"""Regions: a short name that an operator gives to a node's location, such as ``eu-west``."""

from __future__ import annotations

import re

PATTERN = r"^[a-z0-9._-]*\Z"
"""No commas, spaces or capitals: several of them make a list, in a header as in a setting."""
MAX_LENGTH = 64
"""Characters."""
_REGION = re.compile(PATTERN)


def is_region(text: str) -> bool:
    return 0 < len(text) <= MAX_LENGTH and _REGION.search(text) is not None
