"""How much the operator prefers a node or a region: a factor on speed, as routing expects it."""

from __future__ import annotations

import math
from collections.abc import Iterable

from protocol.regions import is_region

REGION = "region:"
"""Before the name of a region."""


def parse_weights(texts: Iterable[str]) -> dict[str, float]:
    """Of ``node=2`` or ``region:eu-west=2`` each; raises ValueError that says what is
    wrong with which."""
    weights: dict[str, float] = {}
    for text in texts:
        name, _, factor = text.rpartition("=")
        try:
            weight = float(factor)
        except ValueError:
            weight = 0.0
        if not name.strip() or not 0.0 < weight < math.inf:
            raise ValueError(f"'{text}' is not of the form node=2, with a number above 0")
        name = name.strip()
        if name.startswith(REGION) and not is_region(name.removeprefix(REGION)):
            raise ValueError(f"'{text}' names no region, such as region:eu-west=2")
        weights[name] = weight
    return weights
